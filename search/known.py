"""What is usual in an index, against which answers are judged: what unrelated texts score, and how pictures lie.

Each is read, or measured where it is missing, when it is first asked for: an index that may not be written stays quick.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from indexer.store.chance import Chance
from indexer.store.familiarity import LEVEL, Familiarity
from search.engine import Engine
from training.encoders import TextEncoder


class Told(NamedTuple):
    """familiarity: the share of known pictures that lie as far out, None where that cannot be told.
    notes: what is to be said of it."""

    familiarity: float | None
    notes: list[str]


class Known:
    """What is known of one generation of an index. encoder_source: where its encoder lies."""

    def __init__(self, engine: Engine, encoder_source: str):
        self._engine, self._source = engine, encoder_source
        self._chance: Chance | None = None

    def chance(self, encoder: TextEncoder) -> Chance:
        """The scores of unrelated texts."""
        if self._chance is None:
            self._chance = self._engine.chance(encoder.encode_texts)
        return self._chance

    @cached_property
    def _familiarity(self) -> Familiarity | None:
        return self._engine.familiarity(self._source)

    def told_of(self, x: np.ndarray, image_id: int | None) -> Told:
        """How familiar an embedding x (d,) is; image_id: where it is one of the index."""
        # What an index without embeddings keeps of a picture lies apart from any embedding.
        kept = image_id is None or self._engine.meta.keeps_vectors
        if not kept or (known := self._familiarity) is None:
            return Told(None, [])
        ids = None if image_id is None else np.array([image_id])
        share = float(known.share(x[None], ids)[0])
        said = f"unlike {known.of}: {100 * share:.2g} % of them lie as far out"
        return Told(share, [] if share > LEVEL else [said])
