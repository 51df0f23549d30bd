"""An index in Milvus answers as the same index in a folder does: through milvus-lite, in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

from milvus import TEXTS, answer_or_fault, build_bundled, child, queries, same_up_to_ties

from indexer.milvus import parse_address
from search.index import Index
from search.query import Query

N = 1500


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same pictures in a folder, and in Milvus."""
    folder = tmp_path_factory.mktemp("milvus")
    both = (folder / "index", parse_address(f"milvus:{folder / 'lite'}"))
    for place in both:
        build_bundled(place, N)
    return both


@pytest.fixture(scope="module")
def both(places):
    with Index(places[0]) as ours, Index(places[1]) as theirs:
        yield ours, theirs


def test_200_queries_are_answered_alike(both):
    ours, theirs = both
    names = [concept.name for concept in ours.concepts() if concept.images]
    answered = 0
    for query in queries(names, N, 200):
        a, b = answer_or_fault(ours, query), answer_or_fault(theirs, query)
        if isinstance(a, str) or isinstance(b, str):
            assert a == b
            continue
        assert same_up_to_ties(a, b), (query, a.hits, b.hits)
        answered += 1
    assert answered >= 190


def test_what_a_score_means_is_told_alike(both):
    ours, theirs = both
    for text in TEXTS:
        a, b = (index.search(text, k=5) for index in (ours, theirs))
        assert [hit.chance for hit in a.hits] == pytest.approx([hit.chance for hit in b.hits], abs=0.01)
        assert a.cut_off == pytest.approx(b.cut_off, rel=1e-4)
        assert [[(c.name, c.weight) for c in hit.concepts] for hit in a.hits] == [
            [(c.name, c.weight) for c in hit.concepts] for hit in b.hits
        ]


def test_the_engines_hold_the_same(both):
    a, b = (index.engine for index in both)
    ids = [0, 7, 1, N - 1]
    assert a.images(ids) == b.images(ids)
    assert a.thumbnails(ids) == b.thumbnails(ids)
    np.testing.assert_array_equal(a.embeddings_of(ids), b.embeddings_of(ids))
    for one, other in zip(a.codes_of(range(N)), b.codes_of(range(N)), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.weights, other.weights)
    assert a.concepts == b.concepts
    np.testing.assert_array_equal(a.D, b.D)
    assert (a.classes().names, a.classes().T.tolist()) == (b.classes().names, b.classes().T.tolist())
    assert (a.span, a.around(0), a.around(9), a.around(N - 1)) == (b.span, b.around(0), b.around(9), b.around(N - 1))
    assert [a.holds(i) for i in (-1, 0, N)] == [b.holds(i) for i in (-1, 0, N)]
    assert (a.picture_at("cifar10/test/00005"), a.picture_at("x")) == (5, None)
    assert (b.picture_at("cifar10/test/00005"), b.picture_at("x")) == (5, None)
    assert (a.state().skipped, len(a)) == (b.state().skipped, len(b))
    assert (a.codes_labelled("cat")[0] != b.codes_labelled("cat")[0]).nnz == 0
    t = a.classes().T[3]
    for dense in (True, False):
        np.testing.assert_allclose(a.every_score(t, dense=dense), b.every_score(t, dense=dense), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "rules",
    [{"labels": ["CAT"]}, {"splits": ["train"]}, {"path": "*/0000?"}, {"path": "*_%*"}, {"path": "a\\b*"},
     {"labels": ["cat"], "splits": ["test"], "path": "*1"}],
)  # fmt: skip
def test_filters_choose_the_same_pictures(both, rules):
    ours, theirs = both
    assert ours.count(**rules) == theirs.count(**rules)
    query = Query(**{name: tuple(v) if isinstance(v, list) else v for name, v in rules.items()}, k=50)
    assert [hit.id for hit in ours.answer(query).hits] == [hit.id for hit in theirs.answer(query).hits]


