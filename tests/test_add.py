"""Changes in place: what add, remove and compact do and say; the journal; ids that are given once."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from indexer.build import index_folder
from indexer.config import IndexConfig
from indexer.pictures import folders
from indexer.store import DATABASE, ImageRow, Store
from indexer.store.database import writable
from indexer.store.dense import cached_dense
from indexer.store.journal import FOLDER, Journal
from indexer.update import add_pictures, compact, file_exists, plan_add, plan_removal, remove_pictures
from search.index import Index
from training.encoders import open_encoder
from training.errors import SparsightError
from training.files import path_text

ticks = itertools.count()


@pytest.fixture(scope="module")
def encoder(small_encoder_dir):
    return open_encoder(str(small_encoder_dir))


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    """Twenty picture files, in class folders."""
    root = tmp_path / "album"
    for i in range(20):
        paint(root, pictures, i)
    return root


@pytest.fixture
def index(folder, encoder, tmp_path) -> Path:
    index_folder(tmp_path / "index", folder, encoder, IndexConfig(), labels=True)
    return tmp_path / "index"


def paint(root: Path, pictures, i: int, name: str | None = None) -> Path:
    path = root / (name or f"{pictures.terms[i].replace(' ', '_')}/{i:03d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures.pixels[i]).save(path)
    return path


def state(index: Path) -> dict[str, tuple]:
    """Path → hash, label, vector, code and thumbnail of every picture."""
    with Store(index) as store:
        X, W, rows, ids = store.embeddings(), store.codes(), store.images(), store.image_ids.tolist()
        thumbnails = store.thumbnails(ids)
        assert [row.image_id for row in rows] == ids
        assert [c.images for c in store.concepts()] == np.diff(W.tocsc().indptr).tolist()
        assert len(store.vectors) == len(store) + store.meta.dead
        found = zip(rows, X, W.toarray(), strict=True)
        return {row.path: (row.content_hash, row.label, x, w, thumbnails[row.image_id]) for row, x, w in found}


def images(index: Path) -> dict[str, ImageRow]:
    """The rows of an index's pictures, by path."""
    with Store(index) as store:
        return {row.path: row for row in store.images()}


def age(*paths: Path) -> None:
    """Makes files as old as an index trusts their time of change to be."""
    for path in paths:
        os.utime(path, (1_600_000_000, 1_600_000_000 + next(ticks)))


def assert_same(a: dict[str, tuple], b: dict[str, tuple]) -> None:
    assert a.keys() == b.keys()
    for path in a:
        assert a[path][:2] == b[path][:2]
        np.testing.assert_allclose(a[path][2], b[path][2], atol=1e-5)
        np.testing.assert_allclose(a[path][3], b[path][3], atol=1e-3)
        assert a[path][4] == b[path][4]


def test_adding_ends_where_building_would(folder, index, encoder, pictures, tmp_path):
    for i in range(20, 30):
        paint(folder, pictures, i)
    done = add_pictures(index, [folder], encoder)
    assert len(done.plan.added) == 10
    assert len(done.plan.unchanged) == 20
    assert list(done.ids) == list(range(20, 30))
    index_folder(tmp_path / "whole", folder, encoder, IndexConfig(), labels=True)
    assert_same(state(index), state(tmp_path / "whole"))


def test_what_is_known_changed_moved_doubled_or_damaged(run, folder, index, small_encoder_dir, pictures):
    before = images(index)
    files = sorted(p for p in folder.rglob("*.png"))
    shutil.copy(files[0], folder / "copy.png")
    files[1].rename(files[1].with_name("moved.png"))
    paint(folder, pictures, 40, str(files[2].relative_to(folder)))
    paint(folder, pictures, 41, "fresh class/41.png")
    (folder / "bad.png").write_bytes(b"no picture")
    lines = [json.loads(x) for x in run("add", folder, "--index", index, "--json").stdout.splitlines()]
    by_status = {
        s: [x for x in lines if x["status"] == s] for s in ("added", "changed", "moved", "duplicate", "skipped")
    }
    assert {s: len(xs) for s, xs in by_status.items()} == dict.fromkeys(by_status, 1)
    assert by_status["duplicate"][0] == {"path": str(folder / "copy.png"), "status": "duplicate", "of": str(files[0])}
    assert by_status["moved"][0]["id"] == before[str(files[1])].image_id
    assert by_status["changed"][0]["id"] not in [row.image_id for row in before.values()]
    now = state(index)
    assert now.keys() == before.keys() - {str(files[1])} | {
        lines[0]["path"],
        lines[1]["path"],
        by_status["moved"][0]["path"],
    }
    assert now[str(folder / "fresh class/41.png")][1] == "fresh class"
    with Store(index) as store:
        assert "fresh class" in store.classes().names
        assert store.skipped() == [(str(folder / "bad.png"), by_status["skipped"][0]["reason"])]
        generation = store.meta.generation
    age(*folder.rglob("*.png"))
    run("add", folder, "--index", index)  # notes the time of change, and is a generation
    again = run("add", folder, "--index", index)
    assert again.stdout.endswith("0 added, 0 changed, 0 moved, 1 duplicates, 21 unchanged, 1 skipped; 21 pictures\n")
    with Store(index) as store:
        assert store.meta.generation == generation + 1  # nothing to do is nothing done


