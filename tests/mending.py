"""What an index says before it is harmed and after it is mended."""

from __future__ import annotations

from pathlib import Path

import duckdb

from indexer.store import DATABASE
from indexer.store.doctor import examine
from indexer.store.lock import LOCK
from search.index import Index


def answers(folder: Path) -> list[object]:
    """What an index says of everything that a repair must bring back."""
    with Index(folder) as s:
        t = s.D[0]
        hits = [s.search_vector(t, 20, mode) for mode in ("dense", "sparse")]
        # Among equal scores the order of the codes' last bits may differ once they are computed again.
        found = [[(h.id, h.path, round(h.score, 4), h.label, len(h.concepts)) for h in list_] for list_ in hits]
        s.store.images()
        return [found, s.store.classes().names, s.concepts(), s.store.thumbnails([0, 77])]


def sql(folder: Path, *statements: str) -> None:
    with duckdb.connect(str(folder / DATABASE)) as con:
        for statement in statements:
            con.execute(statement)


def held(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != LOCK}


def faults(folder: Path) -> set[str]:
    return {f.check for f in examine(folder) if f.status == "fault"}
