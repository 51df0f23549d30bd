"""The coder keeps to scikit-learn's manners, and codes rows of any scale."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from indexer.coding import SparseCoder, encode_sparse
from indexer.config import CoderConfig
from training.errors import DataError, SparsightError

RNG = np.random.default_rng(3)
D = RNG.normal(size=(7, 4))
D /= np.linalg.norm(D, axis=1, keepdims=True)
X = RNG.normal(size=(9, 4))


@parametrize_with_checks([SparseCoder(), SparseCoder(l1=0.3, relative=False)])
def test_scikit_learn_finds_no_fault(estimator, check):
    """Over unit vectors, so that a dictionary fits the rows of every check."""
    check(estimator)


def test_the_concepts_names_are_those_of_the_columns():
    coder = SparseCoder(D, names=[f"word {j}" for j in range(7)])
    assert list(coder.get_feature_names_out()) == [f"word {j}" for j in range(7)]
    assert list(SparseCoder(D).get_feature_names_out()) == [f"concept{j}" for j in range(7)]
    assert coder.fit(X).n_features_in_ == 4
    assert clone(coder).names == coder.names


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (sparse.csr_matrix(X), "X.toarray()"),
        (X[0], "2D"),
        (X[:, :3], "3 features, but SparseCoder is expecting 4"),
        (X + 1j, "Complex"),
        (np.where(X > 1, np.nan, X), "NaN"),
        (np.where(X > 1, np.inf, X), "infinity"),
        ([["a"] * 4], "no number"),
        (np.zeros((0, 4)), "minimum of 1"),
    ],
)
def test_what_cannot_be_coded_is_a_value_error_of_ours(rows, said):
    with pytest.raises(DataError, match=said) as e:
        SparseCoder(D).transform(rows)
    assert isinstance(e.value, ValueError)
    assert isinstance(e.value, SparsightError)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["gram", "active_set", "torch"])
@pytest.mark.parametrize("refit", [False, True])
def test_rows_of_any_scale_reach_their_gap(solver, kind, refit):
    """A row scaled by a power of two has its code scaled by it, down to the smallest numbers there are."""
    smallest = -1074 if kind is np.float64 else -149
    config = CoderConfig(0.3, refit=refit, tol=1e-5)
    plain = encode_sparse(X, D, config, solver=solver)
    for exponent in (-1040, -500, -140, -100, -60, 0, 60, 100, 120, 500, 1000):
        if exponent < smallest or (exponent > 120 and kind is np.float32):
            continue
        scaled = encode_sparse(np.concatenate([np.ldexp(X, exponent), X]).astype(kind), D, config, solver=solver)
        assert (scaled.gap <= config.tol).all()
        lost = np.ldexp(1.0, max(exponent - 17, smallest + 4))  # digits that the row itself has lost
        expected = np.ldexp(plain.W.toarray().astype(np.float64), exponent)
        assert np.abs(scaled.W[:9].toarray() - expected).max() <= lost
        assert np.abs(scaled.W[9:].toarray() - plain.W.toarray()).max() <= 1e-5
        assert np.abs(scaled.l1[:9] - np.ldexp(plain.l1.astype(np.float64), exponent)).max() <= lost


@pytest.mark.parametrize("exponent", [-1000, -90, 90, 900])
def test_an_absolute_penalty_scales_with_the_rows(exponent):
    plain = encode_sparse(X, D, CoderConfig(0.25, relative=False, tol=1e-5))
    scaled = encode_sparse(np.ldexp(X, exponent), D, CoderConfig(np.ldexp(0.25, exponent), relative=False, tol=1e-5))
    assert np.abs(np.ldexp(scaled.W.toarray().astype(np.float64), -exponent) - plain.W.toarray()).max() < 1e-4
    assert (scaled.l1 == np.ldexp(0.25, exponent)).all()
    if exponent < 0:  # far below the penalty nothing is worth a concept
        assert encode_sparse(np.ldexp(X, exponent), D, CoderConfig(0.25, relative=False)).W.nnz == 0


def test_a_row_that_cancels_and_one_of_zeros_are_coded_as_any():
    rows = np.array([[1.0, -1.0, 1e-20, 0], [0, 0, 0, 0], [1e30, -1e30, 0, 0]])
    codes = encode_sparse(rows, np.eye(4), CoderConfig(0.5, refit=False))
    assert codes.W.toarray()[:, 0] == pytest.approx([0.5, 0, 5e29])
