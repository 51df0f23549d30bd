"""Hits as a file: Parquet or JSON lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from indexer.store.database import connect, first_line, quoted
from training.errors import SparsightError
from training.files import write_output

HITS = """[{"rank": "INTEGER", "id": "INTEGER", "score": "DOUBLE", "path": "VARCHAR", "label": "VARCHAR",
           "concepts": [{"name": "VARCHAR", "weight": "DOUBLE", "contribution": "DOUBLE"}], "rest": "DOUBLE",
           "chance": "DOUBLE", "matches": "BOOLEAN", "others": ["INTEGER"]}]"""


def write_hits(path: Path, hits: Sequence[dict[str, Any]]) -> None:
    """Writes hits (`Hit.to_dict`) to a .parquet or .jsonl file, whole or not at all."""
    try:
        if path.suffix == ".jsonl":
            data = "".join(json.dumps(hit) + "\n" for hit in hits).encode()
        else:
            with tempfile.TemporaryDirectory() as folder, connect() as con:
                file = Path(folder) / "hits.parquet"
                con.execute(f"CREATE TABLE hits AS SELECT unnest(from_json(?, '{HITS}')) AS hit", [json.dumps(hits)])
                con.execute(f"COPY (SELECT unnest(hit) FROM hits) TO {quoted(file)} (FORMAT parquet)")
                data = file.read_bytes()
        write_output(path, data)
    except (OSError, duckdb.Error) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise SparsightError(f"cannot write the hits {path}: {reason}; name another --out") from e