def test_swapped_files_keep_their_pictures(folder, index, encoder):
    a, b = sorted(folder.rglob("*.png"))[:2]
    age(a, b)
    add_pictures(index, [folder], encoder)
    before = state(index)
    a.rename(folder / "c"), b.rename(a), (folder / "c").rename(b)
    done = add_pictures(index, [a, b], encoder)
    assert len(done.plan.moved) == 2
    now = state(index)
    assert now[str(a)][0] == before[str(b)][0]
    np.testing.assert_array_equal(now[str(a)][2], before[str(b)][2])


def test_removing_by_id_path_and_folder(run, folder, index):
    before = state(index)
    some = sorted(folder.rglob("*.png"))
    class_folder = some[-1].parent
    assert run("remove", "0", some[3], class_folder, "--index", index).stdout.startswith(f"{index}: ")
    now = images(index)
    gone = before.keys() - now.keys()
    assert 0 not in [row.image_id for row in now.values()]
    assert str(some[3]) in gone
    assert {str(p) for p in class_folder.iterdir()} <= gone
    assert_same(state(index), {p: v for p, v in before.items() if p not in gone})


def test_ids_are_given_once(run, folder, index, encoder, pictures):
    remove_pictures(index, ["19", "3"])
    added = add_pictures(index, [paint(folder, pictures, 50)], encoder)
    assert list(added.ids) == [20]
    assert (
        "3 in the index (that one was removed): ids run from 0 to 20"
        in run("explain", "3", "--index", index, code=2).stderr
    )


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_searches_after_changes_are_brute_force(folder, index, encoder, pictures, mode):
    remove_pictures(index, ["0", "7", "8"])
    add_pictures(index, [paint(folder, pictures, i) for i in (60, 61)], encoder)
    rng = np.random.default_rng(0)
    with Index(index) as searcher:
        store = searcher.store
        A = store.embeddings() if mode == "dense" else store.codes() @ store.dictionary()
        for t in rng.normal(size=(5, store.d)).astype(np.float32):
            hits = searcher.search_vector(t / np.linalg.norm(t), 100, mode)
            scores = A @ (t / np.linalg.norm(t))
            assert sorted(h.id for h in hits) == store.image_ids.tolist()
            np.testing.assert_allclose([h.score for h in hits], -np.sort(-scores), atol=1e-4)
            at = np.searchsorted(store.image_ids, [h.id for h in hits])
            np.testing.assert_allclose([h.score for h in hits], scores[at], atol=1e-4)


def test_removing_nothing_that_is_there_removes_nothing(run, index):
    before = (index / DATABASE).read_bytes()
    assert "nowhere.png names no picture" in run("remove", "1", "nowhere.png", "--index", index, code=2).stderr
    assert "name what is to be removed" in run("remove", "--index", index, code=2).stderr
    assert (index / DATABASE).read_bytes() == before


@pytest.fixture(scope="module")
def many(light_index, tmp_path_factory):
    """Makes an index of 100 pictures whose paths are those given, below a new folder, and an empty file at each."""
    hundred = tmp_path_factory.mktemp("hundred") / "index"
    shutil.copytree(light_index, hundred)
    remove_pictures(hundred, [str(i) for i in range(100, 150)])

    def make(names: list[str]) -> tuple[Path, Path]:
        top = tmp_path_factory.mktemp("many")
        shutil.copytree(hundred, top / "index")
        with writable(top / "index" / DATABASE) as con:
            for image_id, name in enumerate(names):
                con.execute("UPDATE images SET path = ? WHERE image_id = ?", [str(top / name), image_id])
        for name in names:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).touch()
        return top / "index", top

    return make


