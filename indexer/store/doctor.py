"""The doctor: is all that an index folder holds whole, does it agree, and what of it can be made good again?

Only the vectors, the dictionary and what is known of each picture cannot be derived. From them a repair writes the
database anew, as a build does; the file it replaces stays beside it. A Flat `dense.faiss` is a second copy of the
vectors: where their checksum proves it to be the one that was written, they are taken from there.
Nothing is locked to examine an index: what is read is the file as it was when it was opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError

from indexer.build import bar
from indexer.coding.coder import encode_sparse
from indexer.coding.dictionary import Dictionary
from indexer.store import journal, lock
from indexer.store.dense import FILE, build_dense, cached_dense, save_dense
from indexer.store.store import (
    COUNTS,
    DATABASE,
    HINT,
    WAL,
    Contents,
    Store,
    bad_counts,
    open_database,
    vectors_key,
    write_store,
)
from training.encoders import fingerprint_of
from training.errors import SparsightError

REPAIR, AGAIN = "`sparsight doctor --repair` mends it", "make the index anew with `sparsight index PATH`"
DERIVED = ("posting_blocks", "thumbnails", "skipped")  # tables that an index can do without, or that follow from others
SAMPLE = 64  # pictures that are coded again
UNIT = 1e-3  # how far a norm may be from 1
CHUNK = 1024  # thumbnails read at a time: what a damaged block takes with it


@dataclass(frozen=True)
class Finding:
    """What one check found; a note is nothing to be mended."""

    check: str
    status: Literal["ok", "note", "fault"]
    message: str
    hint: str = ""


class Fault(NamedTuple):
    message: str
    hint: str = REPAIR


Check = Callable[[Store], Iterator[Fault]]


def examine(folder: Path, *, ours: bool = False) -> list[Finding]:
    """Examines all of an index folder and changes nothing; ours: the caller holds its lock.

    Raises `SparsightError` where there is no index.
    """
    found = []
    if os.path.lexists(folder / WAL):
        message = f"another program has changed {DATABASE} and left {WAL}; open and close it there to keep the change"
        found.append(Finding("database", "fault", message, "`sparsight doctor --repair` puts it aside"))
    else:
        try:
            with Store(folder, check=False) as store:
                found += _examine_database(store)
        except SparsightError as e:
            if not (folder / DATABASE).is_file():
                raise
            found.append(Finding("database", "fault", _cause(e), AGAIN))
    return found + _examine_folder(folder, ours)


def repair(folder: Path) -> list[str]:
    """Makes good what can be derived, holding the lock; says what it did.

    Raises `SparsightError` where there is no index, or where what is lost cannot be derived: then the database is as
    it was.
    """
    if not os.path.lexists(folder / WAL):
        try:
            open_database(folder).close()
        except SparsightError as e:
            raise SparsightError(f"{_cause(e)}; nothing of it can be read, {AGAIN}") from e
    done = [f"removed {path.name}, left by a writer that died" for path in lock.leftovers(folder)]
    with lock.writing(folder, "doctor"):
        if os.path.lexists(folder / WAL):
            aside = _free_name(folder / WAL)
            (folder / WAL).rename(aside)
            done.append(f"put {WAL} aside as {aside.name}")
        for path in journal.pending(folder):
            if _batch_rows(path) is None:
                path.unlink()
                done.append(f"removed the damaged batch {path.name}")
        faults = {f.check for f in examine(folder, ours=True) if f.status == "fault"}
        if faults - {"dense", "leftovers", "pending"}:
            done += _rewrite(folder, faults)
        with Store(folder) as store:
            if cached_dense(store) is None:
                index = build_dense(store.embeddings(), store.meta["dense_factory"])
                save_dense(folder, index, store.meta["dense_key"])
                done.append(f"built {FILE} from the vectors")
    return done


def _examine_database(store: Store) -> list[Finding]:
    """Each check reads the tables that it is named with; one of a table that cannot be read is not made."""
    unreadable = _unreadable(store)
    faults = {"database": [Fault(f"{t} cannot be read: {why}", _hint(store, t)) for t, why in unreadable.items()]}
    if columns := store.bad_columns(_dimensions(store)):
        hint = AGAIN if any(c.split()[0] not in DERIVED for c in columns) else REPAIR
        faults["database"].append(Fault(f"it has no column {', '.join(columns)}", hint))
    else:
        with suppress(SparsightError):  # a table that cannot be read was told of
            faults["counts"] = list(_take_true_counts(store))
        checks: list[tuple[str, str, Check]] = [
            ("ids", "images vectors thumbnails concepts classes", _check_ids),
            ("paths", "images", _check_paths),
            ("vectors", "vectors images", _check_vectors),
            ("dictionary", "concepts means", _check_dictionary),
            ("classes", "classes", _check_classes),
            ("postings", "posting_blocks images concepts", _check_postings),
            ("codes", "posting_blocks images concepts vectors", _check_codes),
            ("dense", "", _check_dense),
        ]
        needs = {"codes": {"ids", "vectors", "dictionary", "postings"}}  # else it would say the same again
        for name, tables, check in checks:
            if not unreadable.keys() & set(tables.split()) and not any(faults.get(n) for n in needs.get(name, ())):
                try:
                    faults[name] = list(check(store))
                except SparsightError as e:
                    faults[name] = [Fault(_cause(e), AGAIN if name in ("dictionary", "classes") else REPAIR)]
    meta = store.meta
    sound = {
        "database": "every block can be read",
        "counts": f"{meta.get('n')} pictures, {meta.get('m')} concepts, {meta.get('nnz')} postings",
        "ids": "unique, and the same in every table",
        "paths": "unique",
        "vectors": "of unit norm, with the checksum of the meta data",
        "dictionary": "atoms of unit norm, with its fingerprint",
        "classes": "of unit norm",
        "postings": "they unpack, every one of a picture and a concept that there is",
        "codes": f"{min(SAMPLE, len(store))} pictures coded again agree",
        "dense": f"{FILE} holds the vectors",
    }
    found = []
    for name, messages in faults.items():
        found += [Finding(name, "fault", *fault) for fault in messages] or [Finding(name, "ok", sound[name])]
    return [*found, _examine_encoder(store)]


def _unreadable(store: Store) -> dict[str, str]:
    """Tables with a block that cannot be read, and why: DuckDB compares a block's checksum when it is read."""
    out = {}
    for (table,) in store._rows("SELECT table_name FROM duckdb_tables() WHERE database_name = 'store' ORDER BY 1"):
        try:
            store._rows(f'SELECT bit_xor(hash(t)) FROM "{table}" t')
        except SparsightError as e:
            out[table] = _cause(e).partition(": ")[2]
    return out


