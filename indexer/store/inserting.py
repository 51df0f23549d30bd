"""The parts of an index as rows of its database's tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from indexer.store.contents import Classes, Contents, Pictures, Skip
from indexer.store.database import insert
from indexer.store.residuals import insert_quantiser, insert_residuals
from indexer.store.thumbnails import CASTS, Places

if TYPE_CHECKING:
    from indexer.coding import Dictionary


def insert_pictures(
    con: duckdb.DuckDBPyConnection, ids: np.ndarray, rows: np.ndarray, pictures: Pictures, places: Places
) -> None:
    """Adds pictures: the ids (n,) and rows (n,) of the vectors' file that they get, and where their thumbnails lie."""
    columns = {
        "image_id": ids.astype(np.int32),
        **pictures.described.columns(),
        "l1": pictures.l1.astype(np.float32),
        "gap": pictures.gap.astype(np.float32),
        "vector_row": rows.astype(np.int32),
        **places.columns(),
    }
    insert(con, "images", columns, casts=CASTS)
    if pictures.residuals is not None:
        insert_residuals(con, ids, pictures.residuals)


def insert_shared(con: duckdb.DuckDBPyConnection, c: Contents, images: np.ndarray) -> None:
    """Inserts all that is not of one picture: concepts, each with how many images (m,) it helps to make up, classes,
    means, what was skipped, and the quantiser."""
    if c.quantiser is not None:
        insert_quantiser(con, c.quantiser)
    insert_concepts(con, c.dictionary, images)
    insert_classes(con, 0, c.classes)
    if c.means is not None:
        both = np.stack([c.means.image, c.means.text])
        insert(con, "means", {"modality": ["image", "text"]}, rows=both)
    insert_skipped(con, c.skipped)


def insert_concepts(con: duckdb.DuckDBPyConnection, dictionary: Dictionary, images: np.ndarray) -> None:
    """Fills the table of concepts; images (m,): how many each helps to make up."""
    columns = {
        "concept_id": np.arange(len(dictionary.D), dtype=np.int32),
        "name": dictionary.names,
        "aliases": [json.dumps(a) for a in dictionary.aliases],
        "parent": dictionary.parents,
        "source": [dictionary.source] * len(dictionary.D),
        "images": images.astype(np.int32),
    }
    insert(con, "concepts", columns, rows=dictionary.D, casts={"aliases": "from_json(aliases, '[\"VARCHAR\"]')"})


def insert_classes(con: duckdb.DuckDBPyConnection, start: int, classes: Classes) -> None:
    """Adds classes, their ids from `start` on."""
    ids = np.arange(start, start + len(classes.names), dtype=np.int32)
    insert(con, "classes", {"class_id": ids, "name": classes.names}, rows=classes.T)


def insert_skipped(con: duckdb.DuckDBPyConnection, skipped: Sequence[Skip]) -> None:
    """Adds files that were not taken."""
    insert(con, "skipped", {"path": [s.path for s in skipped], "reason": [s.reason for s in skipped]})