def below(**numbers: int) -> list[str]:
    """So many files in each folder; a double underscore is a folder in a folder."""
    return [f"{folder.replace('__', '/')}/{i}.png" for folder, n in numbers.items() for i in range(n)]


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "the folder above it"])
@pytest.mark.parametrize("share", [5, 90])
def test_a_drive_that_is_not_there_removes_nothing(run, many, left, share):
    index, top = many(below(drives__usb__photos=share, home=100 - share))
    if left == "the folder above it":
        (top / "drives" / "other").mkdir()  # another drive, without pictures of the index
    shutil.rmtree(top / "drives" / "usb")
    if left == "an empty folder":
        (top / "drives" / "usb").mkdir()
    elif left == "nothing":
        shutil.rmtree(top / "drives")
    before = (index / DATABASE).read_bytes()
    refused = run("remove", "--missing", "--index", index, code=1).stderr
    assert "all pictures in" in refused
    assert "usb" in refused
    assert "is their drive mounted?" in refused
    planned = run("remove", "--missing", "--dry-run", "--json", "--index", index).stdout.splitlines()
    assert (index / DATABASE).read_bytes() == before
    assert len(planned) == share
    done = run("remove", "--missing", "--yes", "--json", "--index", index).stdout
    assert done.replace("removed", "would be removed").splitlines() == planned
    assert {Path(path).parent.name for path in images(index)} == {"home"}


def test_more_than_a_tenth_is_asked_for_and_a_tenth_is_not(run, many):
    index, top = many(below(one=50, two=50))
    before = (index / DATABASE).read_bytes()
    for i in range(11):
        (top / "one" / f"{i}.png").unlink()
    assert "11 of 100 files are gone" in run("remove", "--missing", "--index", index, code=1).stderr
    assert "11 of 100 files are gone" in run("remove", "99", "--missing", "--index", index, code=1).stderr
    assert (index / DATABASE).read_bytes() == before, "nothing is removed where one part is refused"
    (top / "one" / "0.png").touch()
    assert run("remove", "--missing", "--index", index).stdout == f"{index}: 10 removed\n"


def test_all_files_gone_are_a_drive_that_is_gone(run, folder, index):
    folder.rename(folder.with_name("elsewhere"))
    assert "is their drive mounted?" in run("remove", "--missing", "--index", index, code=1).stderr
    assert len(state(index)) == 20
    assert plan_removal(index, [], missing=True) == remove_pictures(index, [], missing=True, sure=True)
    assert state(index) == {}


def test_a_folder_of_which_some_pictures_stay_is_no_drive(run, many):
    index, top = many(below(small=4, large=96))
    for i in range(3):
        (top / "small" / f"{i}.png").unlink()
    assert run("remove", "--missing", "--index", index).stdout == f"{index}: 3 removed\n"
    (top / "small" / "3.png").unlink()
    (top / "small" / "notes.txt").touch()
    assert run("remove", "--missing", "--index", index).stdout == f"{index}: 1 removed\n"


