"""Makes good what of an index can be derived; what cannot is dropped picture by picture, or the repair is refused.

Only the vectors, the dictionary and what is known of each picture cannot be derived. From what of them can be trusted
the index is written anew, as a build writes it; the files that it replaces stay beside it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
from scipy import sparse

from indexer.coding import Dictionary, encode_sparse
from indexer.residual import Coded, Quantiser, code_residuals, learn_quantiser
from indexer.store import doctor, journal, lock
from indexer.store.contents import Contents, Described, ImageRow, Pictures, Skip
from indexer.store.database import DATABASE, WAL, open_database
from indexer.store.dense import FILE, FLAT, build_dense, cached_dense, save_dense
from indexer.store.doctor import AGAIN, derived
from indexer.store.lenient import open_leniently
from indexer.store.reader import Store
from indexer.store.residuals import read_coded, read_quantiser
from indexer.store.vectors import Gathered, Vectors
from indexer.store.writer import data_files, write_store
from training.errors import SparsightError
from training.terminal import progress

HARMLESS = {"dense", "leftovers", "pending"}  # faults for which the database need not be written anew


def repair(folder: Path) -> list[str]:
    """Makes good what can be derived, holding the lock; says what it did.

    Raises `SparsightError` where there is no index, or where what is lost cannot be derived: then the index is as it
    was.
    """
    if not os.path.lexists(folder / WAL):
        try:
            open_database(folder).close()
        except SparsightError as e:
            raise SparsightError(f"{doctor.cause(e)}; nothing of it can be read, {AGAIN}") from e
    done = [f"removed {path.name}, left by a writer that died" for path in lock.leftovers(folder)]
    with lock.writing(folder, "doctor"):
        for path in lock.leftovers(folder):  # asked again: a writer that was alive may have named its files since
            path.unlink(missing_ok=True)
        if os.path.lexists(folder / WAL):
            aside = _free_name(folder / WAL)
            (folder / WAL).rename(aside)
            done.append(f"put {WAL} aside as {aside.name}")
        for path in journal.pending(folder):
            if doctor.batch_rows(path) is None:
                path.unlink()
                done.append(f"removed the damaged batch {path.name}")
        faults = {f.check for f in doctor.examine(folder, ours=True) if f.status == "fault"}
        if faults - HARMLESS:
            done += _rewrite(folder, faults)
        done += _repair_dense(folder)
    return done


def _repair_dense(folder: Path) -> list[str]:
    with Store(folder) as store:
        if store.meta.dense_factory == FLAT or not store.meta.keeps_vectors or cached_dense(store) is not None:
            return []
        save_dense(store, build_dense(store))
        return [f"built {FILE} from the vectors"]


def _rewrite(folder: Path, faults: set[str]) -> list[str]:
    """Writes the index anew from what of it can be read; says what it did."""
    put_aside: list[Path] = []
    try:
        store, _ = open_leniently(folder)
        with store:
            contents, done, lost = _salvage(store, faults)
            try:
                for path in (folder / DATABASE, *data_files(folder)):
                    put_aside += _put_aside(path)
                write_store(folder, contents)
            except BaseException:
                for path in put_aside:
                    path.unlink()
                raise
            if lost.count:
                done.append(f"lost {lost.count} thumbnails: they cannot be read")
    except SparsightError as e:
        raise SparsightError(f"cannot repair {folder}: {doctor.cause(e)}; {AGAIN} (nothing was changed)") from e
    return [*done, f"wrote the index anew; the one before is {', '.join(path.name for path in put_aside)}"]


def _put_aside(path: Path) -> list[Path]:
    """A second name for a file that is about to be replaced."""
    if not path.is_file():
        return []
    aside = _free_name(path)
    try:
        os.link(path, aside)
    except OSError:  # a file system without links
        copyfile(path, aside)
    return [aside]


@dataclass
class _Lost:
    """How many thumbnails could not be read."""

    count: int = 0


def _salvage(store: Store, faults: set[str]) -> tuple[Contents, list[str], _Lost]:
    """All that an index is to hold, and what was done to it; raises `SparsightError` where that cannot be derived."""
    done: list[str] = []
    if bad := [c for c in store.bad_columns(store.d) if c.split()[0] not in derived(store)]:
        raise SparsightError(f"it has no column {', '.join(bad)}")
    rows, vectors, dropped = _sound_pictures(store)
    if dropped:
        done.append(f"dropped {dropped} pictures that were not whole; `sparsight add` takes them again")
    dictionary = _salvage_dictionary(store)
    places = np.array([row for _, row in rows], np.int64)
    pictures, X = [image for image, _ in rows], Gathered(vectors, places)
    ids = np.array([image.image_id for image in pictures], np.int64)
    l1, gap = (np.array([getattr(p, key) for p in pictures], np.float32) for key in ("l1", "gap"))
    if not store.meta.keeps_vectors and (fault := next(doctor.check_concept_counts(store), None)):
        raise SparsightError(f"{fault.message}, and it keeps no embeddings to make codes from")
    W = _salvage_codes(store, ids) if not faults & {"ids", "postings", "codes"} else None
    coded_again = W is None
    if W is None:
        if not store.meta.keeps_vectors:
            raise SparsightError("its codes cannot be trusted, and it keeps no embeddings to make them from")
        with progress("code", len(X)) as step:
            codes = encode_sparse(X[:], dictionary.D, store.meta.coder, progress=step)
        W, gap, l1 = codes.W, codes.gap, codes.l1
        done.append(f"coded {len(X)} pictures again")
    quantiser, residuals = None, None
    if store.meta.residual:
        kept = None if coded_again or "residuals" in faults else _salvage_residuals(store, ids)
        quantiser, residuals = kept or _residuals_again(store, X, W, dictionary.D, done)
    skipped, lost = _salvage_skipped(store, done), _Lost()
    described = Described.of_rows(pictures, _thumbnails(store, ids, lost))
    contents = Contents(
        meta=store.meta,
        pictures=Pictures(X=X, W=W, l1=l1, gap=gap, described=described, residuals=residuals),
        dictionary=dictionary,
        quantiser=quantiser,
        classes=store.classes(),
        means=store.means(),
        skipped=skipped,
        ids=ids,
    )
    return contents, done, lost


def _sound_pictures(store: Store) -> tuple[list[tuple[ImageRow, int]], Vectors, int]:
    """The pictures whose row and vector can be trusted, by id, each with its row of the vectors' file; that file; and
    how many other pictures there are."""
    columns = ", ".join((*ImageRow._fields, "vector_row"))
    every = [(ImageRow(*row[:-1]), row[-1]) for row in store.rows(f"SELECT DISTINCT {columns} FROM images ORDER BY 1")]
    ids, at = Counter(image.image_id for image, _ in every), Counter(row for _, row in every)
    # What shares an id or a row of the vectors tells nothing for certain.
    sound = [(p, row) for p, row in every if p.image_id is not None and ids[p.image_id] == at[row] == 1]
    newest = {p.path: p.image_id for p, _ in sound if p.path is not None}
    vectors, good = _sound_rows(store)
    kept = [
        (p, row)
        for p, row in sound
        if newest.get(p.path) == p.image_id and 0 <= p.image_id < 2**31 and row is not None and 0 <= row < len(good)
    ]
    kept = [(p, row) for p, row in kept if good[row]]
    if every and not kept:
        raise SparsightError("no picture of it is whole")
    return kept, vectors, len(every) - len(kept)


def _sound_rows(store: Store) -> tuple[Vectors, np.ndarray]:
    """The vectors' file, as much of it as there is, and which of its rows (r,) can be trusted."""
    meta = store.meta
    path = store.folder / meta.vectors_file
    try:
        whole = meta.vector_rows
        if meta.keeps_vectors:
            whole = min(whole, path.stat().st_size // (4 * meta.d))
        if whole < meta.vector_rows:  # cut off: the block that is not whole has no checksum
            whole -= whole % meta.vector_block
        crcs, known = _checksums(store, -(-whole // meta.vector_block))
        vectors = Vectors(path, whole, meta.width, meta.vector_block, crcs)
    except (OSError, ValueError, ZeroDivisionError) as e:
        raise SparsightError(f"its embeddings in {meta.vectors_file} cannot be read: {e}") from e
    good = np.ones(whole, bool)
    bad_blocks, bad_rows = doctor.bad_vectors(vectors) if meta.keeps_vectors else ([], np.zeros(0, np.int64))
    good[bad_rows] = False
    for block in {*bad_blocks, *np.flatnonzero(~known).tolist()}:
        good[block * meta.vector_block : (block + 1) * meta.vector_block] = False
    return vectors, good


def _checksums(store: Store, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """The checksums (blocks,) of the vectors' file, and of which of its blocks there is one."""
    crcs, known = np.zeros(blocks, np.uint32), np.zeros(blocks, bool)
    sql = "SELECT block, min(crc) FROM vector_blocks WHERE block BETWEEN 0 AND ? - 1 GROUP BY 1 HAVING count(*) = 1"
    for block, crc in store.rows(sql, [blocks]):
        if crc is not None:
            crcs[block], known[block] = crc, True
    return crcs, known


def _salvage_dictionary(store: Store) -> Dictionary:
    D = store.dictionary()
    rows = store.rows("SELECT concept_id, name, aliases, parent, source FROM concepts ORDER BY 1")
    for name, check in (("dictionary", doctor.check_dictionary), ("classes", doctor.check_classes)):
        if fault := next(check(store), None):
            raise SparsightError(f"the {name}: {fault.message}")
    if [row[0] for row in rows] != list(range(len(rows))):
        raise SparsightError("the ids of the concepts are not those of the dictionary")
    return Dictionary(
        names=[str(row[1]) for row in rows],
        aliases=[list(row[2] or ()) for row in rows],
        parents=[row[3] for row in rows],
        D=D,
        source=next((row[4] for row in rows), ""),
    )


def _salvage_codes(store: Store, ids: np.ndarray) -> sparse.csr_matrix | None:
    """W (n, m) of pictures; None where the postings cannot be read."""
    try:
        return store.codes()[np.isin(store.image_ids, ids)]
    except SparsightError:
        return None


def _salvage_residuals(store: Store, ids: np.ndarray) -> tuple[Quantiser, Coded] | None:
    """The quantiser and the residuals of pictures; None where they cannot be read."""
    try:
        quantiser = read_quantiser(store)
        return None if quantiser is None else (quantiser, read_coded(store, quantiser, ids))
    except SparsightError:
        return None


def _residuals_again(
    store: Store, X: Gathered, W: sparse.csr_matrix, D: np.ndarray, done: list[str]
) -> tuple[Quantiser, Coded]:
    """The residuals coded anew, by the quantiser that there is, or by one that is learnt anew."""
    if not store.meta.keeps_vectors:
        raise SparsightError("its residuals cannot be trusted, and it keeps no embeddings to make them from")
    try:
        quantiser = read_quantiser(store)
    except SparsightError:
        quantiser = None
    if quantiser is None:
        quantiser = learn_quantiser(X, W, D, store.meta.residual)
        done.append("learnt the quantiser of the residuals again")
    done.append(f"coded {len(X)} residuals again")
    return quantiser, code_residuals(X, W, D, quantiser)


def _salvage_skipped(store: Store, done: list[str]) -> Sequence[Skip]:
    try:
        return store.skipped()
    except SparsightError:
        done.append("lost the list of what was skipped: its table cannot be read")
        return ()


def _thumbnails(store: Store, ids: np.ndarray, lost: _Lost) -> Iterator[bytes | None]:
    """The thumbnails of some pictures (ids ascending), read as they are asked for; None where there is none."""
    try:
        store.lost_thumbnail_bytes()
    except SparsightError:  # the file cannot be opened
        lost.count += store.rows("SELECT count(thumbnail_start) FROM images")[0][0]
        yield from [None] * len(ids)
        return
    every = store.every_thumbnail()
    image_id, jpeg = next(every, (-1, None))
    for wanted in ids.tolist():
        while 0 <= image_id < wanted:
            image_id, jpeg = next(every, (-1, None))
        lost.count += image_id == wanted and jpeg is None
        yield jpeg if image_id == wanted else None


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return aside
