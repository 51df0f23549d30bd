"""The doctor: is all that an index folder holds whole, does it agree, and what of it can be made good again?

Every table and both files beside the database are read, a piece at a time; nothing is locked: what is read is the
index as it was when it was opened. `indexer.store.repair` makes good what can be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError

from indexer.coding import Dictionary, encode_sparse
from indexer.residual import code_residuals
from indexer.store import chance, familiarity, journal, lock
from indexer.store.database import DATABASE, HINT, WAL
from indexer.store.dense import FILE, FLAT, cached_dense
from indexer.store.lenient import open_leniently
from indexer.store.reader import Store
from indexer.store.residuals import read_residuals
from indexer.store.schema import RESIDUAL
from indexer.store.vectors import Vectors
from training.encoders import fingerprint_of
from training.errors import SparsightError

REPAIR, AGAIN = "`sparsight doctor --repair` mends it", "make the index anew with `sparsight index PATH`"
DROPS = "`sparsight doctor --repair` drops those pictures, `sparsight add` takes them again"
HINTS = {"dictionary": AGAIN, "classes": AGAIN, "vectors": f"{DROPS}; if none is left, {AGAIN}"}  # of unreadable ones
SAMPLE = 64  # pictures that are coded again
UNIT = 1e-3  # how far a norm may be from 1


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
            store, counts = open_leniently(folder)
            with store:
                found += _examine_database(store, counts)
        except SparsightError as e:
            if not (folder / DATABASE).is_file():
                raise
            found.append(Finding("database", "fault", cause(e), AGAIN))
    return found + _examine_folder(folder, ours)


def _examine_database(store: Store, counts: list[str]) -> list[Finding]:
    """Each check reads the tables that it is named with; one of a table that cannot be read is not made."""
    unreadable = _unreadable(store)

    def hint(table: str) -> str:
        return REPAIR if table in derived(store) else AGAIN

    faults = {"database": [Fault(f"{t} cannot be read: {why}", hint(t)) for t, why in unreadable.items()]}
    if columns := store.bad_columns(store.d):
        hints = {hint(column.split()[0]) for column in columns}
        faults["database"].append(Fault(f"it has no column {', '.join(columns)}", AGAIN if AGAIN in hints else REPAIR))
    else:
        faults["counts"] = [Fault(message) for message in counts]
        with suppress(SparsightError):  # a table that cannot be read was told of
            faults["counts"] += check_concept_counts(store)
        needs = {"codes": {"ids", "vectors", "dictionary", "postings"}}  # else it would say the same again
        needs["residuals"] = {*needs["codes"], "codes", "counts"}
        for name, tables, check in (*CHECKS, *(RESIDUALS if store.meta.residual else ())):
            if not unreadable.keys() & set(tables.split()) and not any(faults.get(n) for n in needs.get(name, ())):
                try:
                    faults[name] = list(check(store))
                except SparsightError as e:
                    faults[name] = [Fault(cause(e), HINTS.get(name, REPAIR))]
    sound = _sound(store)
    found = []
    for name, messages in faults.items():
        found += [Finding(name, "fault", *fault) for fault in messages] or [Finding(name, "ok", sound[name])]
    return [*found, _examine_encoder(store)]


def _sound(store: Store) -> dict[str, str]:
    """What is said of each check that found nothing."""
    meta = store.meta
    is_flat = meta.dense_factory == FLAT
    return {
        "database": "every block can be read",
        "counts": f"{meta.n} pictures, {meta.m} concepts, {meta.nnz} postings",
        "ids": "unique, and each has a row of the vectors of its own",
        "paths": "unique",
        "vectors": "of unit norm, every block with its checksum" if meta.keeps_vectors else "none are kept",
        "thumbnails": "every one with its checksum",
        "dictionary": "atoms of unit norm, with its fingerprint",
        "classes": "of unit norm",
        "postings": "they unpack, every one of a picture and a concept that there is",
        "codes": f"{min(SAMPLE, len(store))} pictures coded again agree"
        if meta.keeps_vectors
        else "there are no vectors to code again",
        "residuals": f"{meta.residual}, one for each picture, with its scale",
        "dense": ("the vectors' file is the dense index" if is_flat else f"{FILE} holds the vectors")
        if meta.keeps_vectors
        else "there are no vectors for one",
    }


def _unreadable(store: Store) -> dict[str, str]:
    """Tables with a block that cannot be read, and why: DuckDB compares a block's checksum when it is read."""
    out = {}
    for (table,) in store.rows("SELECT table_name FROM duckdb_tables() WHERE database_name = 'store' ORDER BY 1"):
        try:
            store.rows(f'SELECT bit_xor(hash(t)) FROM "{table}" t')
        except SparsightError as e:
            out[table] = cause(e).partition(": ")[2]
    return out


