"""The REST interface under requests that its own description allows, and under others: never a fault of the server."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402

from search.serve.app import application  # noqa: E402
from search.serve.asking import Serving  # noqa: E402
from search.serve.guard import Door  # noqa: E402
from search.serve.holder import Holder, Opening  # noqa: E402

EXAMPLES = 400 if "SPARSIGHT_SOAK" in os.environ else 20
HOST = {"Host": "127.0.0.1"}
OPERATIONS = (
    *("POST /api/search", "GET /api/search", "POST /api/pictures", "GET /api/pictures/{image_id}"),
    *("GET /api/pictures/{image_id}/explain", "GET /api/pictures/{image_id}/classify"),
    *("POST /api/pictures/{image_id}/edit", "GET /api/concepts", "GET /api/concepts/{name}", "GET /api/state"),
    *("GET /api/classes/{label}", "POST /api/doctor"),
)
ANYTHING = {"POST /api/pictures", "GET /api/state", "POST /api/doctor"}  # no request to these is malformed
CASES = [(label, GenerationMode.POSITIVE) for label in OPERATIONS]
CASES += [(label, GenerationMode.NEGATIVE) for label in OPERATIONS if label not in ANYTHING]


@pytest.fixture(scope="module")
def described(small_index):
    holder = Holder(Opening(small_index))
    web = application(Serving(holder, small_index / "none"), Door("127.0.0.1", 80))
    yield schemathesis.openapi.from_asgi("/openapi.json", web, headers=HOST)
    holder.close()


def test_every_operation_is_fuzzed(described):
    assert {found.ok().label for found in described.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(("label", "mode"), CASES, ids=lambda value: getattr(value, "value", value))
def test_no_request_is_a_fault_of_the_server(described, label, mode):
    operation = next(o.ok() for o in described.get_all_operations() if o.ok().label == label)
    examples = EXAMPLES if label != "POST /api/doctor" else 1

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case):
        answer = case.call(headers=HOST)
        case.validate_response(answer, checks=[not_a_server_error])
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error"}
            assert "\n" not in answer.json()["error"]

    check()
