"""The coder as an estimator in scikit-learn's manner, without scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import numpy as np
from scipy import sparse

from indexer.coding.codes import Codes
from indexer.coding.encode import encode_sparse
from indexer.config import CoderConfig


class SparseCoder:
    """Codes rows over a dictionary; a scikit-learn transformer in its manners.

    dictionary: D (m, d). l1: λ, or where `relative` the fraction of each row's own λ_max = max(D x).
    tol: the relative duality gap that every code must reach. refit: the weights of each support by nonnegative
    least squares, without the shrinkage; `gap` stays that of the l1 code. memory: bytes beside X, D and the codes
    (None: 128 MiB, on a GPU a quarter of what is free). solver: see `encode_sparse`.
    There is nothing to learn: `fit` returns the coder as it is. `choose_l1` finds a penalty for so many concepts.

    >>> W = SparseCoder(np.eye(3), l1=0.5).fit_transform(np.array([[1.0, 0.8, 0.1]]))
    >>> W.toarray().round(2)
    array([[0.5, 0.3, 0. ]], dtype=float32)
    """

    def __init__(
        self,
        dictionary: np.ndarray,
        l1: float = CoderConfig.l1,
        *,
        relative: bool = CoderConfig.relative,
        tol: float = CoderConfig.tol,
        refit: bool = CoderConfig.refit,
        memory: int | None = CoderConfig.memory,
        solver: str = "auto",
        device: str = "cpu",
    ):
        self.dictionary, self.l1, self.relative, self.tol = dictionary, l1, relative, tol
        self.refit, self.memory, self.solver, self.device = refit, memory, solver, device

    def get_params(self, deep: bool = True) -> dict[str, object]:
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def set_params(self, **params: object) -> SparseCoder:
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"SparseCoder has no parameter {name!r}; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = (f"{k}={v!r}" for k, v in self.get_params().items() if k != "dictionary")
        return f"SparseCoder(D {np.shape(self.dictionary)}, {', '.join(shown)})"

    def __sklearn_tags__(self) -> object:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags("transformer", TargetTags(required=False), TransformerTags(), None, None, requires_fit=False)

    def fit(self, X: np.ndarray | None = None, y: object = None) -> SparseCoder:
        return self

    def encode(self, X: np.ndarray, progress: Callable[[int], object] | None = None) -> Codes:
        """The codes of X (n, d), each with its gap and λ; see `encode_sparse`."""
        config = CoderConfig(self.l1, self.relative, self.tol, self.refit, self.memory)
        return encode_sparse(X, self.dictionary, config, solver=self.solver, device=self.device, progress=progress)

    def transform(self, X: np.ndarray) -> sparse.csr_matrix:
        """The codes alone, W (n, m) CSR."""
        return self.encode(X).W

    def fit_transform(self, X: np.ndarray, y: object = None) -> sparse.csr_matrix:
        return self.fit(X).transform(X)

    def inverse_transform(self, W: sparse.csr_matrix) -> np.ndarray:
        """W D (n, d)."""
        return np.asarray(W @ np.asarray(self.dictionary, np.float32), np.float32)
