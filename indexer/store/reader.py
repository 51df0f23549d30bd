"""An open index: reads what a question asks for, and no more.

Image ids are given once: a removed picture's is not used again, so they may have gaps. Row i of every array is the
i-th picture by id. What is read is the index as it was when it was opened, whatever a writer does meanwhile: the
database is replaced, never changed, and of the files beside it only what that database counts is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from scipy import sparse

from indexer.store.contents import Classes, Concept, ImageRow, Skip
from indexer.store.database import DATABASE, HINT, ids_table, inode, open_database, read_meta_rows, stacked, told_as
from indexer.store.meta import LATER, IndexMeta, MetaError, parse_meta
from indexer.store.postings import Postings
from indexer.store.schema import tables_of
from indexer.store.thumbnails import Place, Thumbnails
from indexer.store.vectors import DamagedVectors, Vectors
from training.encoders import Means
from training.errors import SparsightError
from training.files import full_path

MANY = 4096  # thumbnails whose places are read at a time
FEW = 50  # pictures whose codes are read block by block; for more all postings are
TRIES = 5  # a compaction may take a file away between opening the database and opening that file


class Store:
    """An index folder, opened to be read.

    meta: what the index says of itself; given, it stands in place of what the table `meta` holds. check: whether the
    counts and the checksums are compared; without, that is left to the caller. Raises `SparsightError` where there is
    no index, or one of another format, or whose meta data, tables, counts and files contradict each other.
    """

    def __init__(self, folder: Path | str, *, meta: IndexMeta | None = None, check: bool = True):
        self.folder, self._checks = full_path(folder), check
        for attempt in range(TRIES):
            self._inode = inode(self.folder / DATABASE)  # before it is opened: it may be replaced right after
            self.con = open_database(self.folder)
            self._closed = False
            try:
                self.meta = meta or self._read_meta()
                if check:
                    self._check()
                    self.vectors, self._thumbnails  # noqa: B018 (opened now: a compaction may take them away)
                return
            except BaseException as e:
                self.close()
                taken_away = isinstance(e.__cause__, FileNotFoundError) and not self.is_current()
                if not taken_away or attempt + 1 == TRIES:
                    raise

    def _read_meta(self) -> IndexMeta:
        try:
            return parse_meta(read_meta_rows(self.con, self.folder), without=LATER)
        except MetaError as e:
            raise self.damaged(f"in its meta data, {e}") from e

    def _check(self) -> None:
        """What every query relies on, where it is cheap: the tables' columns, and their lengths."""
        if wrong := self.bad_columns(self.d):
            raise self.damaged(f"it has no column {wrong[0]}")
        lengths = self.rows(
            "SELECT count(*), (SELECT count(*) FROM concepts), "
            "coalesce(min(image_id), 0), coalesce(max(image_id), -1), "
            "coalesce(min(vector_row), 0), coalesce(max(vector_row), -1), count(vector_row) FROM images"
        )[0]
        n, m, first, last, first_row, last_row, rows = lengths
        in_range = first >= 0 and last < self.meta.next_id and first_row >= 0 and last_row < self.meta.vector_rows
        if (n, m, rows) != (self.meta.n, self.meta.m, n) or not in_range:
            raise self.damaged("its counts are not those of its tables")

    def bad_columns(self, d: int) -> list[str]:
        """The columns of the schema that are missing, or of another type."""
        tables = tables_of(self.meta.residual)
        wanted = {(table, c.name, c.type.format(d=d)) for table, columns in tables.items() for c in columns}
        columns = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE database_name = 'store'"
        return sorted(" ".join(column) for column in wanted - set(self.rows(columns)))

    def damaged(self, what: str) -> SparsightError:
        """The fault to raise where the index contradicts itself."""
        return SparsightError(f"the index {self.folder} is damaged: {what}; {HINT}")

    def is_current(self) -> bool:
        """False once another generation has taken the file's place."""
        now = inode(self.folder / DATABASE)
        return now is not None and now == self._inode

    def close(self) -> None:
        self.con.close()
        self._closed = True
        for name in ("vectors", "_thumbnails"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Pictures."""
        return self.meta.n

    @property
    def d(self) -> int:
        """Dimensions of an embedding."""
        return self.meta.d

    def columns(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        """The columns that a statement answers, as arrays; none may have a NULL."""
        with self._faults():
            columns = self.con.execute(sql, list(parameters)).fetchnumpy()
            for name, column in columns.items():
                if np.ma.is_masked(column) or (column.dtype == object and any(map(np.ma.is_masked, column))):
                    raise ValueError(f"a row has no {name}")
        return columns

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple]:
        """What a statement answers; raises `SparsightError` where the file cannot be read."""
        with self._faults():
            return self.con.execute(sql, list(parameters)).fetchall()

    def _faults(self) -> AbstractContextManager[None]:
        def tell(reason: str) -> str:
            if self._closed:
                return f"the index {self.folder} was closed: open it again"
            return f"cannot read the index {self.folder}: {reason}; {HINT}"

        return told_as(tell)

    # Pictures

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(n,) int64, ascending: the id of row i of `embeddings`, `codes` and `images`."""
        if len(self) == self.meta.next_id:  # none was removed
            return np.arange(len(self))
        return self.columns("SELECT image_id FROM images ORDER BY image_id")["image_id"].astype(np.int64)

    def images(self, image_ids: Sequence[int] | None = None) -> list[ImageRow]:
        """Rows of `images` in the order asked for (all of them, by id, without one)."""
        columns = ", ".join(ImageRow._fields)
        if image_ids is None:
            return [ImageRow(*row) for row in self.rows(f"SELECT {columns} FROM images ORDER BY image_id")]
        return [ImageRow(*row) for row in self._of_pictures(columns, image_ids)]

    def _of_pictures(self, columns: str, image_ids: Sequence[int]) -> list[tuple]:
        """Columns of `images`, the id first, in the order asked for; each picture must be there."""
        sql = f"SELECT {columns} FROM images JOIN {ids_table('image_id')} USING (image_id)"
        by_id = {row[0]: row for row in self.rows(sql, [list(image_ids)])}
        if missing := [i for i in image_ids if i not in by_id]:
            raise self.damaged(f"it has no picture {missing[0]}")
        return [by_id[i] for i in image_ids]

    def images_at(self, paths: Iterable[str]) -> dict[str, ImageRow]:
        """The pictures at some paths, by path."""
        return {row.path: row for row in self._matching("path", paths)}

    def images_holding(self, hashes: Iterable[str]) -> list[ImageRow]:
        """The pictures of some contents, by id."""
        return self._matching("content_hash", hashes)

    def _matching(self, column: str, values: Iterable[str]) -> list[ImageRow]:
        sql = (
            f"SELECT {', '.join(ImageRow._fields)} FROM images WHERE {column} IN (SELECT unnest(?::VARCHAR[])) "
            "ORDER BY image_id"
        )
        wanted = list(values)
        return [ImageRow(*row) for row in self.rows(sql, [wanted])] if wanted else []

    def content_prefixes(self) -> np.ndarray:
        """(h,) int64, ascending: the first 60 bits of each content hash; 8 bytes a picture."""
        sql = "SELECT try_cast('0x' || content_hash[:15] AS BIGINT) AS h FROM images WHERE content_hash IS NOT NULL"
        prefixes = self.columns(f"SELECT h FROM ({sql}) WHERE h IS NOT NULL")["h"].astype(np.int64)
        return np.sort(prefixes)

    def skipped(self) -> list[Skip]:
        """The files that were not taken, by path."""
        return [Skip(*row) for row in self.rows("SELECT path, reason FROM skipped ORDER BY path")]

    # Embeddings and thumbnails: the files beside the database

    @cached_property
    def vectors(self) -> Vectors:
        """The file of embeddings; row `vector_rows[i]` of it is the i-th picture's."""
        meta = self.meta
        crcs = self.columns("SELECT crc FROM vector_blocks ORDER BY block")["crc"].astype(np.uint32)
        path, block = self.folder / meta.vectors_file, max(1, meta.vector_block)
        try:
            with self.vectors_trusted():
                return Vectors(path, meta.vector_rows, meta.width, block, crcs, check=self._checks)
        except OSError as e:
            raise self._unreadable(path, e) from e

    @contextmanager
    def vectors_trusted(self) -> Iterator[None]:
        """Tells of damage that is found in the vectors' file while it is read or searched."""
        try:
            yield
        except DamagedVectors as e:
            raise self.damaged(f"its embeddings are not those that were written ({e})") from e

    def _unreadable(self, path: Path, e: OSError) -> SparsightError:
        return SparsightError(f"cannot read the index {self.folder}: {path.name}: {e.strerror}; {HINT}")

    @cached_property
    def vector_rows(self) -> np.ndarray:
        """(n,) int64: the row of each picture in the vectors' file, by id."""
        if not self.meta.dead:
            return np.arange(len(self))
        return self.columns("SELECT vector_row FROM images ORDER BY image_id")["vector_row"].astype(np.int64)

    @cached_property
    def ids_by_row(self) -> np.ndarray | None:
        """(vector_rows,) int64: the picture of each row of the vectors' file, −1 where it was removed; None where row
        i is that of picture i."""
        if not self.meta.dead and len(self) == self.meta.next_id:
            return None
        ids = np.full(self.meta.vector_rows, -1)
        ids[self.vector_rows] = self.image_ids
        return ids

    def embeddings(self, places: np.ndarray | None = None) -> np.ndarray:
        """X (n, d), or the rows of it at some places (k,) of 0 … n − 1.

        Where no picture was removed X is a view of the mapped file. Raises `SparsightError` for damaged blocks, and
        `CallError` where the index keeps no embeddings.
        """
        self.meta.need_vectors(self.folder)
        with self.vectors_trusted():
            if places is None and not self.meta.dead:
                return self.vectors[:]
            return self.vectors.take(self.vector_rows if places is None else self.vector_rows[places])

    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        """Rows of X (len(image_ids), d), in their order."""
        self.meta.need_vectors(self.folder)
        rows = np.array([row for _, row in self._of_pictures("image_id, vector_row", image_ids)], np.int64)
        with self.vectors_trusted():
            return self.vectors.take(rows)

    @cached_property
    def _thumbnails(self) -> Thumbnails:
        path = self.folder / self.meta.thumbnails_file
        try:
            return Thumbnails(path, self.meta.thumbnail_bytes, check=self._checks)
        except ValueError as e:
            raise self.damaged(f"its thumbnails are not those that were written ({e})") from e
        except OSError as e:
            raise self._unreadable(path, e) from e

    def thumbnails(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        """JPEG bytes by image id; pictures without one are left out."""
        found: dict[int, bytes] = {}
        for image_id, place in self.thumbnail_places(image_ids).items():
            if (jpeg := self.read_thumbnail(place)) is None:
                raise self.damaged(f"the thumbnail of picture {image_id} is not the one that was written")
            found[image_id] = jpeg
        return found

    def thumbnail_places(self, image_ids: Sequence[int]) -> dict[int, Place]:
        """Where in the thumbnails' file some pictures' lie."""
        sql = (
            "SELECT image_id, thumbnail_start, thumbnail_bytes, thumbnail_crc FROM images "
            f"JOIN {ids_table('image_id')} USING (image_id) WHERE thumbnail_start IS NOT NULL"
        )
        rows = self.rows(sql, [list(image_ids)])
        return {i: Place(start, size or 0, crc or 0) for i, start, size, crc in rows}

    def read_thumbnail(self, place: Place) -> bytes | None:
        """The JPEG at a place; None where it is not the one that was written."""
        return self._thumbnails.read(place)

    def every_thumbnail(self) -> Iterator[tuple[int, bytes | None]]:
        """The id and the JPEG of every picture that has one, by id; None for one that is not as it was written."""
        for start in range(0, len(self), MANY):
            places = self.thumbnail_places(self.image_ids[start : start + MANY].tolist())
            for image_id, place in sorted(places.items()):
                yield image_id, self.read_thumbnail(place)

    def lost_thumbnail_bytes(self) -> int:
        """How much shorter the thumbnails' file is than it was written."""
        return self.meta.thumbnail_bytes - self._thumbnails.size

    # Concepts and classes

    def dictionary(self) -> np.ndarray:
        """D (m, d)."""
        D = stacked(self.columns("SELECT atom FROM concepts ORDER BY concept_id")["atom"], self.d)
        if not np.isfinite(D).all():
            raise self.damaged("an atom of its dictionary is not a vector")
        return D

    def classes(self) -> Classes:
        """Class names, and T (c, d)."""
        columns = self.columns("SELECT name, embedding FROM classes ORDER BY class_id")
        return Classes([str(name) for name in columns["name"]], stacked(columns["embedding"], self.d))

    def means(self) -> Means | None:
        """What queries are centred on, as the index's embeddings were; None where they were not."""
        columns = self.columns("SELECT modality, embedding FROM means ORDER BY 1")
        if not len(columns["modality"]):
            return None
        if list(columns["modality"]) != ["image", "text"]:
            raise self.damaged("its means are not those of pictures and texts")
        return Means(*stacked(columns["embedding"], self.d))

    def concepts(self) -> list[Concept]:
        """Every concept, with the number of pictures that it helps to make up."""
        rows = self.rows("SELECT concept_id, name, aliases, parent, images FROM concepts ORDER BY concept_id")
        if [row[0] for row in rows] != list(range(len(rows))) or any(
            None in (name, count, *(aliases or ())) for _, name, aliases, _, count in rows
        ):
            raise self.damaged("a concept has no number, name or count of its own")
        return [Concept(i, name, tuple(aliases or ()), parent, count) for i, name, aliases, parent, count in rows]

    # Codes

    def postings(self, concept_ids: Sequence[int] | None = None) -> Postings:
        """The packed postings, of some concepts alone or of all: no other concept's blocks are read.

        Raises `SparsightError` where they are damaged.
        """
        condition = "true" if concept_ids is None else "concept_id IN (SELECT unnest(?::INTEGER[]))"
        bound = () if concept_ids is None else (list(concept_ids),)
        found = self._blocks(condition, bound)
        counts = self.columns(f"SELECT concept_id, images FROM concepts WHERE {condition}", bound)
        with self.damage():
            if self._checks and (found.images[counts["concept_id"]] != counts["images"]).any():
                raise ValueError("a concept has not as many as it should")
        return found

    def _blocks(self, condition: str, bound: Sequence[object]) -> Postings:
        """The blocks that a condition chooses."""
        chosen = f"FROM posting_blocks WHERE {condition} ORDER BY concept_id, tier, first"
        rows = self.columns(f"SELECT concept_id, tier, step, lift, bits, first, last, count, width {chosen}", bound)
        words = self.columns(f"SELECT unnest(words) AS word FROM (SELECT words {chosen})", bound)["word"]
        with self.damage():
            return Postings.from_blocks(self.meta.next_id, self.meta.m, rows, words)

    @contextmanager
    def damage(self) -> Iterator[None]:
        """Tells of damage that is found in the postings while they are read or searched."""
        try:
            yield
        except (ValueError, IndexError) as e:
            raise SparsightError(f"the postings of {self.folder} are damaged: {e}; {HINT}") from e

    @cached_property
    def packed(self) -> Postings:
        """The packed postings of every concept, read once."""
        return self.postings()

    def codes(self) -> sparse.csr_matrix:
        """W (n, m) CSR, checked: scipy takes damaged indices without a word and then segfaults in a product."""
        with self.damage():
            indptr, ids, weights = self.packed.columns()
            rows = np.searchsorted(self.image_ids, ids)
            if (self.image_ids[np.minimum(rows, len(self) - 1)] != ids).any() if len(ids) else False:
                raise ValueError("a picture that is not in the index has some")
        return sparse.csc_matrix((weights, rows.astype(np.int32), indptr), shape=(len(self), self.packed.m)).tocsr()

    def codes_of(self, image_ids: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each picture its concept ids and weights; reads the blocks alone that can hold one of a few pictures."""
        if "packed" in self.__dict__ or len(image_ids) > FEW:
            packed = self.packed
        else:
            packed = self._blocks(" OR ".join(["? BETWEEN first AND last"] * len(image_ids)) or "false", image_ids)
        with self.damage():
            found, concepts, weights = packed.rows(np.array(image_ids, np.int64))
        bounds = [np.searchsorted(found, (i, i + 1)) for i in image_ids]
        return [(concepts[a:b], weights[a:b]) for a, b in bounds]

    def changed(self) -> float:
        """When it was last changed, in seconds since 1970."""
        return (self.folder / DATABASE).stat().st_mtime

    def disk_bytes(self) -> dict[str, int]:
        """Bytes on disk by file, and the database's by table (blocks that its segments use)."""
        files = {f.name: f.stat().st_size for f in sorted(self.folder.iterdir()) if f.is_file()}
        block = self.rows("SELECT block_size FROM pragma_database_size() WHERE database_name = 'store'")[0][0]
        for table in ("images", "concepts", "posting_blocks"):
            info = self.rows(f"SELECT DISTINCT block_id FROM pragma_storage_info('{table}') WHERE block_id >= 0")
            files[f"{DATABASE}:{table}"] = len(info) * int(block)
        return files