def test_only_what_is_known_to_be_gone_is_missing(tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9 \\x41.png")
    odd.touch()
    assert file_exists(path_text(odd))
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    for name in ("gone.png", "gone/1.png", "dangling.png", "itself.png", odd.name + "/1.png", "x" * 300, "a\0b"):
        assert not file_exists(path_text(tmp_path / name))


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_folder_that_may_not_be_entered_is_not_gone():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        top = Path(name)
        top.chmod(0o755)
        (top / "closed").mkdir()
        (top / "closed" / "1.png").touch()
        (top / "closed").chmod(0)
        code = """
import os, sys
from indexer.update import file_exists
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(file_exists(sys.argv[1] + "/closed/1.png"), file_exists(sys.argv[1] + "/gone/1.png"))
"""
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
        (top / "closed").chmod(0o755)
    assert done.stdout == "True False\n", done.stderr


def test_pictures_that_were_no_files_are_not_missing(run, small_index, tmp_path):
    shutil.copytree(small_index, tmp_path / "copy")
    assert "not indexed from files" in run("remove", "--missing", "--index", tmp_path / "copy", code=2).stderr


def test_an_emptied_index_answers_and_fills_again(run, folder, index, encoder, tmp_path):
    before = state(index)
    run("remove", folder, "--index", index)
    assert state(index) == {}
    for mode in ("dense", "sparse"):
        assert run("search", "a cat", "--index", index, "--mode", mode, "--json").stdout == ""
    run("compact", "--index", index)
    add_pictures(index, [folder], encoder)
    assert_same(state(index), before)


def test_compacting_gives_room_back_and_changes_nothing_else(run, index, encoder):
    remove_pictures(index, ["1", "2"])
    before = state(index)
    with Store(index) as store:
        assert store.meta.dead == 2
    run("compact", "--index", index)
    assert_same(state(index), before)
    with Store(index) as store:
        assert store.meta.dead == 0
        assert "v1.4" in str(store.rows("SELECT tags FROM duckdb_databases() WHERE database_name = 'store'"))
    remove_pictures(index, [str(i) for i in range(3, 9)])  # a third of all rows: compacted by the way
    with Store(index) as store:
        assert store.meta.dead == 0


def test_an_encoder_of_another_index_is_refused(run, index):
    assert "was built with encoder" in run("add", ".", "--index", index, "--encoder", "bundled", code=1).stderr


def test_no_index_no_folder_made(run, tmp_path):
    for command in (["add", tmp_path], ["remove", "1"], ["compact"]):
        assert "no index in" in run(*command, "--index", tmp_path / "none", code=1).stderr
    assert not (tmp_path / "none").exists()


def test_a_missing_path_is_named(run, index):
    assert "nowhere does not exist" in run("add", "nowhere", "--index", index, code=1).stderr


@pytest.mark.parametrize("factory", ["HNSW8", "IVF2,Flat", "SQ8"])
def test_any_dense_index_follows(folder, encoder, pictures, tmp_path, factory):
    index = tmp_path / "index"
    index_folder(index, folder, encoder, IndexConfig(dense=factory))
    add_pictures(index, [paint(folder, pictures, i) for i in range(70, 75)], encoder)
    with Index(index) as searcher:
        x = searcher.store.embeddings_of([22])[0]
        assert 22 in [h.id for h in searcher.search_vector(x, 3, "dense")]
        assert cached_dense(searcher.store).index.ntotal == 25
    remove_pictures(index, ["22"])
    with Index(index) as searcher:
        assert 22 not in [h.id for h in searcher.search_vector(x, 30, "dense")]


@pytest.mark.parametrize(
    ("factory", "reason"),
    [("IVF64,Flat", "needs at least 64 pictures to train on, and there are 20"), ("PQ7", "PQ7"), ("Flatt", "Flatt")],
)
def test_a_dense_index_that_cannot_be_is_refused_before_anything_is_encoded(
    run, folder, small_encoder_dir, tmp_path, factory, reason
):
    at = ["--index", tmp_path / "index", "--encoder", small_encoder_dir]
    result = run("index", folder, *at, "--dense", factory, code=2)
    assert reason in result.stderr
    assert "encode " not in result.stderr
    assert not (tmp_path / "index").exists()


def test_where_too_few_are_left_to_train_a_factory_every_row_is_scored(folder, encoder, tmp_path):
    index_folder(tmp_path / "index", folder, encoder, IndexConfig(dense="IVF15,Flat"))
    remove_pictures(tmp_path / "index", [str(i) for i in range(10)])
    with Index(tmp_path / "index") as searcher:
        x = searcher.store.embeddings_of([12])[0]
        assert sorted(h.id for h in searcher.search_vector(x, 10, "dense")) == list(range(10, 20))


def test_a_compaction_does_not_bless_a_damaged_thumbnail(index):
    with Store(index) as store:
        path, place = store.folder / store.meta.thumbnails_file, store.thumbnail_places([4])[4]
    data = bytearray(path.read_bytes())
    data[place.start + place.size // 2] ^= 1
    path.write_bytes(data)
    compact(index)
    with Store(index) as store:
        assert len(store.thumbnails([3, 5])) == 2
        with pytest.raises(SparsightError, match="thumbnail of picture 4 is not the one"):
            store.thumbnails([4])


# What an addition reads: files whose size and time of change the index does not know.


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The names of the picture files that are opened."""
    names: list[str] = []
    read = folders.read_file

    def read_file(path):
        names.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(folders, "read_file", read_file)
    return names


def test_an_unchanged_file_is_not_opened(folder, encoder, pictures, tmp_path, opened):
    index = tmp_path / "index"
    files = sorted(folder.rglob("*.png"))
    age(*files)
    index_folder(index, folder, encoder, IndexConfig(), labels=True)
    assert len(opened) == 20
    opened.clear()
    before = (index / DATABASE).read_bytes()
    for add in (plan_add, lambda *args: add_pictures(*args, encoder)):
        done = add(index, [folder])
        assert len(done.plan.unchanged) == 20
        assert opened == []
    assert (index / DATABASE).read_bytes() == before
    files[3].rename(files[3].with_name("moved.png"))
    paint(folder, pictures, 30, "new.png")
    os.utime(files[4], (1_500_000_000, 1_500_000_000))
    done = add_pictures(index, [folder], encoder)
    assert sorted(opened) == sorted(["moved.png", "new.png", files[4].name])
    assert len(done.plan.moved) == len(done.plan.added) == 1
    opened.clear()
    add_pictures(index, [folder], encoder)
    assert opened == ["new.png"], "it was too fresh to go by its time of change"
    opened.clear()
    assert len(add_pictures(index, [folder], encoder, verify=True).plan.unchanged) == 21
    assert len(opened) == 21


def replace_unseen(path: Path) -> None:
    """Writes another picture to a file, whose size and time of change stay as they are."""
    status, out = path.stat(), io.BytesIO()
    Image.new("RGB", (32, 32), "navy").save(out, "PNG")
    path.write_bytes(out.getvalue().ljust(status.st_size, b"\0"))  # what lies behind a picture is none of it
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_change_that_leaves_size_and_time_is_seen_by_verify_alone(run, folder, index, encoder):
    files = sorted(folder.rglob("*.png"))
    age(*files)
    add_pictures(index, [folder], encoder)
    path = files[2]
    held, status = images(index)[str(path)], path.stat()
    replace_unseen(path)
    assert path.stat().st_size == status.st_size
    assert "20 unchanged" in run("add", folder, "--index", index).stdout
    assert images(index)[str(path)] == held
    assert "1 changed" in run("add", folder, "--dry-run", "--verify", "--index", index).stdout
    assert images(index)[str(path)] == held
    assert "1 changed" in run("add", folder, "--verify", "--index", index).stdout
    assert images(index)[str(path)].content_hash != held.content_hash


def test_a_file_that_changes_right_after_it_was_read_is_seen(folder, index, encoder, pictures):
    """Within the tick of a file system's clock, its time of change stays."""
    path = paint(folder, pictures, 31, "fresh.png")
    add_pictures(index, [path], encoder)
    assert images(index)[str(path)].file_changed is None
    replace_unseen(path)
    assert add_pictures(index, [path], encoder).plan.changed == [str(path)]


def test_a_dry_run_says_what_the_addition_then_does(run, folder, index, pictures):
    files = sorted(folder.rglob("*.png"))
    paint(folder, pictures, 40, str(files[2].relative_to(folder)))
    paint(folder, pictures, 41, "fresh/41.png")
    shutil.copy(files[0], folder / "copy.png")
    files[1].rename(files[1].with_name("moved.png"))
    (folder / "empty.png").touch()
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    planned = run("add", folder, "--dry-run", "--index", index)
    lines = run("add", folder, "--dry-run", "--json", "--index", index).stdout
    assert {p.name: p.read_bytes() for p in index.iterdir()} == before
    assert "would be added: 2" in planned.stderr
    assert "fresh/41.png: new" in planned.stderr
    assert f"{files[2].name}: its file has changed" in planned.stderr
    done = json_lines(run("add", folder, "--json", "--index", index).stdout)
    assert [{**line, "id": None} if line["status"] in ("added", "changed") else line for line in done] == json_lines(
        lines
    )
    assert Counter(line["status"] for line in done) == Counter(["added", "changed", "moved", "duplicate", "skipped"])


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# Labels, by folders.


@pytest.mark.parametrize(
    ("held", "new", "expected"),
    [
        (["train/1.png", "car/2.png"], "train/3.png", (None, "train")),
        (["train/1.png", "car/2.png"], "test/a/3.png", (None, "test")),
        (["train/cat/1.png", "test/dog/2.png"], "train/cat/3.png", ("train", "cat")),
        (["train/cat/1.png", "test/dog/2.png"], "val/new_kind/3.png", ("val", "new kind")),
        (["train/cat/1.png", "test/dog/2.png"], "top.png", (None, None)),
        (["train/cat/1.png", "test/dog/2.png"], "train/3.png", ("train", None)),
    ],
)
def test_labels_do_not_depend_on_what_else_is_added(encoder, pictures, tmp_path, held, new, expected):
    root, index = tmp_path / "album", tmp_path / "index"
    for i, name in enumerate(held):
        paint(root, pictures, i, name)
    index_folder(index, root, encoder, IndexConfig(), labels=True)
    path = paint(root, pictures, 5, new)
    add_pictures(index, [path], encoder)
    row = images(index)[str(path)]
    assert (row.split, row.label) == expected
    path.rename(path.with_name("moved.png"))
    add_pictures(index, [root], encoder)
    row = images(index)[str(path.with_name("moved.png"))]
    assert (row.split, row.label) == expected


def test_a_stopped_build_and_a_stopped_addition_go_on(folder, encoder, pictures, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    batches = []

    def stops_at(n):
        def encode(pixels):
            if len(batches) == n:
                raise Stopped
            batches.append(len(pixels))
            return type(encoder).encode_images(encoder, pixels)

        return encode

    index, config = tmp_path / "index", IndexConfig(batch_size=6)
    monkeypatch.setattr(encoder, "encode_images", stops_at(2))
    with pytest.raises(Stopped):
        index_folder(index, folder, encoder, config)
    assert len(list((index / FOLDER).iterdir())) == 2
    assert not (index / DATABASE).exists()
    monkeypatch.setattr(encoder, "encode_images", stops_at(99))
    index_folder(index, folder, encoder, config)
    assert batches == [6, 6, 6, 2]  # none twice
    for i in range(80, 90):
        paint(folder, pictures, i)
    monkeypatch.setattr(encoder, "encode_images", stops_at(5))
    with pytest.raises(Stopped):
        add_pictures(index, [folder], encoder, batch_size=25)
    monkeypatch.setattr(encoder, "encode_images", stops_at(99))
    add_pictures(index, [folder], encoder, batch_size=25)
    assert sum(batches) == 30
    assert not (index / FOLDER).exists()
    monkeypatch.undo()
    index_folder(tmp_path / "whole", folder, encoder, IndexConfig())
    assert_same(state(index), state(tmp_path / "whole"))


@settings(deadline=None, max_examples=25)
@given(
    batches=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5, unique=True), max_size=5),
    harm=st.integers(0, 9),
)
def test_the_journal_gives_back_what_it_was_given_or_nothing(encoder, tmp_path_factory, batches, harm):
    folder = tmp_path_factory.mktemp("journal")
    journal, rng = Journal(folder, encoder), np.random.default_rng(0)
    kept = {}
    for b, thumbnails in enumerate(batches):
        X = rng.normal(size=(len(thumbnails), 4)).astype(np.float32)
        hashes = [f"{b}-{i}" for i in range(len(thumbnails))]
        journal.add(hashes, X, thumbnails)
        kept |= dict(zip(hashes, zip(X, thumbnails, strict=True), strict=True))
    if harm < len(batches):
        path = sorted((folder / FOLDER).iterdir())[harm]
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
        kept = {h: v for h, v in kept.items() if not h.startswith(f"{harm}-")}
    again = Journal(folder, encoder)
    assert all((h in again) == (h in kept) for b in range(len(batches)) for h in [f"{b}-0"])
    order = sorted(kept, reverse=True)
    if order:
        np.testing.assert_array_equal(again.vectors(order), np.stack([kept[h][0] for h in order]))
    assert list(again.thumbnails(order)) == [kept[h][1] for h in order]


def test_another_encoders_batches_do_not_count_and_stay(encoder, folder, index, pictures):
    other = open_encoder()
    Journal(index, encoder).add(["a"], np.ones((1, 3), np.float32), [b""])
    Journal(index, other).add(["b"], np.ones((1, 3), np.float32), [b"jpeg"])
    assert ("a" in Journal(index, encoder), "b" in Journal(index, encoder)) == (True, False)
    add_pictures(index, [paint(folder, pictures, 33)], encoder)
    assert "a" not in Journal(index, encoder)
    assert list(Journal(index, other).thumbnails(["b"])) == [b"jpeg"]
    add_pictures(index, [folder], encoder)  # nothing is new
    index_folder(index, folder, encoder, IndexConfig())
    assert "b" in Journal(index, other)
    Journal(index, other).clear()
    assert not (index / FOLDER).exists()


def test_the_second_writer_is_told_who_the_first_is(index, encoder, folder):
    from indexer.store.lock import writing

    with writing(index, "compact"):
        with pytest.raises(
            SparsightError, match=rf"changed by `sparsight compact` \(process {os.getpid()} on .*, since"
        ):
            add_pictures(index, [folder], encoder)
        with Index(index) as searcher:  # readers need no lock
            assert len(searcher.store) == 20
    remove_pictures(index, ["0"])
