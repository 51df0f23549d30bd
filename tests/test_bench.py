"""The benchmark's own parts: its gaps, its baselines and its verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from eval.bench.coder import claims
from eval.bench.coder_baselines import GEMM, OURS, TOL, Iterative, ours, relative_gaps, scikit_learn
from eval.bench.coder_data import mixtures, synthetic
from eval.bench.common import table


@pytest.fixture(scope="module")
def problem():
    X, D = synthetic(20, 60, 16, 3)
    return X, D, 0.1


def test_rows_and_atoms_are_unit(problem):
    X, D, _ = problem
    for A in (X, D, mixtures(D, 20)):
        np.testing.assert_allclose(np.linalg.norm(A, axis=1), 1, rtol=1e-5)


def test_the_gap_bounds_what_is_lost(problem):
    X, D, l1 = problem
    model = Lasso(alpha=l1 / X.shape[1], positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    best = np.stack([model.fit(D.T.astype(np.float64), x.astype(np.float64)).coef_ for x in X])
    worse = 1.1 * best

    def primal(W):
        return 0.5 * ((X - W @ D) ** 2).sum(1) + l1 * W.sum(1)

    assert relative_gaps(X, D, best, l1).max() < 1e-6
    assert (relative_gaps(X, D, worse, l1) * primal(worse) >= primal(worse) - primal(best) - 1e-9).all()


@pytest.mark.parametrize("way", ["fista", "admm", "scikit-learn", "ours"])
def test_every_way_reaches_the_tolerance(problem, way):
    X, D, l1 = problem
    if way == "ours":
        W = ours(X, D, l1)
    elif way == "scikit-learn":
        D64 = D.astype(np.float64)
        W = scikit_learn(X.astype(np.float64), D64, l1, D64 @ D64.T)
    else:
        W = getattr(Iterative(D, limit_s=20), way)(X, l1)
    assert relative_gaps(X, D, W, l1).max() <= TOL


def test_claims_say_yes_and_no():
    rows: list[dict[str, object]] = [
        {"problem": "p", "way": OURS, "times": 1.0, "gap_max": 1e-5},
        {"problem": "p", "way": GEMM, "times": 0.2},
        {"problem": "p", "way": "SPAMS lasso, 2 threads", "times": 3.0},
    ]
    met = {str(c["claim"]): c["met"] for c in claims(rows)}
    assert met == {"p: × SPAMS lasso, 2 threads": "yes", f"p: time / {GEMM}": "NO", "p: relative gap": "yes"}
    assert table(rows).splitlines()[0].split() == ["problem", "way", "times", "gap_max"]