def derived(store: Store) -> tuple[str, ...]:
    """The tables that an index can do without, or that follow from the others."""
    return ("posting_blocks", "skipped", *RESIDUAL) if store.meta.keeps_vectors else ("skipped",)


def check_concept_counts(store: Store) -> Iterator[Fault]:
    differ = store.rows(
        "SELECT concept_id FROM concepts LEFT JOIN (SELECT concept_id, sum(count) AS held FROM posting_blocks "
        "GROUP BY 1) USING (concept_id) WHERE images IS DISTINCT FROM coalesce(held, 0)"
    )
    if differ:
        yield Fault(f"{len(differ)} concepts (the first: {differ[0][0]}) have not as many pictures as postings")


def _check_ids(store: Store) -> Iterator[Fault]:
    for column, limit in (("image_id", store.meta.next_id), ("vector_row", store.meta.vector_rows)):
        lacking, beyond, first = store.rows(
            f"SELECT count(*) - count(DISTINCT {column}), count(*) FILTER (WHERE {column} NOT BETWEEN 0 AND ? - 1), "
            f"min({column}) FILTER (WHERE {column} NOT BETWEEN 0 AND ? - 1) FROM images",
            [limit, limit],
        )[0]
        if lacking:
            yield Fault(f"{lacking} rows of images have no {column}, or that of another")
        if beyond:
            yield Fault(f"{beyond} of images' {column} are out of range (the first: {first})")
    order = "SELECT vector_row, lag(vector_row) OVER (ORDER BY image_id) AS before FROM images"
    if astray := store.rows(f"SELECT count(*) FROM ({order}) WHERE vector_row < before")[0][0]:
        yield Fault(f"{astray} of images' vector_row are not in the order of the pictures")
    for table, column in (("concepts", "concept_id"), ("classes", "class_id")):
        numbers = [i for (i,) in store.rows(f"SELECT {column} FROM {table} ORDER BY 1")]
        if numbers != list(range(len(numbers))):
            yield Fault(f"the ids of {table} are not 0 … {len(numbers) - 1}", AGAIN)


def _check_paths(store: Store) -> Iterator[Fault]:
    suspects = "SELECT hash(path) FROM images GROUP BY 1 HAVING count(*) > 1"  # 8 bytes a path are held, not the path
    bad = store.rows(
        f"SELECT path, count(*) FROM images WHERE path IS NULL OR hash(path) IN ({suspects}) "
        "GROUP BY 1 HAVING count(*) > 1 OR path IS NULL ORDER BY 1"
    )
    if bad:
        first = f"{bad[0][1]} of {bad[0][0]}"
        yield Fault(f"{len(bad)} paths name several pictures, or none ({first}); a repair keeps the newest of each")


