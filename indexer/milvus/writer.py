"""Writes an index to Milvus, and changes it there, so that the earlier generation counts until the new one is whole.

A load has a collection of its own, named by what is loaded: who runs a stopped one again goes on in it, and the index
that is to be replaced stands until the row `current` names the new one. A change is made in place. What it adds has
ids that no picture had, which readers pass over until its generation counts; what it removes goes after that. A change
that stopped midway is undone by the next one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from indexer.milvus.about import CHANGING, LIMIT, LOADING, TEXT, About, State, dense_index, make_pictures
from indexer.milvus.address import Address
from indexer.milvus.reader import FIELDS, MANY, CodeOf, MilvusStore
from indexer.milvus.server import Server
from indexer.store.contents import Change, Classes, Contents, Pictures
from indexer.store.meta import IndexMeta
from indexer.store.postings import pack_codes
from training.errors import CallError, SparsightError
from training.files import digest
from training.terminal import progress

BATCH = 500  # pictures that one call writes: their vectors and thumbnails stay far below the 64 MB of a call
MOST_CONCEPTS = 4096  # of one picture
PROBES = 3  # pictures whose sparse scores are compared with our own products when the index is opened


def refuse_in_milvus(address: Address, dense: str, residual: str) -> None:
    """Raises `CallError` for a dense index and residuals that an index in Milvus cannot have, and `SparsightError`
    where nobody answers at an address."""
    if residual:
        raise CallError("--residual: residuals are kept in index folders alone; leave it out with --store")
    dense_index(dense)
    Server(address, new=True).close()


def refuse_standing(address: Address) -> None:
    """Raises `SparsightError` where there is a whole index at an address already, or nobody answers."""
    server = Server(address, new=True)
    try:
        about = About(server)
        if about.open() and about.state() is not None:
            raise SparsightError(f"{address} holds an index already: name another one behind #")
    finally:
        server.close()


def write_milvus(address: Address, c: Contents) -> IndexMeta:
    """Loads an index to an address; returns its meta data with all counts. The index that stood there is replaced when
    the new one is whole; a load that was stopped goes on where it ended.

    Raises `SparsightError` where the server does not answer, or refuses.
    """
    server = Server(address, new=True)
    try:
        about = About(server)
        about.make()
        before = about.state()
        n, W = len(c.pictures), rounded(c.pictures.W)
        ids = np.arange(n) if c.ids is None else np.asarray(c.ids, np.int64)
        meta = replace(
            c.meta, n=n, d=c.dictionary.D.shape[1], m=len(c.dictionary.D), nnz=W.nnz,
            next_id=max(c.meta.next_id, int(ids[-1]) + 1 if n else 0),
            generation=before.generation + 1 if before else 1,
        )  # fmt: skip
        load = _fingerprint(c, ids, meta)
        about.put_row(LOADING, {"load": load, "n": n, "generation": meta.generation})
        name = about.pictures(load)
        if not server.ask("has_collection", name):
            make_pictures(server, name, meta)
        server.ask("load_collection", name)
        _put_pictures(server, name, ids, replace(c.pictures, W=W), meta.keeps_vectors)
        server.ask("flush", name)
        parts = about.put_parts(load, meta.generation, _parts(c, meta, W, ids))
        state = State(load, meta.generation, parts)
        about.put_state(state)
        about.drop_row(LOADING)
        about.clean(state)
    finally:
        server.close()
    return meta


def change_milvus(store: MilvusStore, change: Change) -> IndexMeta:
    """Makes a change to an open index; returns its meta data afterwards, when `store` is to be opened anew.

    Raises as `write_milvus` does; what was stopped midway does not count, and is undone by the next change.
    """
    store = settled(store)
    about, before, server = store.about, store.meta, store.server
    removed = sorted(set(change.removed))
    gone = [ids for ids, _ in store.codes_of(removed)]
    added = change.added
    count = len(added) if added is not None else 0
    ids = np.arange(before.next_id, before.next_id + count)
    W = rounded(added.W) if added is not None else sparse.csr_matrix((0, before.m), dtype=np.float32)
    counts = store.counts() + np.bincount(W.indices, minlength=before.m)
    counts = counts - np.bincount(np.concatenate([*gone, np.zeros(0, np.int64)]).astype(int), minlength=before.m)
    meta = replace(
        before, n=before.n - len(removed) + count, nnz=int(counts.sum()), next_id=before.next_id + count,
        generation=before.generation + 1, exclude=before.exclude if change.exclude is None else change.exclude,
    )  # fmt: skip
    about.put_row(CHANGING, {"generation": meta.generation})
    if added is not None:
        _put_pictures(server, store.pictures, ids, replace(added, W=W), before.keeps_vectors, resumes=False)
    _update_rows(store, change)
    _delete(server, store.pictures, removed)
    server.ask("flush", store.pictures)
    parts = {"meta": _json(meta.rows()), "counts": counts.astype("<i8").tobytes()}
    parts["skipped"] = _json(_skipped_after(store, change))
    parts |= _values_after(store, change) | _classes_after(store, change.classes)
    parts["probes"] = _json(_probes_after(store, removed, ids, W))
    places = about.put_parts(store.state.load, meta.generation, parts)
    state = State(store.state.load, meta.generation, {**store.state.parts, **places})
    about.put_state(state)
    about.drop_row(CHANGING)
    about.clean(state)
    return meta


def settled(store: MilvusStore) -> MilvusStore:
    """The same index, in which what a change had added that was stopped midway is gone, and the counts are true."""
    if not store.is_unfinished:
        return store
    about, server = store.about, store.server
    server.ask("delete", store.pictures, filter=f"id >= {store.meta.next_id}")
    counts, n = np.zeros(store.meta.m, np.int64), 0
    probes: dict[int, dict[int, float]] = {}
    for rows in store.scan(["code"]):
        codes = {row["id"]: store.code(row["code"]) for row in rows}
        n += len(rows)
        counts += np.bincount(np.concatenate([ids for ids, _ in codes.values()]), minlength=store.meta.m)
        probes = _with_more(probes, codes)
    meta = replace(store.meta, n=n, nnz=int(counts.sum()))
    parts = {"meta": _json(meta.rows()), "counts": counts.astype("<i8").tobytes(), "probes": _json(probes)}
    generation = store.state.generation + 1
    parts["meta"] = _json(replace(meta, generation=generation).rows())
    places = about.put_parts(store.state.load, generation, parts)
    about.put_state(State(store.state.load, generation, {**store.state.parts, **places}))
    about.drop_row(CHANGING)
    print(f"undone: a change of {store.name} that was stopped midway", file=sys.stderr)
    store.reread()
    return store


def put_measures(store: MilvusStore, measures: Mapping[str, bytes]) -> None:
    """Keeps what was measured of an index with its generation."""
    places = store.about.put_parts(store.state.load, store.state.generation, measures)
    store.about.put_state(replace(store.state, parts={**store.state.parts, **places}))


def rounded(W: sparse.csr_matrix) -> sparse.csr_matrix:
    """Codes W (n, m) with the weights that an index folder holds of them."""
    n = W.shape[0]
    try:
        indptr, ids, weights = pack_codes(W, np.arange(n), n).columns()
    except ValueError as e:
        raise SparsightError(f"cannot store the codes: {e}") from e
    R = sparse.csc_matrix((weights, ids, indptr), shape=W.shape).tocsr()
    R.sort_indices()
    if n and (most := int(np.diff(R.indptr).max())) > MOST_CONCEPTS:
        raise SparsightError(
            f"a picture has {most} concepts, and Milvus holds {MOST_CONCEPTS} of one: take a larger --l1"
        )
    return R


def _fingerprint(c: Contents, ids: np.ndarray, meta: IndexMeta) -> str:
    """What tells a load from every other: the same pictures and settings, on top of the same generation."""
    columns = c.pictures.described.columns()
    W, X = c.pictures.W, c.pictures.X
    said = json.dumps([meta.rows(), {name: list(column) for name, column in columns.items()}])
    rows = (np.ascontiguousarray(X[i : i + MANY]).tobytes() for i in range(0, len(X), MANY))
    arrays = (a.tobytes() for a in (ids, W.indptr, W.indices, W.data))
    return hashlib.sha256(digest((said.encode(), *arrays)).encode() + digest(rows).encode()).hexdigest()[:12]


def _put_pictures(
    server: Server, name: str, ids: np.ndarray, pictures: Pictures, vectors: bool, *, resumes: bool = True
) -> None:
    """Writes pictures under their ids, but for batches that are there already, where a stopped load is resumed."""
    thumbnails = iter(pictures.described.thumbnails or [None] * len(ids))
    with progress("load", len(ids)) as step:
        for start in range(0, len(ids), BATCH):
            at = range(start, min(start + BATCH, len(ids)))
            jpegs = [next(thumbnails, None) for _ in at]
            span = f"id >= {ids[at[0]]} and id <= {ids[at[-1]]}"
            held = server.ask("query", name, filter=span, output_fields=["count(*)"]) if resumes else None
            if held is None or held[0]["count(*)"] < len(at):
                server.ask("upsert", name, list(_rows(ids, pictures, at, jpegs, vectors)))
            step(len(at))


def _rows(
    ids: np.ndarray, p: Pictures, at: range, jpegs: Sequence[bytes | None], vectors: bool
) -> Iterator[dict[str, Any]]:
    columns, W = p.described.columns(), p.W
    X = p.X[at[0] : at[-1] + 1] if vectors else None
    for i, jpeg in zip(at, jpegs, strict=True):
        span = slice(W.indptr[i], W.indptr[i + 1])
        code = dict(zip(W.indices[span].tolist(), W.data[span].tolist(), strict=True))
        text = base64.b64encode(jpeg).decode() if jpeg else None
        row: dict[str, Any] = {
            "id": int(ids[i]),
            "code": code or {W.shape[1]: 1.0},  # a sparse vector may not be empty: a concept that no query asks for
            "concepts": list(code),
            "thumbnail": text if text is None or len(text) <= TEXT else None,  # a larger one is left out
            "l1": float(p.l1[i]),
            "gap": float(p.gap[i]),
            **{name: _plain(column[i]) for name, column in columns.items()},
        }
        if X is not None:
            row["dense"] = X[i - at[0]].tolist()
        yield row


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _parts(c: Contents, meta: IndexMeta, W: sparse.csr_matrix, ids: np.ndarray) -> dict[str, bytes]:
    D, described = c.dictionary, c.pictures.described
    concepts = [[name, list(a), parent] for name, a, parent in zip(D.names, D.aliases, D.parents, strict=True)]
    means = np.zeros(0) if c.means is None else np.stack([c.means.image, c.means.text])
    known = np.flatnonzero(np.diff(W.indptr))
    chosen = known[np.linspace(0, len(known) - 1, min(PROBES, len(known))).astype(int)]
    return {
        "meta": _json(meta.rows()),
        "dictionary": np.ascontiguousarray(D.D, "<f4").tobytes(),
        "concepts": _json(concepts),
        "counts": np.bincount(W.indices, minlength=meta.m).astype("<i8").tobytes(),
        "classes": _json(list(c.classes.names)),
        "class_vectors": np.ascontiguousarray(c.classes.T, "<f4").tobytes(),
        "means": np.ascontiguousarray(means, "<f4").tobytes(),
        "skipped": _json(c.skipped),
        "values": _json({"label": _distinct(described.labels), "split": _distinct(described.splits)}),
        "probes": _json({int(ids[i]): _probe(W[i].indices, W[i].data) for i in chosen.tolist()}),
    }


def _probe(ids: np.ndarray, weights: np.ndarray) -> dict[int, float]:
    return dict(zip(ids.tolist(), weights.tolist(), strict=True))


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _update_rows(store: MilvusStore, change: Change) -> None:
    """What is known anew of pictures that stay: whole rows are written, since not every server takes parts of one."""
    ids = sorted({*change.moved, *change.seen})
    vectors = ["dense"] if store.meta.keeps_vectors else []
    for at in range(0, len(ids), BATCH):
        rows = store.rows_of(ids[at : at + BATCH], [*FIELDS, *vectors, "code", "concepts", "thumbnail"])
        made = []
        for held in rows:
            row = dict(held) | {"concepts": list(held["concepts"])}
            if (moved := change.moved.get(row["id"])) is not None:
                row |= {"path": moved.path, "split": moved.split, "label": moved.label}
            if (seen := change.seen.get(row["id"])) is not None:
                row |= {"file_bytes": seen[0], "file_changed": seen[1]}
            made.append(row)
        store.server.ask("upsert", store.pictures, made)


def _delete(server: Server, name: str, ids: Sequence[int]) -> None:
    for at in range(0, len(ids), LIMIT // 16):
        server.ask("delete", name, ids=list(ids[at : at + LIMIT // 16]))


def _skipped_after(store: MilvusStore, change: Change) -> list[tuple[str, str]]:
    """What is said of paths that were skipped before, and are now taken or skipped again, goes."""
    taken = {s.path for s in change.skipped} | {m.path for m in change.moved.values()}
    taken |= set(change.added.described.paths) if change.added is not None else set()
    kept = [s for s in store.skipped() if s.path not in taken]
    return sorted([*kept, *change.skipped])


def _values_after(store: MilvusStore, change: Change) -> dict[str, bytes]:
    described = change.added.described if change.added is not None else None
    labels = [*(described.labels if described else ()), *(m.label for m in change.moved.values())]
    splits = [*(described.splits if described else ()), *(m.split for m in change.moved.values())]
    after = {"label": [*store.values("label"), *labels], "split": [*store.values("split"), *splits]}
    return {"values": _json({column: _distinct(values) for column, values in after.items()})}


def _classes_after(store: MilvusStore, more: Classes | None) -> dict[str, bytes]:
    if more is None:
        return {}
    held = store.classes()
    T = np.concatenate([held.T, np.asarray(more.T, np.float32).reshape(-1, store.meta.d)])
    return {"classes": _json([*held.names, *more.names]), "class_vectors": T.astype("<f4").tobytes()}


def _probes_after(
    store: MilvusStore, removed: Sequence[int], ids: np.ndarray, W: sparse.csr_matrix
) -> dict[int, dict[int, float]]:
    """Those that stay, and of the added pictures as many as are missing."""
    held = json.loads(store.part("probes") or b"{}")
    probes = {int(i): code for i, code in held.items() if int(i) not in set(removed)}
    for i in np.flatnonzero(np.diff(W.indptr))[: PROBES - len(probes)].tolist():
        probes[int(ids[i])] = _probe(W[i].indices, W[i].data)
    if not probes and len(store) > len(set(removed)):
        for rows in store.scan(["code"]):
            codes = {row["id"]: store.code(row["code"]) for row in rows}
            if probes := _with_more(probes, codes):
                break
    return probes


def _with_more(probes: dict[int, dict[int, float]], codes: Mapping[int, CodeOf]) -> dict[int, dict[int, float]]:
    """Probes, and of some pictures with concepts as many as are missing."""
    known = [i for i, (ids, _) in codes.items() if len(ids)]
    return probes | {i: _probe(*codes[i]) for i in known[: PROBES - len(probes)]}