@pytest.mark.parametrize(
    "arguments",
    [("classify", "17", "18"), ("classify", "17", "--mode", "dense"), ("explain", "17", "--for", "a dog"),
     ("edit", "17", "--with", "ship=0.5", "--for", "a dog"), ("edit", "--class", "cat"), ("concepts", "ship"),
     ("concepts",), ("search", "a dog", "--like", "5", "--forbid", "ship")],
)  # fmt: skip
def test_commands_say_the_same(run, places, arguments):
    outputs = []
    for option, place in (("--index", places[0]), ("--store", places[1])):
        lines = run(*arguments, option, place, "--json").stdout.splitlines()
        outputs.append([json.loads(line, parse_float=lambda text: round(float(text), 4)) for line in lines])
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("search", "a dog", "--where", "label = 'cat'"), "--where is SQL"),
     (("search", "a dog", "--label", "nothing"), "no picture has the label 'nothing'"),
     (("search", "a dog", "-k", "16385"), "at most 16384 hits")],
)  # fmt: skip
def test_what_milvus_cannot_do_is_refused_in_one_line(run, places, arguments, said):
    assert said in run(*arguments, "--store", places[1], code=2).stderr


def test_another_process_is_told_that_the_folder_is_open(both, places):
    code = f"from search.index import Index\nIndex({str(places[1])!r})"
    assert "another process has it open" in child(code).stderr


def test_pymilvus_is_imported_by_need_alone(tmp_path):
    names = "indexer.update, search.cli, indexer.cli, search.milvus, search.serve.command"
    assert (
        child(f"import sys, {names}; sys.exit('pymilvus' in sys.modules or 'milvus_lite' in sys.modules)").returncode
        == 0
    )
    hidden = "import sys; sys.modules['pymilvus'] = None; sys.argv[1:] = "
    for arguments in (["search", "x"], ["remove", "1"]):
        code = f"{hidden}{[*arguments, '--store', f'milvus:{tmp_path}/x']}\nfrom sparsight import run; run()"
        last = child(code).stderr.splitlines()[-1]
        assert last == "Error: milvus needs an extra that is not installed: pip install 'sparsight[milvus]'"


@pytest.mark.parametrize(
    ("address", "said"),
    [("index", "give milvus:"), ("milvus:", "no server and no folder"), ("milvus:ftp://x", "http://host:19530"),
     ("milvus:http://", "http://host:19530"), ("milvus:http://a:b@host:1", "SPARSIGHT_MILVUS_TOKEN"),
     ("milvus:http://host:port", "http://host:19530"), ("milvus:x#a__b", "no name of an index"),
     ("milvus:localhost:19530", "http://host:19530"), ("milvus:http:/127.0.0.1:1", "http://host:19530")],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(run, address, said):
    assert said in run("search", "x", "--store", address, code=2).stderr


def test_there_is_nothing_at_an_address(run, tmp_path):
    assert "does not exist" in run("search", "x", "--store", f"milvus:{tmp_path / 'x'}", code=1).stderr
    (tmp_path / "file.db").write_bytes(b"SQLite format 3")
    assert "is a file" in run("search", "x", "--store", f"milvus:{tmp_path / 'file.db'}", code=1).stderr
    assert "holds other things" in run("search", "x", "--store", f"milvus:{tmp_path}", code=1).stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file.db"]  # nothing was made among them


def test_a_folder_and_a_store_are_not_named_together(run, tmp_path, monkeypatch):
    store = ("--store", f"milvus:{tmp_path / 'x'}")
    for command in (("search", "x"), ("remove", "1"), ("import", tmp_path), ("serve",)):
        assert "give one of them" in run(*command, "--index", tmp_path, *store, code=2).stderr
    monkeypatch.setenv("SPARSIGHT_INDEX", str(tmp_path))  # what is usual gives way to what is asked for
    assert "does not exist" in run("search", "x", *store, code=1).stderr
