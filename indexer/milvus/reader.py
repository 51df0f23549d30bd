"""An index in Milvus, opened: reads what a question asks for, by the ids that every index gives its pictures.

Milvus takes no negative number in a sparse vector, nor in a query by one. So `search_codes` asks by the positive scores
alone, which bounds a picture's score from above, weights being above 0; whoever asks scores exactly from the codes.
A server has no snapshots: a picture that is added or removed meanwhile is found, or is not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np

from indexer.milvus.about import CHANGING, LIMIT, LOADING, About, pattern, quoted
from indexer.milvus.address import Address
from indexer.milvus.server import Server
from indexer.store.contents import Classes, Concept, ImageRow, Skip
from indexer.store.meta import FILES, LATER, IndexMeta, MetaError, parse_meta
from indexer.store.naming import is_id, spellings
from training.encoders import Means
from training.errors import SparsightError

STEP = 4096  # ids whose rows are read in one call, where all are read
MANY = 1000  # pictures that one call names
CLOSE = 1e-4  # relative difference of a score from our own product, from which it is wrong
FIELDS = ("path", "split", "label", "term", "content_hash", "file_bytes", "file_changed", "l1", "gap")
CodeOf = tuple[np.ndarray, np.ndarray]  # concept ids, ascending; weights


class MilvusStore:
    """The index at an address. Raises `SparsightError` where there is none, where its load was never finished, where
    nobody answers, and where the server's sparse scores are not the products that they should be."""

    def __init__(self, address: Address):
        self.address, self.name = address, str(address)
        self.server = Server(address)
        try:
            self.about = About(self.server)
            self.reread()
            if not self.server.ask("has_collection", self.pictures):
                raise self.damaged(f"it has no collection {self.pictures}")
            self.server.ask("load_collection", self.pictures)
            self._check_scores()
        except BaseException:
            self.close()
            raise

    def reread(self) -> None:
        """Takes up the generation that counts now."""
        is_open = self.about.open()
        state = self.about.state() if is_open else None
        if state is None:
            raise self._nothing(self.about.row(LOADING) if is_open else None)
        self.state = state
        self.meta = self._read_meta()
        self.pictures = self.about.pictures(state.load)
        self._hidden = f"id < {self.meta.next_id}" if self.is_unfinished else ""

    def _nothing(self, loading: dict[str, Any] | None) -> SparsightError:
        if loading is not None:
            return SparsightError(
                f"the load of {loading['n']:,} pictures into {self.name} is unfinished: run `sparsight index` again "
                "as before, which completes it"
            )
        return SparsightError(f"no index in {self.name}: `sparsight index --store {self.name}` builds one")

    def _read_meta(self) -> IndexMeta:
        try:
            rows: dict[str, str] = json.loads(self.about.part(self.state, "meta"))
            return parse_meta({k: v for k, v in rows.items() if k not in FILES}, without=(*LATER, *FILES))
        except (MetaError, ValueError) as e:
            raise self.damaged(f"in its meta data, {e}") from e

    def _check_scores(self) -> None:
        """Compares the server's sparse scores of three pictures with our own products of the codes as written."""
        probes = {int(i): dict(code) for i, code in json.loads(self.about.part(self.state, "probes") or b"{}").items()}
        if self._hidden:  # some may have been removed already
            present = {row["id"] for row in self.query(_one_of("id", probes), [])}
            probes = {i: code for i, code in probes.items() if i in present}
        if not probes:
            return
        asked = [{int(j): float(w) for j, w in code.items()} for code in probes.values()]
        answers = self.server.ask(
            "search", self.pictures, asked, anns_field="code", limit=len(probes), filter=_one_of("id", probes),
            output_fields=["id"], search_params={"metric_type": "IP"},
        )  # fmt: skip
        for s, hits in zip(asked, answers, strict=True):
            got = {hit["id"]: float(hit["distance"]) for hit in hits}
            for i, code in probes.items():
                true = sum(w * s.get(int(j), 0.0) for j, w in code.items())
                if true and abs(got.get(i, 0.0) - true) > CLOSE * true:
                    raise SparsightError(
                        f"{self.address.server} gives picture {i} the sparse score {got.get(i, 0.0):.6g} in place of "
                        f"{true:.6g}: its answers cannot be trusted; update it (milvus-lite to 3.2.2 or newer), or, "
                        "where another program wrote to the index, build it anew"
                    )

    def damaged(self, what: str) -> SparsightError:
        """The fault to raise where the index contradicts itself."""
        return SparsightError(f"the index {self.name} is damaged: {what}; build it anew")

    @property
    def is_unfinished(self) -> bool:
        """Whether a change was begun that is not done: what it has added does not count."""
        begun = self.about.row(CHANGING)
        return begun is not None and begun["generation"] > self.state.generation

    def is_current(self) -> bool:
        """False once another generation counts."""
        now = self.about.state()
        return now is not None and (now.load, now.generation) == (self.state.load, self.state.generation)

    def close(self) -> None:
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.meta.n

    # What the small collection holds

    def part(self, name: str) -> bytes:
        return self.about.part(self.state, name)

    def _numbers(self, name: str) -> np.ndarray:
        return np.frombuffer(self.part(name), "<f4").astype(np.float32)

    @cached_property
    def _dictionary(self) -> np.ndarray:
        D = self._numbers("dictionary")
        if len(D) != self.meta.m * self.meta.d:
            raise self.damaged("its dictionary is not the one that was written")
        return D.reshape(self.meta.m, self.meta.d)

    def dictionary(self) -> np.ndarray:
        """D (m, d)."""
        return self._dictionary

    def counts(self) -> np.ndarray:
        """(m,) int64: the pictures that each concept helps to make up."""
        return np.frombuffer(self.part("counts"), "<i8")

    def concepts(self) -> list[Concept]:
        rows, counts = json.loads(self.part("concepts")), self.counts().tolist()
        return [Concept(i, name, tuple(aliases), parent, counts[i]) for i, (name, aliases, parent) in enumerate(rows)]

    def classes(self) -> Classes:
        T = self._numbers("class_vectors").reshape(-1, self.meta.d)
        return Classes(json.loads(self.part("classes")), T)

    def means(self) -> Means | None:
        both = self._numbers("means")
        return Means(*both.reshape(2, self.meta.d)) if len(both) else None

    def skipped(self) -> list[Skip]:
        return [Skip(*row) for row in json.loads(self.part("skipped"))]

    def values(self, column: str) -> list[str]:
        """The labels or the splits that pictures have, or once had."""
        return json.loads(self.part("values"))[column]

    # Pictures

    def query(self, condition: str, fields: Sequence[str], limit: int = LIMIT) -> list[dict[str, Any]]:
        """Rows for which a condition holds, by id."""
        options = {"output_fields": ["id", *fields], "limit": limit}
        rows = list(self.server.ask("query", self.pictures, filter=self.visible(condition), **options))
        return sorted(rows, key=lambda row: row["id"])

    def visible(self, condition: str) -> str:
        """A condition, and that the pictures count."""
        return " and ".join(f"({c})" for c in (condition, self._hidden) if c)

    def count(self, condition: str) -> int:
        """Pictures for which a condition holds."""
        found = self.server.ask("query", self.pictures, filter=self.visible(condition), output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def rows_of(self, image_ids: Sequence[int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of some pictures, in the order asked for; each must be there."""
        found: dict[int, dict[str, Any]] = {}
        for at in range(0, len(image_ids), MANY):
            asked = image_ids[at : at + MANY]
            found |= {row["id"]: row for row in self.query(_one_of("id", asked), fields, len(set(asked)))}
        if missing := [i for i in image_ids if i not in found]:
            raise SparsightError(f"picture {missing[0]} is not in {self.name} any more: ask again")
        return [found[i] for i in image_ids]

    def scan(self, fields: Sequence[str], condition: str = "") -> Iterator[list[dict[str, Any]]]:
        """Every row for which a condition holds, by id, some at a time."""
        for first in range(0, self.meta.next_id, STEP):
            span = f"id >= {first} and id < {min(first + STEP, self.meta.next_id)}"
            if rows := self.query(f"({condition}) and {span}" if condition else span, fields):
                yield rows

    def images(self, image_ids: Sequence[int]) -> list[ImageRow]:
        return [_image(row) for row in self.rows_of(image_ids, FIELDS)]

    def thumbnails(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        rows = self.rows_of(image_ids, ["thumbnail"])
        return {row["id"]: base64.b64decode(row["thumbnail"]) for row in rows if row["thumbnail"]}

    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        """Rows of X (k, d), in their order; raises `CallError` where none are kept."""
        self.meta.need_vectors(self.name)
        rows = [np.asarray(row["dense"], np.float32) for row in self.rows_of(image_ids, ["dense"])]
        return np.stack([np.zeros(self.meta.d, np.float32), *rows])[1:]

    def codes_of(self, image_ids: Sequence[int]) -> list[CodeOf]:
        """For each picture its concept ids and weights."""
        return [self.code(row["code"]) for row in self.rows_of(image_ids, ["code"])]

    def code(self, held: dict[int, float]) -> CodeOf:
        """A code from the sparse vector that holds it."""
        pairs = sorted((int(j), w) for j, w in held.items() if int(j) < self.meta.m)
        return np.array([j for j, _ in pairs], np.int64), np.array([w for _, w in pairs], np.float32)

    def neighbour(self, image_id: int, *, after: bool) -> int | None:
        """The id next to one, above or below it; None where there is none. It is looked for in windows that grow: a
        server need not give ids in their order."""
        size, end = 64, image_id
        while 0 <= end < self.meta.next_id or (end == self.meta.next_id and not after) or (end == -1 and after):
            low, high = (end + 1, end + size) if after else (end - size, end - 1)
            rows = self.query(f"id >= {low} and id <= {high}", [])
            if rows:
                return int(rows[0 if after else -1]["id"])
            end, size = (high if after else low), min(8 * size, LIMIT)
        return None

    def images_at(self, paths: Iterable[str]) -> dict[str, ImageRow]:
        """The pictures at some paths, by path."""
        return {row.path: row for row in self._matching("path", paths)}

    def images_holding(self, hashes: Iterable[str]) -> list[ImageRow]:
        """The pictures of some contents, by id."""
        return self._matching("content_hash", hashes)

    def _matching(self, column: str, values: Iterable[str]) -> list[ImageRow]:
        wanted = list(values)
        found: list[dict[str, Any]] = []
        for at in range(0, len(wanted), MANY):
            found += self.query(_one_of(column, wanted[at : at + MANY]), FIELDS)
        return [_image(row) for row in sorted(found, key=lambda row: row["id"])]

    def picture_at(self, path: str) -> int | None:
        """The id of the picture that a path names, the first where several have it; None where none has."""
        return min((row.image_id for row in self._matching("path", spellings(path))), default=None)

    def named(self, target: str) -> dict[int, str]:
        """The pictures (id → path) that an id, a path or a folder names."""
        if is_id(target):
            condition = f"id == {int(target)}" if len(target) <= 18 else "id < 0"
            return {row["id"]: row["path"] for row in self.query(condition, ["path"])}
        if found := {row.image_id: row.path for row in self._matching("path", spellings(target))}:
            return found
        folders = [f"{path.rstrip('/')}/" for path in spellings(target)]
        below = " or ".join(f"path like {pattern(folder, whole=False)}" for folder in folders)
        rows = (row for some in self.scan(["path"], below) for row in some)
        return {row["id"]: row["path"] for row in rows if row["path"].startswith(tuple(folders))}

    def paths(self) -> dict[int, str]:
        """Every picture's path."""
        return {row["id"]: row["path"] for some in self.scan(["path"]) for row in some}

    # What it finds

    def search_codes(self, s: np.ndarray, k: int, condition: str) -> tuple[np.ndarray, np.ndarray, list[CodeOf]]:
        """The k pictures with the highest Σ w_j max(0, s_j), best first: ids, these sums, codes. Those of a sum of 0
        are not found."""
        asked = {int(j): float(s[j]) for j in np.flatnonzero(s > 0)}
        if not asked:
            return np.zeros(0, np.int64), np.zeros(0), []
        hits = self._search("code", asked, min(k, LIMIT), condition, ["code"])
        ids, sums = _ids_and_scores(hits)
        return ids, sums, [self.code(hit["entity"]["code"]) for hit in hits]

    def search_vectors(self, p: np.ndarray, k: int, condition: str) -> tuple[np.ndarray, np.ndarray]:
        """The k pictures with the highest x·p, best first: ids, scores."""
        self.meta.need_vectors(self.name)
        return _ids_and_scores(self._search("dense", p.astype(np.float32).tolist(), min(k, LIMIT), condition, []))

    def _search(self, field: str, vector: Any, k: int, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        parameters = {"ef": max(64, k)} if self.meta.dense_factory.startswith("HNSW") and field == "dense" else {}
        found = self.server.ask(
            "search", self.pictures, [vector], anns_field=field, limit=k, filter=self.visible(condition),
            output_fields=["id", *fields], search_params={"metric_type": "IP", "params": parameters},
        )  # fmt: skip
        return list(found[0])


def _ids_and_scores(hits: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array([hit["id"] for hit in hits], np.int64)
    return ids, np.array([hit["distance"] for hit in hits], np.float64)


def _one_of(column: str, values: Iterable[int | str]) -> str:
    return f"{column} in [{', '.join(quoted(v) if isinstance(v, str) else str(v) for v in values)}]"


def _image(row: dict[str, Any]) -> ImageRow:
    return ImageRow(row["id"], *(row[name] for name in FIELDS))
