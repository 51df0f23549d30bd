"""The embeddings of CIFAR-10's test pictures, which lie beside an encoder's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.encoders.files import TEST_EMBEDDINGS, folder_of
from training.errors import SparsightError
from training.files import write_whole

if TYPE_CHECKING:
    from training.encoders.protocol import Encoder


@dataclass(frozen=True)
class SplitEmbeddings:
    """CIFAR-10's test split as an encoder sees it.

    X: (n, d) float32 unit rows. labels: (n,) int64 class ids. terms: (n,) int64, the place of each picture's term
    among the encoder's concepts, −1 where it is none of them.
    """

    X: np.ndarray
    labels: np.ndarray
    terms: np.ndarray


def has_test_embeddings(encoder: Encoder) -> bool:
    """True where embeddings of the test pictures lie beside an encoder's weights: no pictures are needed to index."""
    return (folder_of(encoder.source) / TEST_EMBEDDINGS).is_file()


def load_test_embeddings(encoder: Encoder) -> SplitEmbeddings:
    """Reads the embeddings that lie beside an encoder's weights.

    Raises `SparsightError` where there are none or they cannot be read.
    """
    if not has_test_embeddings(encoder):
        raise SparsightError(f"no embeddings of pictures come with {encoder.name}: it needs the pictures (--data)")
    return embeddings_beside(encoder.source)


def embeddings_beside(source: str) -> SplitEmbeddings:
    """Reads the embeddings that lie beside the weights of an encoder, by its name; raises `SparsightError` where they
    cannot be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder_of(source) / TEST_EMBEDDINGS
    try:
        tensors = load_file(path)
        X, labels, terms = (tensors[key] for key in ("X", "labels", "terms"))
    except (OSError, SafetensorError, KeyError) as e:
        raise SparsightError(f"cannot read the embeddings of CIFAR-10's test pictures in {path}: {e}") from e
    X = X.astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return SplitEmbeddings(X, labels.astype(np.int64), terms.astype(np.int64))


def save_test_embeddings(folder: Path, X: np.ndarray, labels: np.ndarray, terms: np.ndarray) -> None:
    """Writes the test pictures' embeddings X (n, d), class ids and term ids (n,) beside an encoder's weights.

    Half precision is enough for X: it changes a cosine by less than 1e-3.
    """
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {
        "X": X.astype(np.float16),
        "labels": labels.astype(np.uint8),
        "terms": terms.astype(np.int16),
    }
    write_whole(folder / TEST_EMBEDDINGS, save(tensors))