def _hint(store: Store, table: str) -> str:
    if table in DERIVED or (table == "vectors" and _proven_copy(store) is not None):
        return REPAIR
    return AGAIN


def _take_true_counts(store: Store) -> Iterator[Fault]:
    """Tells of counts that are not those of the tables; from here on the store has those of the tables."""
    true = dict.fromkeys(bad_counts(store.meta), 0)
    true["d"] = _dimensions(store)
    n, last, true["m"] = store._rows(
        "SELECT count(*), coalesce(max(image_id), -1), (SELECT count(*) FROM concepts) FROM images"
    )[0]
    true["n"] = n
    if "next_id" in true or int(store.meta["next_id"]) <= last:
        true["next_id"] = last + 1
    with suppress(SparsightError):
        true["nnz"] = int(store._rows("SELECT coalesce(sum(count), 0) FROM posting_blocks")[0][0])
    for key, value in true.items():
        if store.meta.get(key) != str(value):
            yield Fault(f"{key} is {store.meta.get(key)} in the meta data, {value} by the tables")
            store.meta[key] = str(value)
    with suppress(SparsightError):
        differ = store._rows(
            "SELECT concept_id FROM concepts LEFT JOIN (SELECT concept_id, sum(count) AS held FROM posting_blocks "
            "GROUP BY 1) USING (concept_id) WHERE images IS DISTINCT FROM coalesce(held, 0)"
        )
        if differ:
            yield Fault(f"{len(differ)} concepts (the first: {differ[0][0]}) have not as many pictures as postings")


