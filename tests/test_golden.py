"""The answers over the bundled embeddings, against those written down before the code was moved into its rooms.

`python -m tests.test_golden` writes them anew (tests/golden/bundled.json): do so only where an answer is meant to
change, and say so in the changelog.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sparsight import main

GOLDEN = Path(__file__).parent / "golden" / "bundled.json"
TEXTS = ("a fire engine", "a tabby cat", "a small dog", "a ship at sea", "an animal that meows", "democracy")
CONCEPTS = ("tabby cat", "fire engine", "horse")
PICTURES = ("17", "4711", "9999")
SCORE = 2e-4  # how far a score may move with the processor's rounding
REPORT = (  # figures of report.json: a path of keys, and how far the figure may move
    (("dataset", "n"), 0),
    (("dense", "accuracy"), 0),
    (("sparse", "accuracy"), 2e-4),
    (("sparse", "nnz_mean"), 1e-3),
    (("sparse", "cosine_mean"), 1e-4),
    (("memory", "ratio"), 1e-5),
    (("memory", "sparse_compact_bytes"), 100),
    (("concepts", "top_term_accuracy_sparse"), 3e-4),
    (("concepts", "top_term_accuracy_dense"), 0),
    (("open_words", "unseen", "precision_dense"), 2e-3),
    (("open_words", "unseen", "precision_sparse"), 5e-3),
)


def answers(index: Path) -> dict[str, list[dict]]:
    """Every question's JSON lines, by the command line that asks it."""
    asked = [("search", text, "--mode", mode) for text in TEXTS for mode in ("sparse", "dense")]
    asked += [("search", "--picture", picture, "--mode", mode) for picture in PICTURES for mode in ("sparse", "dense")]
    asked += [("concepts", name) for name in CONCEPTS]
    asked += [("search", "--concept", "truck", "--concept", "fire engine"), ("concepts", "--near", "poodle")]
    asked += [("classify", *PICTURES, "--mode", mode) for mode in ("sparse", "dense")]
    asked += [("explain", picture) for picture in PICTURES] + [("explain", "17", "--for", "a fire engine")]
    found = {}
    for question in asked:
        every = ["--all"] if question[0] == "search" else []  # also what would be left out by now
        result = CliRunner().invoke(main, [*question, *every, "--json", "--index", str(index)])
        assert result.exit_code == 0, result.output
        found[" ".join(question)] = [json.loads(line) for line in result.stdout.splitlines()]
    return found


def codes(index: Path) -> dict[str, list]:
    """The codes of every hundredth picture: concepts and weights."""
    sql = "SELECT image_id, concept_id, weight FROM postings WHERE image_id % 100 = 0 ORDER BY 1, 2"
    result = CliRunner().invoke(main, ["sql", sql, "--json", "--index", str(index)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return {key: [row[key] for row in rows] for key in ("image_id", "concept_id", "weight")}


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def test_every_question_has_the_answer_that_it_had(bundled_index, golden):
    found = answers(bundled_index)
    assert found.keys() == golden["answers"].keys()
    for question, lines in found.items():
        assert_alike(question, lines, golden["answers"][question])


def test_codes_are_what_they_were(bundled_index, golden):
    found, before = codes(bundled_index), golden["codes"]
    now, then = (
        {(i, j): w for i, j, w in zip(c["image_id"], c["concept_id"], c["weight"], strict=True)}
        for c in (found, before)
    )
    assert len(now.keys() ^ then.keys()) <= 2  # near ties of the l1 code
    assert sum(abs(now[at] - then[at]) > SCORE for at in now.keys() & then.keys()) <= 2


def assert_alike(question: str, found: object, before: object) -> None:
    """Equal, numbers up to SCORE; hits whose scores are that close may have changed places."""
    if isinstance(before, list) and before and isinstance(before[0], dict) and {"rank", "score"} <= before[0].keys():
        assert [hit["rank"] for hit in found] == [hit["rank"] for hit in before], question
        np.testing.assert_allclose([h["score"] for h in found], [h["score"] for h in before], atol=SCORE)
        kth = before[-1]["score"]
        now = {hit["id"]: hit for hit in found}
        for hit in before:
            if hit["id"] in now:
                ours = now[hit["id"]]
                assert_alike(question, [ours[k] for k in ("path", "label")], [hit[k] for k in ("path", "label")])
                assert_alike(question, by_name(ours["concepts"]), by_name(hit["concepts"]))
            else:
                assert hit["score"] <= kth + SCORE, (question, hit["id"])
    elif isinstance(before, dict):
        assert found.keys() >= before.keys(), question
        for key, value in before.items():
            ours = found[key]
            assert_alike(question, *((by_name(ours), by_name(value)) if key == "concepts" else (ours, value)))
    elif isinstance(before, list):
        assert len(found) == len(before), question
        for ours, value in zip(found, before, strict=True):
            assert_alike(question, ours, value)
    elif isinstance(before, float):
        assert found == pytest.approx(before, abs=SCORE), question
    else:
        assert found == before, question


def by_name(concepts: list[dict]) -> dict[str, dict]:
    return {concept["name"]: concept for concept in concepts}


@pytest.mark.parametrize(("keys", "tolerance"), REPORT, ids=[".".join(keys) for keys, _ in REPORT])
def test_figures_of_the_report_are_what_they_were(bundled_report, golden, keys, tolerance):
    assert value_at(bundled_report.json, keys) == pytest.approx(value_at(golden["report"], keys), abs=tolerance)


def test_a_dictionary_is_remembered_as_it_is_made():
    from indexer import build
    from indexer.coding import make_dictionary
    from training.data.cifar10 import CLASSES
    from training.encoders import open_encoder

    encoder = open_encoder()
    made = make_dictionary("terms", encoder, CLASSES, encoder.templates)
    for _ in range(2):
        kept = build.make_dictionary("terms", encoder, CLASSES, encoder.templates)
        assert (kept.names, kept.aliases, kept.parents, kept.source) == (
            made.names,
            made.aliases,
            made.parents,
            made.source,
        )
        np.testing.assert_array_equal(kept.D, made.D)


def value_at(tree: dict, keys: tuple[str, ...]) -> float:
    for key in keys:
        tree = tree[key]
    return tree


if __name__ == "__main__":
    from tests.conftest import report_on

    index, out = Path(sys.argv[1]), Path(sys.argv[2])
    kept: dict = {}
    whole = report_on(index, out).json
    for keys, _ in REPORT:
        node = kept
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value_at(whole, keys)
    GOLDEN.write_text(json.dumps({"answers": answers(index), "codes": codes(index), "report": kept}, indent=1) + "\n")
