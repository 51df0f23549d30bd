"""Hits as a file: Parquet or JSON lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexer.store.database import connect, quoted, told_as
from training.errors import SparsightError
from training.files import write_output

HITS = """[{"rank": "INTEGER", "id": "INTEGER", "score": "DOUBLE", "path": "VARCHAR", "label": "VARCHAR",
           "concepts": [{"name": "VARCHAR", "weight": "DOUBLE", "contribution": "DOUBLE"}], "rest": "DOUBLE",
           "chance": "DOUBLE", "matches": "BOOLEAN", "others": ["INTEGER"]}]"""


def write_hits(path: Path, hits: Sequence[dict[str, Any]]) -> None:
    """Writes hits (`Hit.to_dict`) to a .parquet or .jsonl file, whole or not at all."""

    def tell(reason: str) -> str:
        return f"cannot write the hits {path}: {reason}; name another --out"

    try:
        if path.suffix == ".jsonl":
            data = "".join(json.dumps(hit) + "\n" for hit in hits).encode()
        else:
            with told_as(tell), tempfile.TemporaryDirectory() as folder, connect() as con:
                file = Path(folder) / "hits.parquet"
                con.execute(f"CREATE TABLE hits AS SELECT unnest(from_json(?, '{HITS}')) AS hit", [json.dumps(hits)])
                con.execute(f"COPY (SELECT unnest(hit) FROM hits) TO {quoted(file)} (FORMAT parquet)")
                data = file.read_bytes()
        write_output(path, data)
    except OSError as e:
        raise SparsightError(tell(e.strerror or str(e))) from e