def _check_vectors(store: Store) -> Iterator[Fault]:
    if not store.meta.keeps_vectors:
        return
    bad_blocks, bad_rows = bad_vectors(store.vectors)
    if bad_blocks:
        rows = store.vector_rows // store.meta.vector_block
        count = int(np.isin(rows, bad_blocks).sum())
        where = f"{len(bad_blocks)} blocks of {store.meta.vectors_file} (the first: {bad_blocks[0]})"
        yield Fault(
            f"{where} are not as they were written: they hold {count} pictures", DROPS if count < len(rows) else AGAIN
        )
    ids = store.image_ids[np.isin(store.vector_rows, bad_rows)]
    if len(ids):
        yield Fault(f"{len(ids)} are not of unit norm (the first: picture {ids[0]})", DROPS)


def bad_vectors(vectors: Vectors) -> tuple[list[int], np.ndarray]:
    """The blocks of a vectors' file that are not as they were written; and, of the others, the rows that are not of
    unit norm."""
    bad_blocks, bad_rows = [], [np.zeros(0, np.int64)]
    for block, rows in vectors.blocks():
        if rows is None:
            bad_blocks.append(block)
        else:
            bad_rows.append(block * vectors.block + np.array(not_unit(rows), np.int64))
    return bad_blocks, np.concatenate(bad_rows)


def _check_thumbnails(store: Store) -> Iterator[Fault]:
    hint = "`sparsight doctor --repair` goes on without them"
    if short := store.lost_thumbnail_bytes():
        yield Fault(f"{store.meta.thumbnails_file} lacks {short} bytes of those that were written", hint)
    lost = sum(jpeg is None for _, jpeg in store.every_thumbnail())
    if lost:
        yield Fault(f"{lost} are not as they were written", hint)


def check_dictionary(store: Store) -> Iterator[Fault]:
    D = store.dictionary()
    store.means()
    names = [str(name) for (name,) in store.rows("SELECT name FROM concepts ORDER BY concept_id")]
    if bad := not_unit(D):
        yield Fault(f"{len(bad)} atoms (the first: {names[bad[0]]}) are not of unit norm", AGAIN)
    elif Dictionary(names, [], [], D, "").fingerprint != store.meta.dictionary_fingerprint:
        yield Fault("its names or atoms are not those that it was built with", AGAIN)


def check_classes(store: Store) -> Iterator[Fault]:
    classes = store.classes()
    if bad := not_unit(classes.T):
        yield Fault(f"{len(bad)} classes (the first: {classes.names[bad[0]]}) are not of unit norm", AGAIN)


def _check_postings(store: Store) -> Iterator[Fault]:
    W = store.codes()
    W.sort_indices()
    places = np.repeat(np.arange(W.shape[0]), np.diff(W.indptr)) * W.shape[1] + W.indices
    if (np.diff(places) < 1).any() or not (np.isfinite(W.data) & (W.data > 0)).all():
        yield Fault("a picture has a concept twice, or by no weight")


