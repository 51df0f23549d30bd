"""The coder as an estimator in scikit-learn's manner, without scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import numpy as np
from scipy import sparse

from indexer.coding.codes import Codes
from indexer.coding.encode import encode_sparse
from indexer.config import CoderConfig
from training.errors import DataError


class SparseCoder:
    """Codes rows over a dictionary; a scikit-learn transformer in its manners.

    dictionary: D (m, d); None: the d unit vectors, a concept for each feature. names: of the m concepts. l1: λ, or
    where `relative` the fraction of each row's own λ_max = max(D x).
    tol: the relative duality gap that every code must reach. refit: the weights of each support by nonnegative
    least squares, without the shrinkage; `gap` stays that of the l1 code. memory: bytes beside X, D and the codes
    (None: 128 MiB, on a GPU a quarter of what is free). solver: see `encode_sparse`.
    There is nothing to learn: `fit` notes the features alone, and `transform` needs no `fit`. `choose_l1` finds a
    penalty for so many concepts. What cannot be coded raises `DataError`, which is a ValueError.

    n_features_in_: d; feature_names_in_: the columns of a table that it was fitted on.

    >>> W = SparseCoder(np.eye(3), l1=0.5).fit_transform(np.array([[1.0, 0.8, 0.1]]))
    >>> W.toarray().round(2)
    array([[0.5, 0.3, 0. ]], dtype=float32)
    """

    def __init__(
        self,
        dictionary: np.ndarray | None = None,
        l1: float = CoderConfig.l1,
        *,
        names: Sequence[str] | None = None,
        relative: bool = CoderConfig.relative,
        tol: float = CoderConfig.tol,
        refit: bool = CoderConfig.refit,
        memory: int | None = CoderConfig.memory,
        solver: str = "auto",
        device: str = "cpu",
    ):
        self.dictionary, self.l1, self.names, self.relative, self.tol = dictionary, l1, names, relative, tol
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
        shown = (f"{k}={v!r}" for k, v in self.get_params().items() if k not in ("dictionary", "names"))
        size = "unit vectors" if self.dictionary is None else np.shape(self.dictionary)
        return f"SparseCoder(D {size}, {', '.join(shown)})"

    def __sklearn_tags__(self) -> object:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            "transformer",
            TargetTags(required=False),
            TransformerTags(preserves_dtype=[]),
            None,
            None,
            requires_fit=False,
        )

    def fit(self, X: Any = None, y: object = None) -> SparseCoder:
        """Notes the number of features, and their names where X is a table that has some."""
        if X is not None:
            rows = _rows(X, None)
            self.n_features_in_ = self._dictionary(rows.shape[1]).shape[1]
            if rows.shape[1] != self.n_features_in_:
                raise DataError(f"X has {rows.shape[1]} features, but the dictionary has {self.n_features_in_}")
            self.__dict__.pop("feature_names_in_", None)
            if (names := _column_names(X)) is not None:
                self.feature_names_in_ = names
        return self

    def encode(self, X: Any, progress: Callable[[int], object] | None = None) -> Codes:
        """The codes of X (n, d), each with its gap and λ; see `encode_sparse`."""
        expected = getattr(self, "n_features_in_", None if self.dictionary is None else np.shape(self.dictionary)[1])
        rows = _rows(X, expected)
        self._refuse_other_names(X)
        config = CoderConfig(self.l1, self.relative, self.tol, self.refit, self.memory)
        D = self._dictionary(rows.shape[1])
        return encode_sparse(rows, D, config, solver=self.solver, device=self.device, progress=progress)

    def transform(self, X: Any) -> Any:
        """The codes alone, W (n, m) CSR; after `set_output`, a table of the concepts' names."""
        W = self.encode(X).W
        kind = getattr(self, "_output", "default")
        if kind == "default":
            return W
        if kind == "pandas":
            import pandas

            index = X.index if hasattr(X, "iloc") else None
            return pandas.DataFrame.sparse.from_spmatrix(W, index=index, columns=self.get_feature_names_out())
        import polars

        return polars.DataFrame(W.toarray(), schema=list(self.get_feature_names_out()), orient="row")

    def fit_transform(self, X: Any, y: object = None) -> Any:
        return self.fit(X).transform(X)

    def inverse_transform(self, W: sparse.csr_matrix) -> np.ndarray:
        """W D (n, d)."""
        return np.asarray(W @ self._dictionary(W.shape[1]), np.float32)

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """The names of the m concepts: those given, else `concept0` and so on."""
        if self.names is not None:
            return np.array(list(self.names), object)
        if self.dictionary is None and not hasattr(self, "n_features_in_"):
            raise DataError("the number of concepts is not known: give a dictionary, or call fit")
        m = self.n_features_in_ if self.dictionary is None else len(self.dictionary)
        return np.array([f"concept{j}" for j in range(m)], object)

    def set_output(self, *, transform: str | None = None) -> SparseCoder:
        """What `transform` returns: `default` (CSR), `pandas` or `polars`; None changes nothing."""
        if transform not in (None, "default", "pandas", "polars"):
            raise ValueError(f"set_output(transform={transform!r}): it must be default, pandas or polars")
        if transform:
            self._output = transform
        return self

    def _dictionary(self, d: int) -> np.ndarray:
        return np.eye(d, dtype=np.float32) if self.dictionary is None else np.asarray(self.dictionary, np.float32)

    def _refuse_other_names(self, X: Any) -> None:
        fitted, names = getattr(self, "feature_names_in_", None), _column_names(X)
        if fitted is not None and names is not None and list(fitted) != list(names):
            raise DataError("the feature names should match those that were passed during fit, in their order")


def _rows(X: Any, expected: int | None) -> np.ndarray:
    """X as numbers (n, d); raises `DataError` for what is none, in the words of scikit-learn where it has some."""
    if sparse.issparse(X):
        raise DataError("sparse X is not coded: the dictionary is dense, so pass X.toarray()")
    rows = X if isinstance(X, np.ndarray) else np.asarray(X)
    if np.iscomplexobj(rows):
        raise DataError("Complex data not supported: X holds complex numbers")
    if rows.ndim != 2:
        raise DataError(
            f"Expected 2D array, got {rows.ndim}D array instead. Reshape your data: X.reshape(-1, 1) is one feature, "
            "X.reshape(1, -1) one row"
        )
    if rows.dtype.kind not in "fiub":
        try:
            rows = rows.astype(np.float64)
        except ValueError as e:
            raise DataError(f"X holds what is no number: {e}") from e
    if not rows.shape[0] or not rows.shape[1]:
        empty, name = ("sample", 0) if not rows.shape[0] else ("feature", 1)
        counted = f"{rows.shape[name]} {empty}(s)"
        raise DataError(f"Found array with {counted} (shape={rows.shape}) while a minimum of 1 is required.")
    if expected is not None and rows.shape[1] != expected:
        raise DataError(f"X has {rows.shape[1]} features, but SparseCoder is expecting {expected} features as input")
    if not np.isfinite(rows.astype(np.float64, copy=False)).all():
        raise DataError("Input X contains NaN or infinity, which cannot be coded")
    return rows


def _column_names(X: Any) -> np.ndarray | None:
    """The columns of a table, where all of them are text."""
    columns = getattr(X, "columns", None)
    if columns is None or not len(columns) or not all(isinstance(name, str) for name in columns):
        return None
    return np.array(list(columns), object)
