"""A path is a path: no character in it means anything else, and it names the same place in every command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from contents import make_contents
from PIL import Image

from indexer.exchange.export import export_index
from indexer.exchange.importing import import_index
from indexer.exchange.sql import Query
from indexer.store import DATABASE, Store, write_store
from indexer.store.database import connect
from training.encoders.files import folder_of
from training.errors import SparsightError
from training.files import full_path

NAMES = [
    *("label=cat", "path=x", "image_id=7/embedding=3", "a*b", "[a]", "{x,y}", "#x", "50%20", "%s", "it's", 'dou"ble'),
    *("a b", "new\nline", "a;b", "$HOME", "(x)", "a|b", "-x", "~", "~root", "x.csv", "x.parquet", "x.gz", "日本", "é"),
    *("md:x", "sqlite:x", "duckdb:x", "ducklake:x", "postgres:x", "file:x", ":memory:", "http:", "s3:", "hf:", "C:"),
]
REFUSED = ["a?b", "a?b=c&d", "back\\slash", os.fsdecode(b"\xff")]


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


@pytest.mark.parametrize("names", [NAMES[i::5] for i in range(5)], ids=" ".join)
def test_an_index_an_export_and_an_import_below_any_name(run, work, names):
    top = work.joinpath(*names)
    (top / "index").mkdir(parents=True)
    write_store(top / "index", make_contents())
    run("export", f"{top}/out", "--index", top / "index")
    run("import", f"{top}/out", "--index", top / "new")
    with Store(top / "index") as old, Store(top / "new") as new:
        assert old.images() == new.images()
        assert not (old.embeddings() - new.embeddings()).any()
    assert '"n": 12' in run("sql", "SELECT count(*) AS n FROM images", "--json", "--index", top / "new").stdout


@pytest.mark.parametrize("name", ["md:x", "sqlite:x", "http:", "~x", "-x", "label=cat"])
def test_a_name_alone_is_a_folder_here(run, work, name):
    write_store(made(work / name), make_contents())
    assert "12" in run("sql", "SELECT count(*) FROM images", f"--index={name}").stdout


@pytest.mark.parametrize("name", REFUSED)
def test_what_duckdb_cannot_open_is_refused_before_any_work(run, work, pictures, name):
    index = work / name / "index"
    result = run("index", "--bundled", f"--index={index}", code=1)
    assert "DuckDB opens no file" in result.stderr
    assert not (work / name).exists()
    write_store(made(work / "plain"), make_contents())
    run("export", work / "out", f"--index={work / 'plain'}")
    assert "DuckDB opens no file" in run("import", work / "out", f"--index={index}", code=1).stderr
    assert not (work / name).exists()
    made(work / name)
    (work / "plain").rename(index)
    for command in (["search", "cat"], ["doctor"], ["sql", "SELECT 1"], ["remove", "1"], ["compact"]):
        assert "DuckDB opens no file" in run(*command, f"--index={index}", code=1).stderr


def test_a_tilde_is_the_home_folder_everywhere(run, work, small_encoder_dir):
    home = work / "home"
    write_store(made(home / "x"), make_contents())
    run("sql", "SELECT 1", "--index=~/x")
    run("export", "--index=~/x", "~/out")
    run("import", "~/out", "--index=~/y")
    words = home / "words.txt"
    words.write_text("dog\ncat\nfire engine\n")
    Image.new("RGB", (40, 30), "red").save(made(home / "album") / "a.png")
    (home / "encoder").symlink_to(small_encoder_dir)
    run("index", "~/album", "--index=~/z", "--dictionary=~/words.txt", "--encoder=~/encoder")
    run("search", "cat", "--index=~/z", "--out=~/hits.jsonl")
    assert "a.png" in run("explain", "~/album/a.png", "--index=~/z").stdout
    run("remove", "~/album/a.png", "--index=~/z")
    expected = ["album", "encoder", "hits.jsonl", "out", "words.txt", "x", "y", "z"]
    assert sorted(p.name for p in home.iterdir()) == expected
    assert sorted(p.name for p in work.iterdir()) == ["home"]
    with Store("~/x") as store:
        assert store.folder == home / "x"
    assert folder_of("~/encoder") == home / "encoder"


def test_an_empty_path_is_not_the_working_folder(run, work):
    """As `--index "$INDEX"` gives where the variable is not set."""
    assert "path is empty" in run("index", "--bundled", "--index", "", code=2).stderr
    assert "path is empty" in run("add", "", code=2).stderr


@pytest.mark.parametrize("path", ["x", "./x", "x/", "a/../x", "/tmp/../tmp/x", "~/x", "~root/x"])
def test_a_full_path_is_absolute_and_the_same_again(path):
    full = full_path(path)
    assert full.is_absolute()
    assert ".." not in full.parts
    assert full_path(full) == full


def test_every_connection_fetches_and_follows_nothing(work):
    write_store(made(work / "index"), make_contents())
    with connect() as con, Store(work / "index") as store:
        for each in (con, store.con):
            for setting in ("autoinstall_known_extensions", "autoload_known_extensions", "python_enable_replacements"):
                assert each.execute(f"SELECT current_setting('{setting}')").fetchall() == [(False,)]


def test_labels_in_a_path_of_an_export_are_no_labels(work):
    write_store(made(work / "index"), make_contents())
    export_index(work / "index", work / "label=cat" / "split=none" / "out")
    import_index(work / "new", work / "label=cat" / "split=none" / "out")
    with Query(work / "index", "FROM images") as old, Query(work / "new", "FROM images") as new:
        assert list(old.json_lines()) == list(new.json_lines())
    assert (work / "new" / DATABASE).is_file()


def test_a_folder_that_cannot_be_named_is_told_by_export(run, work):
    write_store(made(work / "index"), make_contents())
    out = work / os.fsdecode(b"\xff")
    with pytest.raises(SparsightError, match="no UTF-8"):
        export_index(work / "index", out)
    assert not out.exists()


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
