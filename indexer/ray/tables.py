"""Pictures in the columns of Parquet and Arrow files, read a group of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.errors import CallError
from training.files import shown_path

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = "Parquet files", "Arrow files of a Hugging Face data set"
LABEL = "label"  # the column


class Cell(NamedTuple):
    """A picture as a row has it: its bytes, or the path of its file, and its label."""

    data: bytes | None
    path: str | None
    label: str | None


def picture_column(kind: str, file: Path, asked: str) -> str:
    """The column of a file that holds pictures: the one that is asked for, or the only one that can be.

    Raises `CallError` where there is no such column, or more than one.
    """
    with _opened(kind, file) as held:
        schema: pa.Schema = held.schema_arrow if kind == PARQUET else held.schema
    declared = [name for name, said in _features(schema, file).items() if said.get("_type") == "Image"]
    possible = declared or [field.name for field in schema if _may_hold_pictures(field.type)]
    if asked:
        if asked not in schema.names:
            raise CallError(f"--column {asked}: {shown_path(file)} has {', '.join(schema.names)}")
        if not _may_hold_pictures(schema.field(asked).type):
            found = schema.field(asked).type
            raise CallError(f"--column {asked}: {shown_path(file)} holds {found} there, neither bytes nor their struct")
        return asked
    if len(possible) != 1:
        found = f"columns {', '.join(possible)}: name one with --column" if possible else "no column of pictures"
        raise CallError(f"{shown_path(file)} has {found}" + ("" if possible else f" among {', '.join(schema.names)}"))
    return possible[0]


def groups_of(kind: str, file: Path) -> Iterator[tuple[int, int, int]]:
    """(number, first row, rows) of each group of rows that can be read without those before it."""
    first = 0
    with _opened(kind, file) as held:
        if kind == PARQUET:
            counts = [held.metadata.row_group(i).num_rows for i in range(held.metadata.num_row_groups)]
        else:
            counts = [batch.num_rows for batch in _batches(held)]
    for number, rows in enumerate(counts):
        yield number, first, rows
        first += rows


def cells_of(kind: str, file: Path, group: int, column: str, wanted: list[range]) -> Iterator[list[Cell]]:
    """The pictures in some ranges, ascending, of a group's rows, in one pass over it."""
    with _opened(kind, file) as held:
        schema: pa.Schema = held.schema_arrow if kind == PARQUET else held.schema
        names = _features(schema, file).get(LABEL, {}).get("names")
        columns = [column] + [LABEL] * (LABEL in schema.names and column != LABEL)
        if kind == PARQUET:
            batches = held.iter_batches(64, row_groups=[group], columns=columns)
        else:
            batches = iter([next(b for i, b in enumerate(_batches(held)) if i == group).select(columns)])
        first = 0
        ranges = iter(wanted)
        rows: range | None = next(ranges, None)
        cells: list[Cell] = []
        for batch in batches:
            while rows is not None and rows.start < first + batch.num_rows:
                start, stop = max(rows.start - first, 0), min(rows.stop - first, batch.num_rows)
                cells += _cells(batch.slice(start, stop - start), column, names)
                if rows.stop > first + batch.num_rows:
                    break
                yield cells
                rows, cells = next(ranges, None), []
            if rows is None:
                return
            first += batch.num_rows


def _cells(batch: pa.RecordBatch, column: str, names: list[str] | None) -> Iterator[Cell]:
    labels = batch.column(LABEL).to_pylist() if LABEL in batch.schema.names else [None] * batch.num_rows
    for value, label in zip(batch.column(column).to_pylist(), labels, strict=True):
        if isinstance(label, int) and names and 0 <= label < len(names):
            label = names[label]
        label = " ".join(str(label).split()) or None if isinstance(label, str | int) else None
        if isinstance(value, dict):
            yield Cell(value.get("bytes"), value.get("path"), label)
        else:
            yield Cell(value, None, label)


def _may_hold_pictures(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _may_hold_pictures(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _features(schema: pa.Schema, file: Path) -> dict[str, Any]:
    """What a data set says of its columns, in the file itself or beside it."""
    said = (schema.metadata or {}).get(b"huggingface")
    beside = file.parent / "dataset_info.json"
    try:
        if said:
            return dict(json.loads(said)["info"]["features"])
        return dict(json.loads(beside.read_text("utf-8"))["features"]) if beside.is_file() else {}
    except (KeyError, TypeError, ValueError):
        return {}


@contextmanager
def _opened(kind: str, file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == PARQUET:
        with pq.ParquetFile(file, pre_buffer=False) as held:
            yield held
        return
    with pa.memory_map(str(file)) as mapped:
        try:
            held = pa.ipc.open_stream(mapped)
        except pa.ArrowInvalid:
            mapped.seek(0)
            held = pa.ipc.open_file(mapped)
        with held:
            yield held


def _batches(held: Any) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow file, of either form."""
    if hasattr(held, "num_record_batches"):
        yield from (held.get_batch(i) for i in range(held.num_record_batches))
    else:
        yield from held
