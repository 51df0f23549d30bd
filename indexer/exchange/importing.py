"""Builds an index from an export, or from an index of an earlier format; believes nothing that it reads."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from indexer.coding import Dictionary, encode_sparse
from indexer.exchange.checks import check_tables
from indexer.exchange.loading import Loaded, lacking, loaded, reading
from indexer.exchange.streaming import Embeddings, codes_of, thumbnails_of
from indexer.exchange.tables import EXPORT, FORMATS, PARTS, READABLE, part_path
from indexer.milvus.address import Address
from indexer.milvus.held import work_folder
from indexer.milvus.writer import refuse_in_milvus, refuse_standing, write_milvus
from indexer.residual import Coded, Quantiser, make_residuals, read_description
from indexer.store import DATABASE, Classes, Contents, Described, IndexMeta, Pictures, Skip, write_store, writing
from indexer.store.approximate import refuse_description
from indexer.store.database import refuse_unreadable_path
from indexer.store.dense import FLAT
from indexer.store.meta import DERIVED, LATER, MetaError, count_of, parse_meta
from indexer.store.residuals import coded_of, quantiser_of
from indexer.store.schema import RESIDUAL
from training.encoders import Means
from training.encoders.centring import Rows
from training.errors import CallError, SparsightError
from training.files import full_path

OPTIONAL_META = (*DERIVED, *LATER, "next_id", "root")  # that an export need not have


def import_index(place: Path | Address, source: Path) -> IndexMeta:
    """Builds an index from an export of either format, or from an index folder of an earlier format.

    place: a folder, or an address in Milvus. Where an export has no codes, as from an index whose postings are damaged,
    the embeddings are coded anew. Raises `SparsightError` for the first thing that is not as it should be, and where
    there is an index at that place.
    """
    source = full_path(source)
    refuse_unreadable_path(source, "")
    if isinstance(place, Path):
        place = full_path(place)
        refuse_unreadable_path(place)
        _refuse_an_index(place)
    if not source.is_dir():
        raise SparsightError(f"no export in {source}: it is no folder; `sparsight export` writes one")
    if isinstance(place, Address):
        with writing(work_folder(place), "import"):
            refuse_standing(place)
            return take_over(place, source)
    with loaded(source) as held:
        with reading(source):
            contents = _contents(held)
        with writing(place, "import"):
            _refuse_an_index(place)  # another process may have made one meanwhile
            return write_store(place, contents)  # reads the large tables, part by part


def take_over(place: Path | Address, source: Path) -> IndexMeta:
    """Makes an export the index of a place, whatever that held. The caller holds the place's lock. Raises
    `SparsightError` as `import_index` does."""
    with loaded(source) as held:
        with reading(source):
            contents = _contents(held)
        if isinstance(place, Path):
            return write_store(place, contents)
        refuse_in_milvus(place, contents.meta.dense_factory, contents.meta.residual)
        return write_milvus(place, contents)


def _refuse_an_index(folder: Path) -> None:
    if os.path.lexists(folder / DATABASE):
        raise SparsightError(f"{folder} holds an index already: name another --index")


def _meta(rows: dict[str, str], source: Path, n: int, m: int, tables: set[str]) -> IndexMeta:
    """The meta data of an export, its counts compared with the tables."""
    version = rows.get("export", "none")
    if version not in READABLE and not (source / DATABASE).is_file():
        raise SparsightError(f"{source} is an export of version {version}, this sparsight reads {EXPORT}")
    if "root" not in rows and os.path.isabs(rows.get("dataset", "")):  # export 1 had the folder in the name's place
        rows |= {"root": rows["dataset"], "dataset": Path(rows["dataset"]).name or rows["dataset"]}
    try:
        meta = parse_meta({k: v for k, v in rows.items() if k not in DERIVED}, without=OPTIONAL_META)
    except MetaError as e:
        raise SparsightError(f"{source}: in meta, {e}; export again") from e
    for key, said, counted in (("n", meta.n, n), ("m", meta.m, m)):
        if said != counted:
            raise SparsightError(f"{source}: meta says {key} = {said}, there are {counted}; export again")
    if meta.dense_factory != FLAT:
        try:
            refuse_description(meta.dense_factory, meta.d, n)
        except CallError as e:
            raise SparsightError(f"{source}: in meta, {e}; write Flat in its place") from e
    if meta.keeps_vectors and "vectors" not in tables:
        raise lacking(source, "vectors")
    if meta.residual:
        try:
            read_description(meta.residual, meta.d)
        except CallError as e:
            raise SparsightError(f"{source}: in meta, {e}") from e
    for table, parts in _parts(rows, source).items():
        if table in tables and parts > 1 and not any(part_path(source, table, f, parts - 1).is_file() for f in FORMATS):
            raise SparsightError(f"{source}: {table} has {parts} files, the last is missing; export again")
    return meta


def _parts(rows: dict[str, str], source: Path) -> dict[str, int]:
    """Into how many files each table was cut."""
    with suppress(ValueError):
        parts = json.loads(rows.get(PARTS, "{}"))
        if isinstance(parts, dict) and all(type(n) is int for n in parts.values()):
            return parts
    raise SparsightError(f"{source}: in meta, export_parts is no number of files by table; export again")


def _contents(held: Loaded) -> Contents:
    """The loaded tables, checked against each other."""
    con, source = held.con, held.source
    rows = {str(k): str(v) for k, v in con.execute("SELECT key, value FROM meta").fetchall()}
    if (d := count_of(rows.get("d"))) is None:
        raise SparsightError(f"{source}: meta says d = {rows.get('d')}, it must be a whole number")
    check_tables(held, d)
    ids = np.array(_of_images(held, "image_id"), np.int32)
    D = _vectors(held, "SELECT atom AS v FROM concepts ORDER BY concept_id", d)
    meta = _meta(rows, source, len(ids), len(D), held.tables)
    X: Rows = Embeddings(held, d) if meta.keeps_vectors else np.zeros((len(ids), 0), np.float32)
    l1, gap = (np.array(_of_images(held, name), np.float32) for name in ("l1", "gap"))
    if "codes" in held.tables:
        W = codes_of(held, ids, len(D))
    elif not meta.keeps_vectors:
        raise lacking(source, "codes")
    else:
        codes = encode_sparse(X[:], D, meta.coder)
        W, l1, gap = codes.W, codes.l1, codes.gap
    means = {m: np.array(e, np.float32) for m, e in con.execute("SELECT modality, embedding FROM means").fetchall()}
    kept = _residuals(held, meta, ids)
    if meta.residual and kept is None and not meta.keeps_vectors:
        raise lacking(source, "residuals")
    quantiser, residuals = kept or make_residuals(X, W, D, meta.residual)
    return Contents(
        meta=meta,
        ids=ids,
        quantiser=quantiser,
        pictures=Pictures(X=X, W=W, l1=l1, gap=gap, described=_described(held, ids), residuals=residuals),
        dictionary=Dictionary(
            names=held.column("SELECT name FROM concepts ORDER BY concept_id"),
            aliases=[a or [] for a in held.column("SELECT aliases FROM concepts ORDER BY concept_id")],
            parents=held.column("SELECT parent FROM concepts ORDER BY concept_id"),
            D=D,
            source=next(iter(held.column("SELECT source FROM concepts")), ""),
        ),
        classes=Classes(
            held.column("SELECT name FROM classes ORDER BY class_id"),
            _vectors(held, "SELECT embedding AS v FROM classes ORDER BY class_id", d),
        ),
        means=Means(means["image"], means["text"]) if means else None,
        skipped=[Skip(*row) for row in con.execute("SELECT path, reason FROM skipped").fetchall()],
    )


def _vectors(held: Loaded, sql: str, d: int) -> np.ndarray:
    """The lists of d numbers that SQL answers as its column v: (n, d) float32."""
    return np.asarray(held.arrays(f"SELECT unnest(v)::FLOAT AS v FROM ({sql})")["v"], np.float32).reshape(-1, d)


def _of_images(held: Loaded, name: str) -> list:
    return held.column(f"SELECT {name} FROM images ORDER BY image_id")


def _described(held: Loaded, ids: np.ndarray) -> Described:
    return Described(
        paths=_of_images(held, "path"),
        splits=_of_images(held, "split"),
        labels=_of_images(held, "label"),
        terms=_of_images(held, "term"),
        hashes=_of_images(held, "content_hash"),
        sizes=_of_images(held, "file_bytes"),
        changed=_of_images(held, "file_changed"),
        thumbnails=thumbnails_of(held, ids),
    )


def _residuals(held: Loaded, meta: IndexMeta, ids: np.ndarray) -> tuple[Quantiser, Coded] | None:
    """The quantiser and the residuals of the pictures `ids` (n,); None where the export has none of them."""
    con, source, tables = held.con, held.source, held.tables
    if not meta.residual or "codes" not in tables or not tables & set(RESIDUAL):
        return None
    if missing := [table for table in RESIDUAL if table not in tables]:
        raise lacking(source, missing[0])
    axes = con.execute("SELECT direction FROM residual_axes ORDER BY axis").fetchall()
    rows = con.execute("SELECT part, code, centroid FROM residual_centroids ORDER BY 1, 2").fetchall()
    rest = con.execute("SELECT image_id, scale, code FROM residuals ORDER BY image_id").fetchall()
    try:
        A = np.array([axis for (axis,) in axes], np.float32).reshape(len(axes), meta.d)
        parts, codes = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
        quantiser = quantiser_of(A, parts, codes, [np.array(row[2]) for row in rows])
        shape = read_description(meta.residual, meta.d)
        if (len(quantiser.C), quantiser.bits, len(A)) != shape[:3]:
            raise ValueError(f"the quantiser is no {meta.residual}")
        scales = np.array([row[1] for row in rest], np.float32)
        return quantiser, coded_of(ids, np.array([r[0] for r in rest]), scales, [r[2] for r in rest], quantiser)
    except ValueError as e:
        raise SparsightError(f"{source}: its residuals: {e}; export again") from e
