"""Hits as tables of pandas and of pyarrow, where somebody has installed them: neither is needed for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from training.errors import SparsightError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

COLUMNS = ["rank", "id", "score", "path", "label", "concepts", "rest", "chance", "matches", "others"]


def to_pandas(hits: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row a hit (`Hit.to_dict`); `concepts` is a dict: name → what it adds.

    Raises `SparsightError` where pandas is not installed.
    """
    rows = [hit | {"concepts": {c["name"]: c["contribution"] for c in hit["concepts"]}} for hit in hits]
    return _installed("pandas").DataFrame(rows, columns=COLUMNS)


def to_arrow(hits: Sequence[dict[str, Any]]) -> pa.Table:
    """A row a hit (`Hit.to_dict`); `concepts` is a list of structs. Raises `SparsightError` where pyarrow is not
    installed."""
    arrow = _installed("pyarrow")
    whole, number, text = arrow.int64(), arrow.float64(), arrow.string()
    concept = arrow.struct({"name": text, "weight": number, "contribution": number})
    types = (whole, whole, number, text, text, arrow.list_(concept), number, number, arrow.bool_(), arrow.list_(whole))
    return arrow.Table.from_pylist(list(hits), schema=arrow.schema(dict(zip(COLUMNS, types, strict=True))))


def _installed(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as e:
        raise SparsightError(f"{name} is not installed: `pip install {name}`") from e
