"""The settings of an index and their defaults; light, so that `--help` can show them."""

from __future__ import annotations

from dataclasses import dataclass, field

THUMBNAIL = 128  # pixels of a thumbnail's longer side
SAME = 0.999  # cosine from which two atoms could not be told apart by any code
# Where an encoder holds no terms of its own, as a CLIP: SpLiCE (Bhalla et al. 2024) finds 5 to 20 concepts readable.
READABLE, NEAR_SYNONYMS = 8.0, 0.8


@dataclass(frozen=True)
class CoderConfig:
    """Settings of the coder, saved with an index.

    l1: the penalty; relative: whether λ_i = l1 · λ_max(x_i), so that no code is empty for l1 < 1, or λ_i = l1.
    tol: the relative duality gap that is asked for. refit: least-squares weights on each support.
    memory: bytes that coding may take beside X, D and the codes; None leaves it to the coder.
    """

    l1: float = 0.87
    relative: bool = True
    tol: float = 1e-4
    refit: bool = False
    memory: int | None = None


@dataclass(frozen=True)
class IndexConfig:
    """Settings of an index. templates: the prompts of a concept, None for the encoder's own. exclude: patterns of files
    and folders that are left out. dense: the dense index, as FAISS's `index_factory` describes it; recall: the share of
    the k best that it is to find. concepts: how many a picture is to have on average; None leaves that to the coder's
    penalty. merge: the cosine from which two concepts of the dictionary are one. residual: what is kept of an embedding
    beside its concepts, as FAISS describes product quantisers, "" for nothing. vectors: whether embeddings are kept.

    Its codes are refitted: the penalty chooses the concepts, least squares weighs them (Gauss-Lasso), so that a sparse
    score is as large as the cosine that it stands for.
    """

    dictionary: str = "auto"
    templates: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    dense: str = "Flat"
    recall: float = 0.95
    concepts: float | None = None
    merge: float = SAME
    coder: CoderConfig = field(default_factory=lambda: CoderConfig(refit=True))
    batch_size: int = 500
    residual: str = ""
    vectors: bool = True
