"""The coder against scikit-learn's positive Lasso, by its optimality conditions, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from indexer.coder import encode_sparse
from indexer.config import CoderConfig
from training.errors import SparsightError


def unit(A: np.ndarray) -> np.ndarray:
    return (A / np.maximum(np.linalg.norm(A, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def problem(n: int, m: int, d: int, seed: int, coherence: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    D = unit(rng.normal(size=(m, d)) + coherence * rng.normal(size=(1, d)) * 3)
    X = unit(np.maximum(rng.normal(size=(n, m)) - 1, 0) @ D + 0.3 * rng.normal(size=(n, d)))
    return X, D


def objective(X, D, W, l1):
    return 0.5 * ((X - W @ D) ** 2).sum(1) + l1 * W.sum(1)


@pytest.mark.parametrize("coherence", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("l1", [0.02, 0.1, 0.4])
def test_agrees_with_scikit_learns_positive_lasso(l1, coherence):
    X, D = problem(20, 60, 16, seed=1, coherence=coherence)
    codes = encode_sparse(X, D, CoderConfig(l1=l1, relative=False, tol=1e-5))
    model = Lasso(alpha=l1 / X.shape[1], positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = np.stack([model.fit(D.T.astype(np.float64), x.astype(np.float64)).coef_ for x in X])
    ours = objective(X, D, codes.W.toarray().astype(np.float64), l1)
    best = objective(X, D, expected, l1)
    assert (ours <= best * (1 + 2e-5) + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    m=st.integers(1, 80),
    d=st.integers(1, 24),
    seed=st.integers(0, 10_000),
    l1=st.floats(0.05, 0.99),
    coherence=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_certificate_and_optimality_conditions_hold(n, m, d, seed, l1, coherence):
    X, D = problem(n, m, d, seed, coherence)
    if m > 3:
        D[1], D[2] = D[0], 0.0  # a duplicate and a zero atom
    config = CoderConfig(l1=l1, tol=1e-4)
    W, gap, l1s = encode_sparse(X, D, config)
    W.check_format(full_check=True)
    W = W.toarray().astype(np.float64)
    assert (W >= 0).all()
    assert gap.max(initial=0) <= config.tol
    # The certificate, from scratch in float64: no dual point can be above the primal by more than the gap.
    residual = X - W @ D
    correlation = residual @ D.T.astype(np.float64)
    primal = objective(X, D, W, l1s)
    positive = X.astype(np.float64) @ D.T.astype(np.float64) > 0
    scale = np.minimum(1, l1s / np.maximum(correlation.max(1), 1e-30))
    theta = residual * scale[:, None]
    dual = 0.5 * (X.astype(np.float64) ** 2).sum(1) - 0.5 * ((X - theta) ** 2).sum(1)
    has_code = positive.any(1)
    assert ((primal - dual)[has_code] <= 2e-3 * primal[has_code] + 1e-7).all()
    # Optimality: no atom correlates with the residual by more than λ, a used one by λ itself.
    slack = 0.03 * l1s[:, None] + 1e-5
    assert (correlation <= l1s[:, None] + slack)[has_code].all()


def test_relative_penalty_leaves_no_code_empty():
    X, D = problem(50, 40, 12, seed=3)
    keep = (X @ D.T).max(1) > 1e-3
    W = encode_sparse(X[keep], D, CoderConfig(l1=0.99)).W
    assert (np.diff(W.indptr) > 0).all()


def test_penalty_at_or_above_lambda_max_gives_an_empty_code():
    X, D = problem(5, 10, 8, seed=0)
    codes = encode_sparse(X, D, CoderConfig(l1=1.01 * float((X @ D.T).max()), relative=False))
    assert codes.W.nnz == 0
    assert (codes.gap == 0).all()


def test_zero_rows_have_zero_codes():
    X, D = problem(4, 10, 8, seed=0)
    X[2] = 0
    codes = encode_sparse(X, D)
    assert codes.W[2].nnz == 0
    assert codes.W[0].nnz > 0


def test_batches_do_not_change_the_codes():
    X, D = problem(37, 50, 16, seed=5)
    whole = encode_sparse(X, D, CoderConfig(l1=0.3)).W.toarray()
    parts = encode_sparse(X, D, CoderConfig(l1=0.3, batch_size=5)).W.toarray()
    np.testing.assert_allclose(whole, parts, atol=1e-3)


def test_more_active_atoms_than_the_working_set():
    X, D = problem(6, 200, 64, seed=2)
    X = unit(np.abs(np.random.default_rng(0).normal(size=(6, 200))) @ D)
    codes = encode_sparse(X, D, CoderConfig(l1=0.005, working_set=8))
    assert np.diff(codes.W.indptr).max() > 8
    assert codes.gap.max() <= 1e-4


def test_no_rows_give_an_empty_matrix():
    assert encode_sparse(np.zeros((0, 4), np.float32), unit(np.eye(4))).W.shape == (0, 4)


@pytest.mark.parametrize(
    ("X", "D", "l1", "says"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), 0.1, "expected"),
        (np.full((2, 3), np.nan), np.eye(3), 0.1, "row 0 of X"),
        (np.ones((2, 3)), np.full((1, 3), np.inf), 0.1, "row 0 of D"),
        (np.ones((2, 3)), np.zeros((0, 3)), 0.1, "m > 0"),
        (np.ones((2, 3)), np.eye(3), 0.0, "l1"),
        (np.ones((2, 3)), np.eye(3), float("nan"), "l1"),
    ],
)
def test_refuses_what_it_cannot_code(X, D, l1, says):
    with pytest.raises(SparsightError, match=says):
        encode_sparse(X, D, CoderConfig(l1=l1))


def test_says_so_when_the_gap_is_not_reached():
    X, D = problem(10, 60, 16, seed=1, coherence=3.0)
    with pytest.raises(SparsightError, match="stayed above"):
        encode_sparse(X, D, CoderConfig(l1=0.05, sweeps=1, max_rounds=1, tol=1e-6))
