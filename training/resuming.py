"""Going on with a stopped run: only with what it was begun with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import SparsightError


def data_identity(pixels: np.ndarray, concepts: Sequence[str], start: str | None) -> dict[str, Any]:
    """What a run is made from, beside its settings: its pictures, its vocabulary, and the encoder it went on from."""
    return {
        "pictures (--limit, --data)": len(pixels),
        "pixels": hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16],
        "vocabulary": hashlib.sha256("\0".join(concepts).encode()).hexdigest()[:16],
        "encoder that it goes on from (--from)": start,
    }


def refuse_another_run(run: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `SparsightError`, which names the first difference, where a run was begun with something else."""
    before, asked = _flat(earlier), _flat(json.loads(json.dumps(now)))
    for key in asked:
        if before.get(key) != asked[key]:
            raise SparsightError(
                f"{run} holds a run of other settings: its {key} is {before.get(key)}, now it would be {asked[key]}; "
                "choose another --out, or delete it to begin anew"
            )


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key} ") if isinstance(value, Mapping) else {above + key: value}
    return found
