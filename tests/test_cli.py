"""The command line through click's runner: output, exit codes, one line for each fault."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import duckdb
import pytest
from PIL import Image
from programs import begin

from indexer.store import DATABASE, Store
from sparsight import main


@pytest.fixture
def cat_picture(pictures, tmp_path):
    i = next(j for j, y in enumerate(pictures.labels) if y == 3)
    Image.fromarray(pictures.pixels[i]).resize((70, 50)).save(tmp_path / "cat.webp")
    return tmp_path / "cat.webp"


def test_a_hit_has_the_agreed_keys(run, bundled_index):
    lines = run("search", "a fire engine", "-k", 3, "--json", "--index", bundled_index).stdout.splitlines()
    hits = [json.loads(line) for line in lines]
    assert [h["rank"] for h in hits] == [1, 2, 3]
    for hit in hits:
        assert set(hit) == {
            *("rank", "id", "score", "path", "label", "concepts", "rest", "chance", "matches", "others"),
        }
        assert set(hit["concepts"][0]) == {"name", "weight", "contribution"}
        parts = sum(c["contribution"] for c in hit["concepts"])
        assert parts + hit["rest"] == pytest.approx(hit["score"], abs=1e-5)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_a_fire_engine_is_a_truck(run, bundled_index, mode):
    out = run("search", "a fire engine", "-k", 10, "--mode", mode, "--json", "--index", bundled_index).stdout
    assert [json.loads(line)["label"] for line in out.splitlines()].count("truck") >= 8


def test_a_word_that_means_nothing_here_is_said_to(run, bundled_index):
    assert "near no concept" in run("search", "democracy", "--index", bundled_index).stderr
    assert "near no concept" not in run("search", "a fire engine", "--index", bundled_index).stderr


def test_what_does_not_match_is_marked(run, bundled_index):
    found = run("search", "democracy", "-k", 2, "--all", "--index", bundled_index)
    assert all(" ? " in line for line in found.stdout.splitlines()[1:])
    assert "marked ?" in found.stderr
    assert "nothing here matches" in run("search", "democracy", "-k", 2, "--index", bundled_index).stderr


def test_search_prints_a_table_and_a_sheet(run, small_index, cat_picture, tmp_path):
    sheet = tmp_path / "sheet.png"
    result = run("search", "--picture", cat_picture, "-k", 4, "--index", small_index, "--sheet", sheet)
    assert result.stdout.splitlines()[0].split()[:4] == ["score", "label", "id", "path"]
    assert len(result.stdout.splitlines()) == 5
    assert Image.open(sheet).size[0] > 4 * 128
    shown = run("search", "--concept", "cat", "-k", 2, "--index", small_index, "--pictures").stdout
    assert "▀" in shown


def test_concepts_lists_looks_up_and_finds_near_ones(run, small_index):
    listed = [json.loads(line) for line in run("concepts", "--json", "--index", small_index).stdout.splitlines()]
    assert {"name", "images", "class", "aliases"} == set(listed[0])
    assert "dark cat" in [n for c in listed for n in (c["name"], *c["aliases"])]
    assert "cat" in run("concepts", "cat", "-k", 3, "--index", small_index).stdout
    near = run("concepts", "cat", "--near", "-k", 2, "--json", "--index", small_index).stdout.splitlines()
    assert json.loads(near[0])["name"] == "cat"


def test_explain_and_classify(run, small_index, cat_picture):
    e = json.loads(run("explain", 7, "--json", "--for", "a cat", "--index", small_index).stdout)
    assert sum(c["contribution"] for c in e["concepts"]) == pytest.approx(e["sparse_score"], abs=1e-5)
    assert "contribution" in run("explain", cat_picture, "--index", small_index).stdout
    for mode in ("dense", "sparse"):
        out = run("classify", cat_picture, 3, "--mode", mode, "--json", "--index", small_index).stdout
        assert len(out.splitlines()) == 2
        assert json.loads(out.splitlines()[0])["label"] == "cat"
    assert "cat" in run("classify", cat_picture, "--classes", "cat,ship", "--index", small_index).stdout


def test_faults_of_the_call(run, small_index, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    at = ("--index", small_index)
    assert "empty" in run("search", " ", *at, code=2).stderr
    assert "near ones: dark cat" in run("search", "--concept", "dark catt", *at, code=2).stderr
    assert "at least 1" in run("search", "cat", "-k", 0, *at, code=2).stderr
    assert "the query is empty" in run("search", *at, code=2).stderr
    assert run("search", "cat", "--concept", "cat", "--not", "9=0.5", *at).stdout
    assert "no picture" in run("search", "--picture", text, *at, code=1).stderr
    assert "neither a file" in run("search", "--picture", tmp_path / "none.png", *at, code=1).stderr
    assert "ids run from 0" in run("explain", 100_000, *at, code=2).stderr
    assert "two different names" in run("classify", 1, "--classes", "cat", *at, code=2).stderr
    assert "no index in" in run("search", "cat", "--index", tmp_path / "none", code=1).stderr
    assert "No such command" in run("serch", code=2).stderr
    assert "not a valid integer" in run("search", "cat", "-k", "x", *at, code=2).stderr
    assert "--l1 2.0" in run("index", "--l1", 2, *at, code=2).stderr
    assert "no encoder in" in run("index", "--bundled", "--encoder", tmp_path, *at, code=1).stderr
    assert "--sizes" in run("train", "--sizes", "big", code=2).stderr
    assert "nothing" in run("eval", "--split", "nothing", *at, code=1).stderr


def test_another_encoder_than_the_indexs_is_refused_with_both_names(run, small_index):
    stderr = run("search", "cat", "--encoder", "bundled", "--index", small_index, code=1).stderr
    assert "small" in stderr
    assert "conv32-cifar10" in stderr


def test_cuda_is_refused_where_there_is_none(run, small_index):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for command in (("search", "cat"), ("index", "--bundled"), ("eval",), ("explain", "1")):
        assert "no CUDA device" in run(*command, "--device", "cuda", "--index", small_index, code=1).stderr


def test_a_damaged_index_is_one_line(run, small_index, tmp_path):
    data = bytearray((small_index / DATABASE).read_bytes())
    (tmp_path / DATABASE).write_bytes(data[: len(data) // 2])
    run("concepts", "--index", tmp_path, code=1)
    (tmp_path / DATABASE).unlink()
    with duckdb.connect(str(tmp_path / DATABASE)) as con:
        con.execute("CREATE TABLE other (x INTEGER)")
    assert "not a readable index" in run("concepts", "--index", tmp_path, code=1).stderr


def test_index_without_data_uses_the_bundled_embeddings_and_says_so(run, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    words = tmp_path / "words.txt"
    words.write_text("dog\ncat\nfire engine\nsailing ship\n")
    index = tmp_path / "index"
    result = run("index", "--data", tmp_path / "none", "--index", index, "--dictionary", words, "--dense", "SQ8")
    assert "bundled embeddings" in result.stderr
    assert "10000 pictures, 4 concepts" in result.stdout
    with Store(index) as store:
        assert [c.name for c in store.concepts()] == ["dog", "cat", "fire engine", "sailing ship"]


def test_a_broken_off_index_leaves_the_earlier_one(bundled_index):
    before = {f.name: f.read_bytes() for f in bundled_index.iterdir()}
    process = begin("index", "--bundled", "--index", bundled_index)
    assert process.stderr is not None
    while "encoder" not in (line := process.stderr.readline()):
        assert line, "the build ended before it began"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "interrupted" in process.stderr.read().splitlines()[-1]
    assert {f.name: f.read_bytes() for f in bundled_index.iterdir()} == before


def test_concept_lookup_needs_no_torch(small_index):
    code = (
        "import sys, sparsight\n"
        f"sparsight.main(['concepts', 'cat', '--index', {str(small_index)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'faiss', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_each_command_and_package_has_help(run):
    listed = run("--help").stdout
    for name in main.list_commands(None):
        assert f"  {name} " in listed
        assert f"main {name}" in run(name, "--help").stdout
    for package in ("training", "indexer", "search", "eval"):
        done = subprocess.run([sys.executable, "-m", package, "--help"], capture_output=True, text=True, check=True)
        assert "Usage" in done.stdout


def test_each_package_runs_the_root_commands_by_itself():
    """`python -m PACKAGE` has the same commands, and the root has no others."""
    from eval.audit.cli import audit
    from eval.cli import evaluate
    from indexer.cli import builds
    from indexer.exchange.cli import export, import_, sql
    from search.cli import queries
    from search.serve.command import serve
    from training.cli import train

    alone = [train, *builds.commands.values(), *queries.commands.values(), serve, sql, export, import_, evaluate, audit]
    assert {command.name: command for command in alone} == {
        name: main.get_command(None, name) for name in main.list_commands(None)
    }


def test_the_readme_names_every_command():
    from pathlib import Path

    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert [c for c in main.list_commands(None) if f"sparsight {c}" not in readme] == []


@pytest.mark.parametrize("command", [["explain"], ["classify"], ["remove"], ["search", "--picture"]])
def test_an_id_of_thousands_of_digits_is_no_picture(run, small_index, command):
    """Python itself refuses to read such a number; the line that says so is not that long."""
    result = run(*command, "9" * 5000, "--index", small_index, code=2)
    assert len(result.stderr) < 1200