def _dimensions(store: Store) -> int:
    """d, by the column of the vectors; 0 where there is none."""
    where = "database_name = 'store' AND table_name = 'vectors' AND column_name = 'embedding'"
    kinds = store._rows(f"SELECT data_type FROM duckdb_columns() WHERE {where}")
    size = kinds[0][0].removeprefix("FLOAT[").removesuffix("]") if kinds else ""
    return int(size) if size.isdecimal() else 0


def _check_ids(store: Store) -> Iterator[Fault]:
    ids: dict[str, set[int]] = {}
    for table in ("images", "vectors", "thumbnails"):
        ids[table] = set(_ids(store, table))
        if lacking := store._rows(f"SELECT count(*) FROM {table}")[0][0] - len(ids[table]):
            yield Fault(f"{lacking} rows of {table} have no id, or that of another")
        if beyond := [i for i in ids[table] if not 0 <= i < int(store.meta["next_id"])]:
            yield Fault(f"{len(beyond)} ids of {table} are out of range (the first: {min(beyond)})")
    if bad := ids["vectors"] ^ ids["images"]:
        yield Fault(f"{len(bad)} pictures (the first: {min(bad)}) are in one of images and vectors only")
    if bad := ids["thumbnails"] - ids["images"]:
        yield Fault(f"{len(bad)} thumbnails (the first: {min(bad)}) are of no picture")
    for table, column in (("concepts", "concept_id"), ("classes", "class_id")):
        numbers = [i for (i,) in store._rows(f"SELECT {column} FROM {table} ORDER BY 1")]
        if numbers != list(range(len(numbers))):
            yield Fault(f"the ids of {table} are not 0 … {len(numbers) - 1}", AGAIN)


def _check_paths(store: Store) -> Iterator[Fault]:
    bad = store._rows("SELECT path, count(*) FROM images GROUP BY 1 HAVING count(*) > 1 OR path IS NULL ORDER BY 1")
    if bad:
        first = f"{bad[0][1]} of {bad[0][0]}"
        yield Fault(f"{len(bad)} paths name several pictures, or none ({first}); a repair keeps the newest of each")


def _check_vectors(store: Store) -> Iterator[Fault]:
    X, copied = store.embeddings(), _proven_copy(store) is not None
    if bad := _not_unit(X):
        yield Fault(f"{len(bad)} are not of unit norm (row {bad[0]})", REPAIR if copied else AGAIN)
    elif vectors_key(X, store.meta["dense_factory"]) != store.meta["dense_key"]:
        before = "as they were" if copied else "as they are now"
        yield Fault("they are not those of which the meta data holds the checksum", f"{REPAIR}: it takes them {before}")


def _check_dictionary(store: Store) -> Iterator[Fault]:
    D = store.dictionary()
    store.means()
    names = [str(name) for (name,) in store._rows("SELECT name FROM concepts ORDER BY concept_id")]
    if bad := _not_unit(D):
        yield Fault(f"{len(bad)} atoms (the first: {names[bad[0]]}) are not of unit norm", AGAIN)
    elif Dictionary(names, [], [], D, "").fingerprint != store.meta["dictionary_fingerprint"]:
        yield Fault("its names or atoms are not those that it was built with", AGAIN)


def _check_classes(store: Store) -> Iterator[Fault]:
    names, T = store.classes()
    if bad := _not_unit(T):
        yield Fault(f"{len(bad)} classes (the first: {names[bad[0]]}) are not of unit norm", AGAIN)


