"""Changes in place against a model of them: any row of additions, removals and compactions leaves an index whose
arrays and answers are those of numpy over what it has to hold."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from killing import SOAK, check_best, check_store, data_files
from PIL import Image

from indexer.build import index_folder
from indexer.coding import encode_sparse
from indexer.config import IndexConfig
from indexer.plan import plan_addition
from indexer.store import DATABASE, Store, vectors
from indexer.store.chance import FILE as CHANCE
from indexer.update import add_pictures, compact, plan_add, plan_removal, remove_pictures
from search.index import Index
from training.encoders import open_encoder
from training.errors import CallError, SparsightError

CONTENTS = 10
FOLDERS = ("cat", "dog", "deep/er")
NAMES = [f"{folder}/{i}.png" for folder in FOLDERS for i in range(3)]
START = {"cat/0.png": 0, "cat/1.png": 1, "dog/0.png": 2, "dog/1.png": 3, "deep/er/0.png": 4}
DAMAGED = b"no picture"
LONG_AGO = 1_600_000_000  # seconds since 1970
BLOCK = 3  # rows with one checksum: additions cross their bounds

contents = st.integers(0, CONTENTS - 1)
writes = st.tuples(st.sampled_from(["write", "write just now"]), st.sampled_from(NAMES), contents)
moves = st.tuples(st.just("move"), st.sampled_from(NAMES), st.sampled_from(NAMES))
copies = st.tuples(st.just("copy"), st.sampled_from(NAMES), st.sampled_from(NAMES))
harms = st.tuples(st.just("damage"), st.sampled_from(NAMES), st.none())
losses = st.tuples(st.just("delete"), st.sampled_from(NAMES), st.none())
on_disk = st.lists(st.one_of(writes, moves, copies, harms, losses), max_size=4)


class World:
    """Contents of picture files with what the encoder and the coder make of each, and a first index of START."""

    def __init__(self, top: Path, pixels: np.ndarray, encoder_dir: Path):
        self.root, self.first, self.folder = top / "pictures", top / "first", top / "index"
        self.encoder = open_encoder(str(encoder_dir))
        self.files = [_png(p) for p in pixels[:CONTENTS]]
        self.hashes = [hashlib.sha256(f).hexdigest() for f in self.files]
        self.seconds = itertools.count(LONG_AGO - 1_000_000)
        self.fill()
        index_folder(self.first, self.root, self.encoder, IndexConfig(), labels=True)
        with Store(self.first) as store:
            self.D, self.names = store.dictionary(), [c.name for c in store.concepts()]
            assert store.meta.vector_block == BLOCK
        X = self.encoder.encode_images(pixels[:CONTENTS])
        W = encode_sparse(X, self.D, IndexConfig().coder).W.toarray()
        self.X, self.W = dict(zip(self.hashes, X, strict=True)), dict(zip(self.hashes, W, strict=True))

    def fill(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in FOLDERS:
            (self.root / folder).mkdir(parents=True)
        for name, content in START.items():
            (self.root / name).write_bytes(self.files[content])
            self.age(self.root / name)

    def age(self, path: Path) -> None:
        """Gives a file a time of change that no other has, long enough ago for an index to go by it."""
        os.utime(path, (now := next(self.seconds), now))


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def held(folder: Path) -> dict[int, tuple[str, str | None]]:
    """Id → path and content hash of the pictures of an index."""
    with Store(folder) as store:
        return {row.image_id: (row.path, row.content_hash) for row in store.images()}


class Changes(RuleBasedStateMachine):
    """known: id → (path, content hash) that the index has to hold."""

    world: World

    @initialize()
    def begin(self) -> None:
        w = self.world
        w.fill()
        shutil.rmtree(w.folder, ignore_errors=True)
        shutil.copytree(w.first, w.folder)
        self.known = held(w.folder)
        assert {Path(p).relative_to(w.root).as_posix(): h for p, h in self.known.values()} == {
            name: w.hashes[content] for name, content in START.items()
        }
        self.next_id = len(self.known)
        self.held = Index(w.folder)
        self.held_known = dict(self.known)

    def teardown(self) -> None:
        if hasattr(self, "held"):
            self.held.close()

    @rule(ops=on_disk, name=st.sampled_from([".", *FOLDERS, *NAMES]), verify=st.booleans())
    def add(self, ops: list[tuple], name: str, verify: bool) -> None:
        w = self.world
        for op in ops:
            self.touch(*op)
        path = w.root / name
        if not path.exists():
            with pytest.raises(SparsightError, match="does not exist"):
                add_pictures(w.folder, [path], w.encoder)
            return
        seen = self.read(path)
        expected = self.after_addition(seen)
        planned = plan_add(w.folder, [path], verify=verify)
        assert held(w.folder) == self.known, "planning changes nothing"
        done = add_pictures(w.folder, [path], w.encoder, batch_size=3, verify=verify)
        if DAMAGED not in self.files_at(path).values():  # planning does not decode
            assert (planned.plan, planned.skipped) == (done.plan, done.skipped)
        ids = {content: i for i, content in self.hash_of(expected).items()}
        assert done.n == len(expected)
        assert sorted(done.ids) == [i for i in sorted(expected) if i >= self.next_id]
        now = held(w.folder)
        assert self.hash_of(now) == self.hash_of(expected)
        for content, i in ids.items():  # which of several paths with one content it is, is left open
            assert now[i] == expected[i] or (not expected[i][0] and seen.get(now[i][0]) == content)
        self.next_id += len(done.ids)
        self.known = now
        self.check_stamps(seen)

    def check_stamps(self, seen: dict[str, str]) -> None:
        """Files that were read are known by their size and time of change, if that is long ago."""
        with Store(self.world.folder) as store:
            rows = store.images_at(seen)
        for path, row in rows.items():
            status = os.stat(path)
            if status.st_mtime < LONG_AGO:
                assert (row.file_bytes, row.file_changed) == (status.st_size, status.st_mtime_ns)

    def touch(self, op: str, name: str, other: object) -> None:
        path = self.world.root / name
        if op.startswith("write"):
            path.write_bytes(self.world.files[int(str(other))])
            if op == "write":
                self.world.age(path)
        elif op == "damage":
            path.write_bytes(DAMAGED)
            self.world.age(path)
        elif path.exists() and op == "delete":
            path.unlink()
        elif path.exists() and name != other:
            (shutil.move if op == "move" else shutil.copyfile)(path, self.world.root / str(other))

    def read(self, path: Path) -> dict[str, str]:
        """Path → content hash of the pictures at or below a path."""
        found = {p: hashlib.sha256(data).hexdigest() for p, data in self.files_at(path).items()}
        return {p: h for p, h in found.items() if h in self.world.X}

    def files_at(self, path: Path) -> dict[str, bytes]:
        paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return {str(p): p.read_bytes() for p in paths}

    def after_addition(self, seen: dict[str, str]) -> dict[int, tuple[str, str]]:
        """A content keeps its id; it goes where its file holds another and none that was seen holds it. Its path stays
        where that still holds it; else it is "", one of those seen."""
        expected = {}
        for i, (path, content) in self.known.items():
            stays = seen[path] == content if path in seen else Path(path).exists()
            if stays or content in seen.values():
                expected[i] = (path if stays else "", content)
            elif path not in seen:
                expected[i] = (path, content)
        new = dict.fromkeys(h for h in seen.values() if h not in self.hash_of(self.known).values())
        return expected | {self.next_id + j: ("", content) for j, content in enumerate(new)}

    @staticmethod
    def hash_of(known: dict[int, tuple[str, str]]) -> dict[int, str]:
        return {i: content for i, (_, content) in known.items()}

    @rule(data=st.data(), by=st.sampled_from(["id", "path"]))
    def remove_one(self, data: st.DataObject, by: str) -> None:
        if self.known:
            i = data.draw(st.sampled_from(sorted(self.known)))
            self.remove([str(i) if by == "id" else self.known[i][0]], {i})

    @rule(folder=st.sampled_from(FOLDERS))
    def remove_folder(self, folder: str) -> None:
        below = str(self.world.root / folder) + "/"
        self.remove([below], {i for i, (path, _) in self.known.items() if path.startswith(below)})

    @rule(ops=st.lists(losses, max_size=2))
    def remove_missing(self, ops: list[tuple]) -> None:
        for op in ops:
            self.touch(*op)
        gone = {i for i, (path, _) in self.known.items() if not Path(path).exists()}
        if gone or not self.known:  # of so few, one is more than a tenth
            with pytest.raises(SparsightError, match="--missing"):
                remove_pictures(self.world.folder, [], missing=True)
            assert held(self.world.folder) == self.known
        if self.known:
            self.remove([], gone, missing=True)

    def remove(self, targets: list[str], ids: set[int], missing: bool = False) -> None:
        if targets and not ids:
            for remove in (remove_pictures, plan_removal):
                with pytest.raises(CallError, match="names no picture"):
                    remove(self.world.folder, targets)
            return
        planned = plan_removal(self.world.folder, targets, missing=missing)
        assert held(self.world.folder) == self.known, "planning changes nothing"
        removed = remove_pictures(self.world.folder, targets, missing=missing, sure=missing)
        assert removed == planned == [(i, self.known.pop(i)[0]) for i in sorted(ids)]

    @rule()
    def compact(self) -> None:
        compact(self.world.folder)
        with Store(self.world.folder) as store:
            assert store.meta.dead == 0
            names = {DATABASE, CHANCE, store.meta.vectors_file, store.meta.thumbnails_file}
        assert data_files(self.world.folder) == names

    @rule()
    def reopen(self) -> None:
        self.held.close()
        self.held, self.held_known = Index(self.world.folder), dict(self.known)

    @rule(content=contents, k=st.integers(1, CONTENTS), mode=st.sampled_from(["dense", "sparse"]))
    def search(self, content: int, k: int, mode: str) -> None:
        """Through the searcher that is open, whatever has been changed since."""
        w, known = self.world, self.held_known
        t = w.X[w.hashes[content]]
        hits = self.held.search_vector(t, k, mode)  # type: ignore[arg-type]
        ids = sorted(known)
        assert len(hits) == min(k, len(ids))
        if not hits:
            return
        A = np.stack([w.X[known[i][1]] if mode == "dense" else w.W[known[i][1]] @ w.D for i in ids])
        rows = [ids.index(h.id) for h in hits]
        check_best((A @ t)[None], np.array([rows]), np.array([[h.score for h in hits]]), len(hits), atol=1e-3)
        assert [(h.path, h.label) for h in hits] == [(known[h.id][0], self.label(known[h.id][0])) for h in hits]

    @rule(data=st.data(), k=st.integers(1, CONTENTS))
    def look_up(self, data: st.DataObject, k: int) -> None:
        w, known = self.world, self.held_known
        j = data.draw(st.integers(0, len(w.names) - 1))
        weights = {i: w.W[content][j] for i, (_, content) in known.items() if w.W[content][j] > 0}
        hits = self.held.search(concepts=w.names[j], k=k)
        assert len(hits) == min(k, len(weights))
        for h, best in zip(hits, sorted(weights.values(), reverse=True), strict=False):
            assert h.score == pytest.approx(weights[h.id], abs=1e-3)
            assert h.score == pytest.approx(best, abs=1e-3)

    @rule()
    def read_all(self) -> None:
        """What was opened is what is read, though a compaction has taken its files away."""
        store, known = self.held.store, self.held_known
        assert store.image_ids.tolist() == sorted(known) == list(store.thumbnails(sorted(known)))
        assert [row.content_hash for row in store.images()] == [known[i][1] for i in sorted(known)]
        for x, i in zip(store.embeddings(), sorted(known), strict=True):
            np.testing.assert_allclose(x, self.world.X[known[i][1]], atol=1e-5)

    def label(self, path: str) -> str:
        return Path(path).relative_to(self.world.root).parts[0]

    @invariant()
    def holds_what_it_has_to(self) -> None:
        w = self.world
        if not hasattr(self, "known"):
            return
        with Store(w.folder) as store:
            assert {row.image_id: (row.path, row.content_hash) for row in store.images()} == self.known
            assert store.meta.next_id == self.next_id
            assert [row.label for row in store.images()] == [self.label(self.known[i][0]) for i in sorted(self.known)]
            check_store(store)
            if self.known:
                order = [self.known[i][1] for i in sorted(self.known)]
                np.testing.assert_allclose(store.embeddings(), np.stack([w.X[h] for h in order]), atol=1e-5)
                W, step = store.codes().toarray(), float(store.packed.step.max())
                np.testing.assert_allclose(W, np.stack([w.W[h] for h in order]), atol=step + 1e-5)


def test_any_row_of_changes(pictures, small_encoder_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK_BYTES", 4 * 32 * BLOCK)
    Changes.world = World(tmp_path, pictures.pixels, small_encoder_dir)
    run_state_machine_as_test(
        Changes,
        settings=settings(
            max_examples=200 if SOAK else 10,
            stateful_step_count=25 if SOAK else 10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


paths = st.sampled_from("abcdefg")
hashes = st.sampled_from("123456")


@settings(deadline=None, max_examples=5000 if SOAK else 500)
@given(
    held=st.lists(st.tuples(paths, hashes), unique_by=(lambda pair: pair[0], lambda pair: pair[1])),
    seen=st.dictionaries(paths, hashes),
    lost=st.sets(paths),
)
def test_a_plan_holds_each_content_once(held, seen, lost):
    """What was seen is held once, by a path that holds it; what was not seen stays; a second time nothing is to do."""
    known: dict[str, tuple[int, str | None]] = {path: (i, content) for i, (path, content) in enumerate(held)}
    there = lambda path: path in seen or path not in lost  # noqa: E731
    plan = plan_addition(known, seen, there)
    after = apply(known, plan)
    for content in seen.values():
        (holder,) = [path for path, (_, h) in after.items() if h == content]
        assert seen[holder] == content if holder in seen else there(holder)
    for path, (image_id, content) in known.items():
        if path not in seen and content not in seen.values():
            assert after[path] == (image_id, content)
        if content in seen.values():
            assert image_id in {i for i, h in after.values() if h == content}, "a content keeps its id"
    assert {h for _, h in after.values()} <= {*seen.values(), *(h for _, h in known.values())}
    assert set(plan.unchanged) == {p for p in seen if p in known and known[p][1] == seen[p]}
    assert set(plan.changed) == {p for p in seen if p in known and known[p][1] != seen[p]}
    assert all(seen[p] == after[of][1] for p, of in plan.duplicates)
    again = plan_addition(after, seen, there)
    assert again.is_empty
    assert apply(after, again) == after


def apply(known, plan):
    """The mapping that a plan makes of another; refuses one that gives a path to two pictures."""
    kept = {i: (path, h) for path, (i, h) in known.items() if i not in plan.removed}
    kept |= {i: (path, kept[i][1]) for i, path in plan.moved.items()}
    start = 1 + max((i for i, _ in known.values()), default=-1)
    kept |= {start + j: pair for j, pair in enumerate(plan.added)}
    assert len({path for path, _ in kept.values()}) == len(kept)
    return {path: (i, h) for i, (path, h) in kept.items()}
