"""What an index in Milvus is made of, and the small collection that says what of it counts.

A collection of the index's name holds everything but the pictures, as text by key; the pictures lie in one beside it,
`NAME__LOAD`. Text too long for one row is cut in chunks. The row `current` names the load, the generation and where
each part of it stands. It is written last, in one call: until then the earlier generation counts, whole as it was.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from indexer.milvus.server import Server
from indexer.store.meta import IndexMeta
from training.errors import CallError, SparsightError

LIMIT = 16_384  # rows that a server gives for one question
TEXT = 65_535  # bytes of a text field, at the most
CHUNK = 60_000  # characters of a part in one row: base64 and JSON that is ASCII
BATCH = 100  # rows of parts that are written in one call
CURRENT, LOADING, CHANGING = "current", "loading", "changing"
FORMAT = 1


@dataclass(frozen=True)
class State:
    """What counts: the load, its generation, and for each part the generation that wrote it and its chunks."""

    load: str
    generation: int
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class About:
    """The small collection of an index."""

    def __init__(self, server: Server):
        self.server, self.name = server, server.address.name

    def open(self) -> bool:
        """Makes the collection ready to be asked; False where there is none."""
        if not self.server.ask("has_collection", self.name):
            return False
        self.server.ask("load_collection", self.name)
        return True

    def make(self) -> None:
        """Makes the collection where it is missing."""
        if self.open():
            return
        from pymilvus import DataType

        schema = self.server.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=256)
        schema.add_field("value", DataType.VARCHAR, max_length=TEXT)
        schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # a collection must have a vector
        indexes = self.server.client.prepare_index_params()
        indexes.add_index("unused", index_type="FLAT", metric_type="IP")
        make_collection(self.server, self.name, schema, indexes)

    def pictures(self, load: str) -> str:
        """The collection of the pictures of a load."""
        return f"{self.name}__{load}"

    def row(self, key: str) -> dict[str, Any] | None:
        """The value of a row, JSON; None where there is none."""
        found = self._values([key])
        return json.loads(found[key]) if key in found else None

    def put_row(self, key: str, value: Mapping[str, Any]) -> None:
        self._put({key: json.dumps(value)})

    def drop_row(self, key: str) -> None:
        self.server.ask("delete", self.name, ids=[key])

    def state(self) -> State | None:
        """What counts; None where no load was ever whole."""
        held = self.row(CURRENT)
        if held is None:
            return None
        if held.get("format") != FORMAT:
            raise SparsightError(f"{self.server.address} has format {held.get('format')}, not {FORMAT}: build it anew")
        return State(held["load"], held["generation"], {name: (g, n) for name, (g, n) in held["parts"].items()})

    def put_state(self, state: State) -> None:
        """Makes a state count, from this call on."""
        parts = {name: list(place) for name, place in state.parts.items()}
        row = {"format": FORMAT, "load": state.load, "generation": state.generation, "parts": parts}
        self.put_row(CURRENT, row)
        self.server.ask("flush", self.name)

    def put_parts(self, load: str, generation: int, parts: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
        """Writes parts of a generation; returns where they stand."""
        rows: dict[str, str] = {}
        places = {}
        for name, data in parts.items():
            text = base64.b64encode(data).decode()
            chunks = [text[i : i + CHUNK] for i in range(0, max(1, len(text)), CHUNK)]
            rows |= {_key(load, generation, name, i): chunk for i, chunk in enumerate(chunks)}
            places[name] = (generation, len(chunks))
        self._put(rows)
        return places

    def part(self, state: State, name: str) -> bytes:
        """A part as it was written; b"" for one that was not."""
        if name not in state.parts:
            return b""
        generation, count = state.parts[name]
        keys = [_key(state.load, generation, name, i) for i in range(count)]
        found = self._values(keys)
        if missing := [key for key in keys if key not in found]:
            raise SparsightError(f"{self.server.address} is damaged: it has no {missing[0]}; build it anew")
        return base64.b64decode("".join(found[key] for key in keys))

    def clean(self, state: State) -> None:
        """Removes the parts and the collections of pictures that a state does not name."""
        held = {_key(state.load, g, name, i) for name, (g, n) in state.parts.items() for i in range(n)}
        held |= {CURRENT, LOADING, CHANGING}
        while True:
            keys = [r["key"] for r in self._query('key like "%"', ["key"], LIMIT)]
            unused = [key for key in keys if key not in held]
            for at in range(0, len(unused), BATCH):
                self.server.ask("delete", self.name, ids=unused[at : at + BATCH])
            if len(keys) < LIMIT or not unused:
                break
        for name in self.server.ask("list_collections"):
            load = name.removeprefix(f"{self.name}__")
            if load != name and load != state.load and len(load) == 12 and set(load) <= set("0123456789abcdef"):
                self.server.ask("drop_collection", name)

    def _put(self, rows: Mapping[str, str]) -> None:
        made = [{"key": key, "value": value, "unused": [0.0, 1.0]} for key, value in rows.items()]
        for at in range(0, len(made), BATCH):
            self.server.ask("upsert", self.name, made[at : at + BATCH])

    def _values(self, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for at in range(0, len(keys), BATCH):
            condition = f"key in [{', '.join(map(quoted, keys[at : at + BATCH]))}]"
            found |= {row["key"]: row["value"] for row in self._query(condition, ["key", "value"], BATCH)}
        return found

    def _query(self, condition: str, fields: Sequence[str], limit: int) -> list[dict[str, Any]]:
        return list(self.server.ask("query", self.name, filter=condition, output_fields=list(fields), limit=limit))


def _key(load: str, generation: int, name: str, chunk: int) -> str:
    return f"{load}/{generation}/{name}/{chunk}"


def quoted(text: str) -> str:
    """A text as a condition spells it."""
    for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return f'"{text}"'


def pattern(text: str, *, whole: bool = True) -> str:
    """A pattern in which `*` stands for any characters and `?` for one, as a condition spells it.

    A backslash is asked for as any one character: servers do not agree on how it is spelled.
    whole: else the text is what a path begins with, and no pattern.
    """
    text = text.replace("%", "\\%").replace("_", "\\_") if "\\" not in text else _loose(text)
    if whole:
        return quoted(text.replace("*", "%").replace("?", "_"))
    return quoted(f"{text}%")


def _loose(text: str) -> str:
    return "".join("_" if c == "\\" else f"\\{c}" if c in "%_" else c for c in text)


def make_collection(server: Server, name: str, schema: Any, indexes: Any) -> None:
    """Makes a collection whose answers take into account whatever was written before the question."""
    server.ask("create_collection", name, schema=schema, index_params=indexes, consistency_level="Strong")


def make_pictures(server: Server, name: str, meta: IndexMeta) -> None:
    """Makes the collection of the pictures."""
    from pymilvus import DataType

    schema = server.client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    indexes = server.client.prepare_index_params()
    if meta.keeps_vectors:
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=meta.d)
        indexes.add_index("dense", metric_type="IP", **dense_index(meta.dense_factory))
    schema.add_field("code", DataType.SPARSE_FLOAT_VECTOR)
    indexes.add_index("code", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    schema.add_field("concepts", DataType.ARRAY, element_type=DataType.INT32, max_capacity=4096)
    schema.add_field("path", DataType.VARCHAR, max_length=TEXT)
    for name_of in ("split", "label", "term", "content_hash", "thumbnail"):
        schema.add_field(name_of, DataType.VARCHAR, max_length=TEXT, nullable=True)
    for name_of in ("file_bytes", "file_changed"):
        schema.add_field(name_of, DataType.INT64, nullable=True)
    for name_of in ("l1", "gap"):
        schema.add_field(name_of, DataType.FLOAT, nullable=True)
    make_collection(server, name, schema, indexes)


def dense_index(factory: str) -> dict[str, Any]:
    """What FAISS describes, as Milvus describes it; raises `CallError` for what it cannot be."""
    if factory == "Flat":
        return {"index_type": "FLAT"}
    if factory.startswith("HNSW") and factory[4:].isdigit() and 4 <= int(factory[4:]) <= 64:
        return {"index_type": "HNSW", "params": {"M": int(factory[4:]), "efConstruction": 200}}
    raise CallError(f"--dense {factory}: in Milvus the dense index is Flat, or HNSW4 to HNSW64")