def _check_postings(store: Store) -> Iterator[Fault]:
    W = store.codes()
    W.sort_indices()
    places = np.repeat(np.arange(W.shape[0]), np.diff(W.indptr)) * W.shape[1] + W.indices
    if (np.diff(places) < 1).any() or not (np.isfinite(W.data) & (W.data > 0)).all():
        yield Fault("a picture has a concept twice, or by no weight")


def _check_codes(store: Store) -> Iterator[Fault]:
    """Two codes of x within the gap tol differ by 2 √tol at most once put together, each weight by its rounding."""
    rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
    D, W = store.dictionary(), store.codes()[rows]
    if not len(rows):
        return
    again = encode_sparse(store.embeddings()[rows], D, store.coder).W
    differ = np.linalg.norm((again - W) @ D, axis=1)
    allowed = 2 * np.sqrt(store.coder.tol) + np.diff(W.indptr) * store.packed.step.max(initial=0)
    bad = np.flatnonzero(differ > allowed)
    if len(bad) > (len(rows) // 10 if store.coder.refit else 0):  # refitted, near ties of the l1 code show
        first = store.image_ids[rows[bad[0]]]
        yield Fault(f"{len(bad)} of {len(rows)} pictures (the first: {first}) have other codes than the coder gives")


def _check_dense(store: Store) -> Iterator[Fault]:
    if cached_dense(store) is None:
        what = "is missing" if not os.path.lexists(store.folder / FILE) else "is damaged, or of other vectors"
        yield Fault(f"{FILE} {what}", f"the next dense search builds it, or {REPAIR}")


def _examine_encoder(store: Store) -> Finding:
    source, wanted = store.meta.get("encoder_source", ""), store.meta.get("encoder_fingerprint")
    try:
        found = fingerprint_of(source)
    except OSError as e:
        message = f"{source} cannot be read ({e.strerror}): what needs it asks for --encoder"
        return Finding("encoder", "note", message)
    if found is None:
        return Finding("encoder", "note", f"{source} is of the Hugging Face hub; it was not looked for")
    if found != wanted:
        return Finding("encoder", "note", f"{source} is another one now: what needs it asks for --encoder")
    return Finding("encoder", "ok", f"{source} is the one that the index was built with")


def _examine_folder(folder: Path, ours: bool) -> list[Finding]:
    writer = None if ours else lock.writer(folder)
    left = [] if writer or ours else lock.leftovers(folder)
    if writer is None and not ours and os.path.lexists(folder / lock.HOLDER):
        left.append(folder / lock.HOLDER)
    found = [Finding("leftovers", "fault", f"{p.name} was left by a writer that died", REPAIR) for p in left]
    if writer:
        found.append(Finding("leftovers", "note", f"{folder} is being changed by {writer}"))
    batches = {path: _batch_rows(path) for path in journal.pending(folder)}
    bad = [path.name for path, rows in batches.items() if rows is None]
    found += [Finding("pending", "fault", f"the batch {name} is damaged", REPAIR) for name in bad]
    if waiting := sum(rows or 0 for rows in batches.values()):
        message = f"{waiting} encoded pictures wait for `sparsight add` or `index` to be called again"
        found.append(Finding("pending", "note", message))
    known = {DATABASE, FILE, WAL, lock.LOCK, lock.HOLDER, journal.FOLDER, *(p.name for p in lock.leftovers(folder))}
    for path in sorted(folder.iterdir()):
        if path.name.startswith((f"{DATABASE}.damaged-", f"{WAL}.damaged-")):
            found.append(Finding("files", "note", f"{path.name} was put aside by a repair; remove it when you will"))
        elif path.name not in known:
            found.append(Finding("files", "note", f"{path.name} is no file of an index; it is left alone"))
    sound = {"leftovers": "none", "pending": "none", "files": "no others"}
    missing = sound.keys() - {f.check for f in found}
    return found + [Finding(name, "ok", text) for name, text in sound.items() if name in missing]


def _batch_rows(path: Path) -> int | None:
    """How many pictures a batch holds; None where it is damaged."""
    try:
        return len(journal.read_batch(path)[0])
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _rewrite(folder: Path, faults: set[str]) -> list[str]:
    """Writes the database anew from what of it can be read; says what it did."""
    try:
        with Store(folder, check=False) as store:
            contents, done = _salvage(store, faults)
            aside = _free_name(folder / DATABASE)
            try:
                os.link(folder / DATABASE, aside)
            except OSError:  # a file system without links
                copyfile(folder / DATABASE, aside)
            try:
                write_store(folder, contents)
            except BaseException:
                aside.unlink()
                raise
            if isinstance(contents.thumbnails, _Thumbnails) and contents.thumbnails.lost:
                done.append(f"lost {contents.thumbnails.lost} thumbnails: they cannot be read")
    except SparsightError as e:
        raise SparsightError(f"cannot repair {folder}: {_cause(e)}; {AGAIN} (nothing was changed)") from e
    return [*done, f"wrote {DATABASE} anew; the one before is {aside.name}"]


def _salvage(store: Store, faults: set[str]) -> tuple[Contents, list[str]]:
    """All that an index is to hold, and what was done to it; raises `SparsightError` where that cannot be derived."""
    done = []
    if bad := [c for c in store.bad_columns(_dimensions(store)) if c.split()[0] not in DERIVED]:
        raise SparsightError(f"it has no column {', '.join(bad)}")
    list(_take_true_counts(store))
    columns = "image_id, path, split, label, term, content_hash, l1, gap"
    every = store._rows(f"SELECT DISTINCT {columns} FROM images ORDER BY 1")
    rows = _one_each(every)
    newest = {row[1]: image_id for image_id, row in rows.items() if row[1] is not None}
    X_of = _salvage_vectors(store, faults)
    ids = np.array([i for i in sorted(newest.values()) if i in X_of and 0 <= i < 2**31], np.int64)
    if dropped := max(len(every), len(X_of)) - len(ids):
        done.append(f"dropped {dropped} pictures that were not whole; `sparsight add` takes them again")
    pictures = [rows[i] for i in ids.tolist()]
    X = np.stack([X_of[i] for i in ids.tolist()]) if len(ids) else np.zeros((0, store.d), np.float32)
    D = store.dictionary()
    concepts = store._rows("SELECT concept_id, name, aliases, parent, source FROM concepts ORDER BY 1")
    for check in (_check_dictionary, _check_classes):
        if fault := next(check(store), None):
            raise SparsightError(f"the {check.__name__.removeprefix('_check_')}: {fault.message}")
    if [c[0] for c in concepts] != list(range(len(concepts))):
        raise SparsightError("the ids of the concepts are not those of the dictionary")
    l1, gap = (np.array([row[j] for row in pictures], np.float32) for j in (6, 7))
    W = _salvage_codes(store, ids) if not faults & {"ids", "vectors", "postings", "codes"} else None
    if W is None:
        with bar("code", len(X)) as step:
            W, gap, l1 = encode_sparse(X, D, store.coder, progress=step)
        done.append(f"coded {len(X)} pictures again")
    names, T = store.classes()
    try:
        skipped = store.skipped()
    except SparsightError:
        skipped = []
        done.append("lost the list of what was skipped: its table cannot be read")
    kept = {k: v for k, v in store.meta.items() if k not in (*COUNTS, "format", "dense_key")}
    contents = Contents(
        X=X,
        W=W,
        D=D,
        T=T,
        classes=names,
        names=[str(c[1]) for c in concepts],
        aliases=[list(c[2] or ()) for c in concepts],
        parents=[c[3] for c in concepts],
        source=next((c[4] for c in concepts), ""),
        paths=[row[1] for row in pictures],
        splits=[row[2] for row in pictures],
        labels=[row[3] for row in pictures],
        terms=[row[4] for row in pictures],
        hashes=[row[5] for row in pictures],
        l1=l1,
        gap=gap,
        thumbnails=_Thumbnails(store, ids),
        skipped=skipped,
        meta={**kept, "generation": int(store.meta["generation"]) + 1},
        means=store.means(),
        ids=ids,
        next_id=int(store.meta["next_id"]),
    )
    return contents, done


def _one_each(rows: Sequence[tuple]) -> dict[int, tuple]:
    """Rows by their id, the first column; those that share one tell nothing for certain and are left out."""
    often = Counter(row[0] for row in rows)
    return {row[0]: row for row in rows if row[0] is not None and often[row[0]] == 1}


def _salvage_vectors(store: Store, faults: set[str]) -> dict[int, np.ndarray]:
    """x (d,) of each picture by its id: from the database, or from the dense index where that is proven right."""
    if faults & {"vectors", "database"} and (X := _proven_copy(store)) is not None:
        return dict(zip(_ids(store, "images"), X, strict=True))
    rows = store._rows("SELECT DISTINCT image_id, embedding FROM vectors WHERE embedding IS NOT NULL ORDER BY 1")
    found = {i: np.array(row[1], np.float32) for i, row in _one_each(rows).items()}
    if bad := _not_unit(np.stack(list(found.values()))) if found else []:
        raise SparsightError(f"{len(bad)} vectors are not of unit norm")
    return found


def _proven_copy(store: Store) -> np.ndarray | None:
    """X (n, d) as the dense index holds it, where it is the one that the meta data holds the checksum of."""
    import faiss

    index = cached_dense(store)
    if not isinstance(index, faiss.IndexFlat):
        return None
    X = index.reconstruct_n(0, index.ntotal)
    ids = _ids(store, "images")  # whose row i is: they must be those of before
    try:
        known = set(_ids(store, "vectors"))
    except SparsightError:
        known = set()
    if len(ids) != len(X) or len(set(ids)) != len(X) or min(ids, default=0) < 0 or not known <= set(ids):
        return None
    return X if vectors_key(X, store.meta["dense_factory"]) == store.meta["dense_key"] else None


def _ids(store: Store, table: str) -> list[int]:
    return [i for (i,) in store._rows(f"SELECT image_id FROM {table} WHERE image_id IS NOT NULL ORDER BY 1")]


def _salvage_codes(store: Store, ids: np.ndarray) -> Any:
    """W (n, m) of pictures; None where the postings cannot be read."""
    try:
        return store.codes()[np.isin(store.image_ids, ids)]
    except SparsightError:
        return None


class _Thumbnails(Sequence[bytes | None]):
    """The thumbnails of pictures, read as they are asked for in order; None for those that cannot be read."""

    def __init__(self, store: Store, ids: np.ndarray):
        self._store, self._ids = store, ids.tolist()
        self._start, self._held = -1, dict[int, bytes]()
        self.lost = 0  # of those asked for

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, i: Any) -> Any:
        start = i - i % CHUNK
        if start != self._start:
            try:
                self._held = self._store.thumbnails(self._ids[start : start + CHUNK])
            except SparsightError:
                self._held = {}
                self.lost += len(self._ids[start : start + CHUNK])
            self._start = start
        return self._held.get(self._ids[i])


def _not_unit(A: np.ndarray) -> list[int]:
    """The rows of A (n, d) that are not finite and of unit norm."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.flatnonzero(~(np.abs(np.linalg.norm(A, axis=1) - 1) <= UNIT)).tolist()


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return aside


def _cause(e: SparsightError) -> str:
    """What an error says, without the hint that leads here."""
    return str(e).removesuffix(f"; {HINT}")