def _check_codes(store: Store) -> Iterator[Fault]:
    """Two codes of x within the gap tol differ by 2 √tol at most once put together, each weight by its rounding."""
    coder = store.meta.coder
    rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
    if not len(rows) or not store.meta.keeps_vectors:
        return
    D, W = store.dictionary(), store.codes()[rows]
    again = encode_sparse(store.embeddings(rows), D, coder).W
    differ = np.linalg.norm((again - W) @ D, axis=1)
    allowed = 2 * np.sqrt(coder.tol) + np.diff(W.indptr) * store.packed.step.max(initial=0)
    bad = np.flatnonzero(differ > allowed)
    if len(bad) > (len(rows) // 10 if coder.refit else 0):  # refitted, near ties of the l1 code show
        first = store.image_ids[rows[bad[0]]]
        yield Fault(f"{len(bad)} of {len(rows)} pictures (the first: {first}) have other codes than the coder gives")


def _check_residuals(store: Store) -> Iterator[Fault]:
    hint = REPAIR if store.meta.keeps_vectors else AGAIN
    try:
        if (kept := read_residuals(store)) is None:
            return
        for start, R in kept.blocks():
            if bad := [i for i in not_unit(R) if kept.scales[start + i]]:
                yield Fault(f"the scale of picture {store.image_ids[start + bad[0]]} is not that of its residual", hint)
                return
    except SparsightError as e:
        yield Fault(cause(e), hint)
        return
    rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
    if len(rows) and store.meta.keeps_vectors:
        again = code_residuals(store.embeddings(rows), kept.W[rows], kept.D, kept.quantiser)
        differ = (again.codes != kept.coded.codes[rows]).any(1)
        if differ.sum() > len(rows) // 10:  # near ties show where the weights were rounded
            yield Fault(f"{differ.sum()} of {len(rows)} pictures have other residuals than the quantiser gives", hint)


def _check_dense(store: Store) -> Iterator[Fault]:
    if store.meta.keeps_vectors and store.meta.dense_factory != FLAT and cached_dense(store) is None:
        what = "is missing" if not os.path.lexists(store.folder / FILE) else "is damaged, or of other vectors"
        yield Fault(f"{FILE} {what}", f"the next dense search builds it, or {REPAIR}")


CHECKS: tuple[tuple[str, str, Check], ...] = (  # name, the tables that it reads, the check
    ("ids", "images concepts classes", _check_ids),
    ("paths", "images", _check_paths),
    ("vectors", "images vector_blocks", _check_vectors),
    ("thumbnails", "images", _check_thumbnails),
    ("dictionary", "concepts means", check_dictionary),
    ("classes", "classes", check_classes),
    ("postings", "posting_blocks images concepts", _check_postings),
    ("codes", "posting_blocks images concepts vector_blocks", _check_codes),
    ("dense", "vector_blocks", _check_dense),
)
RESIDUALS: tuple[tuple[str, str, Check], ...] = (("residuals", "posting_blocks images concepts", _check_residuals),)


def _examine_encoder(store: Store) -> Finding:
    source, wanted = store.meta.encoder_source, store.meta.encoder_fingerprint
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
    batches = {path: batch_rows(path) for path in journal.pending(folder)}
    bad = [path.name for path, rows in batches.items() if rows is None]
    found += [Finding("pending", "fault", f"the batch {name} is damaged", REPAIR) for name in bad]
    if waiting := sum(rows or 0 for rows in batches.values()):
        message = f"{waiting} encoded pictures wait for `sparsight add` or `index` to be called again"
        found.append(Finding("pending", "note", message))
    known = {DATABASE, FILE, chance.FILE, familiarity.FILE, WAL, lock.LOCK, lock.HOLDER, journal.FOLDER}
    known |= {path.name for path in lock.leftovers(folder)}
    if (meta := lock.current_meta(folder)) is not None:
        known |= {meta.vectors_file, meta.thumbnails_file}
    for path in sorted(folder.iterdir()):
        if ".damaged-" in path.name:
            found.append(Finding("files", "note", f"{path.name} was put aside by a repair; remove it when you will"))
        elif path.name not in known and (meta is not None or not lock.is_data_file(path.name)):
            found.append(Finding("files", "note", f"{path.name} is no file of an index; it is left alone"))
    sound = {"leftovers": "none", "pending": "none", "files": "no others"}
    missing = sound.keys() - {f.check for f in found}
    return found + [Finding(name, "ok", text) for name, text in sound.items() if name in missing]


def batch_rows(path: Path) -> int | None:
    """How many pictures a batch holds; None where it is damaged."""
    try:
        return len(journal.read_batch(path)[0])
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def not_unit(A: np.ndarray) -> list[int]:
    """The rows of A (n, d) that are not finite and of unit norm."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.flatnonzero(~(np.abs(np.linalg.norm(A, axis=1) - 1) <= UNIT)).tolist()


def cause(e: SparsightError) -> str:
    """What an error says, without the hint that leads here."""
    return str(e).removesuffix(f"; {HINT}")
