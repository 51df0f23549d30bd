"""The coder against scikit-learn's positive Lasso, by its optimality conditions, and at its edges."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from torch.utils._python_dispatch import TorchDispatchMode

from indexer.coding import Codes, SparseCoder, choose_l1, encode_path, encode_sparse
from indexer.coding.pivoting import nonnegative, pivot
from indexer.config import CoderConfig
from training.errors import SparsightError

# Each way through the coder on a CPU, whatever the numbers of rows and atoms.
WAYS = {
    "gram": {"solver": "gram", "screening": False},
    "gram, screened": {"solver": "gram", "screening": True},
    "active set": {"solver": "active_set", "screening": False},
    "active set, screened": {"solver": "active_set", "screening": True},
    "torch": {"solver": "torch"},
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request) -> dict:
    return request.param


def unit(A: np.ndarray) -> np.ndarray:
    return (A / np.maximum(np.linalg.norm(A, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def problem(n: int, m: int, d: int, seed: int, coherence: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    D = unit(rng.normal(size=(m, d)) + coherence * rng.normal(size=(1, d)) * 3)
    X = unit(np.maximum(rng.normal(size=(n, m)) - 1, 0) @ D + 0.3 * rng.normal(size=(n, d)))
    return X, D


def objective(X, D, W, l1):
    return 0.5 * ((X - W @ D) ** 2).sum(1) + l1 * W.sum(1)


def check_certificate(X: np.ndarray, D: np.ndarray, codes: Codes, tol: float) -> None:
    """The duality gap and the optimality conditions, from scratch in float64."""
    codes.W.check_format(full_check=True)
    X, D, W, l1 = X.astype(np.float64), D.astype(np.float64), codes.W.toarray().astype(np.float64), codes.l1
    assert (codes.W.data > 0).all()
    assert codes.gap.max(initial=0) <= tol
    residual = X - W @ D
    correlation = residual @ D.T
    primal = objective(X, D, W, l1)
    theta = residual * np.minimum(1, l1 / np.maximum(correlation.max(1), 1e-30))[:, None]
    gap = primal - 0.5 * (X**2).sum(1) + 0.5 * ((X - theta) ** 2).sum(1)
    # The certificate is as good as float32 correlations are.
    noise = 1e-6 * (1 + np.linalg.norm(X, axis=1) / l1)
    assert (gap <= (np.minimum(tol, codes.gap + noise)) * primal + 1e-9).all()
    # No atom correlates with the residual by more than λ, a used one by no less.
    slack = 0.03 * l1[:, None] + 1e-5
    assert (correlation <= l1[:, None] + slack).all()
    assert (correlation >= l1[:, None] - slack)[W > 0.02].all()


@pytest.mark.parametrize("coherence", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("l1", [0.02, 0.1, 0.4])
def test_agrees_with_scikit_learns_positive_lasso(l1, coherence, way):
    X, D = problem(20, 60, 16, seed=1, coherence=coherence)
    codes = encode_sparse(X, D, CoderConfig(l1=l1, relative=False, tol=2e-5), **way)
    model = Lasso(alpha=l1 / X.shape[1], positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = np.stack([model.fit(D.T.astype(np.float64), x.astype(np.float64)).coef_ for x in X])
    ours = objective(X, D, codes.W.toarray().astype(np.float64), l1)
    best = objective(X, D, expected, l1)
    assert (ours <= best * (1 + 2e-5) + 1e-9).all()
    if coherence == 0:
        np.testing.assert_allclose(codes.W.toarray(), expected, atol=2e-3)


@pytest.mark.parametrize("kind", WAYS)
def test_certificate_and_optimality_conditions_hold(kind):
    @settings(max_examples=40, deadline=None)
    @given(
        n=st.integers(1, 12),
        m=st.integers(1, 200),
        d=st.integers(1, 24),
        seed=st.integers(0, 10_000),
        l1=st.floats(0.05, 0.99),
        coherence=st.sampled_from([0.0, 1.0, 10.0]),
        twins=st.booleans(),
        scale=st.sampled_from([1.0, 1e-3, 30.0]),
    )
    def holds(n, m, d, seed, l1, coherence, twins, scale):
        X, D = problem(n, m, d, seed, coherence)
        if m > 3:
            D[1], D[2] = D[0], 0.0  # a duplicate and a zero atom
        if twins:
            D[m // 2 :] = D[: m - m // 2]
            D[-1] = unit(D[:2].sum(0, keepdims=True))[0]  # and one between two others
        check_certificate(scale * X, D, encode_sparse(scale * X, D, CoderConfig(l1=l1), **WAYS[kind]), 1e-4)

    holds()


@pytest.mark.parametrize("kind", [name for name in WAYS if name != "torch"])
def test_the_ways_agree_within_the_gap(kind):
    X, D = problem(50, 300, 32, seed=7, coherence=1.0)
    config = CoderConfig(l1=0.2)
    reference = encode_sparse(X, D, config, **WAYS["torch"])
    codes = encode_sparse(X, D, config, **WAYS[kind])
    np.testing.assert_allclose(codes.l1, reference.l1, rtol=1e-6)
    # ½‖(w − w′)D‖² is at most the sum of the gaps: the objective is strongly convex in wD.
    apart = 0.5 * (((codes.W - reference.W) @ D) ** 2).sum(1)
    primal = objective(X, D, reference.W.toarray(), reference.l1)
    assert (apart <= (codes.gap + reference.gap + 2e-6) * primal).all()


@pytest.mark.parametrize("solver", ["gram", "active_set"])
def test_codes_do_not_depend_on_the_run_or_the_threads(solver):
    X, D = problem(300, 700, 32, seed=4)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        found.append(encode_sparse(X, D, CoderConfig(l1=0.3, memory=1 << 18), solver=solver))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    for other in found[1:]:
        assert (found[0].W != other.W).nnz == 0
        np.testing.assert_array_equal(found[0].gap, other.gap)


def test_a_path_gives_the_codes_of_its_penalties(way):
    X, D = problem(8, 120, 24, seed=9)
    l1s = np.geomspace(0.95, 0.1, 12)
    path = encode_path(X, D, l1s, **way)
    for l1, codes in zip(l1s, path, strict=True):
        check_certificate(X, D, codes, 1e-4)
        alone = encode_sparse(X, D, CoderConfig(l1=l1), **way)
        np.testing.assert_allclose(codes.W.toarray(), alone.W.toarray(), atol=2e-3)


def test_a_path_is_continuous(way):
    X, D = problem(4, 60, 24, seed=3)
    path = encode_path(X, D, np.linspace(0.6, 0.5, 101), **way)
    steps = [np.abs((a.W - b.W).toarray()).max() for a, b in pairwise(path)]
    whole = np.abs((path[0].W - path[-1].W).toarray()).max()
    assert max(steps) < 0.1 * whole


@pytest.mark.parametrize(("n", "m", "d", "coherence", "l1"), [(20, 80, 16, 0.0, 0.3), (60, 300, 64, 1.0, 0.02)])
def test_refit_is_nonnegative_least_squares_on_the_support(n, m, d, coherence, l1, way):
    from scipy.optimize import nnls

    X, D = problem(n, m, d, seed=6, coherence=coherence)
    plain, refitted = (encode_sparse(X, D, CoderConfig(l1=l1, refit=r), **way) for r in (False, True))
    dropped = 0
    for i, x in enumerate(X):
        support = plain.W[i].indices
        weights, _ = nnls(D[support].T.astype(np.float64), x.astype(np.float64))
        np.testing.assert_allclose(refitted.W[i].toarray()[0, support], weights, atol=1e-5)
        assert set(refitted.W[i].indices) <= set(support)
        dropped += (weights == 0).sum()
    assert dropped  # else plain least squares would pass as well
    assert (refitted.W.data > 0).all()
    np.testing.assert_array_equal(plain.gap, refitted.gap)


def test_refit_of_a_path_is_that_of_its_penalties(way):
    X, D = problem(30, 120, 24, seed=9)
    l1s = [0.7, 0.4, 0.2]
    path = encode_path(X, D, l1s, CoderConfig(refit=True), **way)
    for l1, codes in zip(l1s, path, strict=True):
        alone = encode_sparse(X, D, CoderConfig(l1=l1, refit=True), **way)
        np.testing.assert_allclose(codes.W.toarray(), alone.W.toarray(), atol=2e-3)


def test_nonnegative_least_squares_of_dependent_atoms():
    """Two equal atoms, one between two others, and places that are not used: the fit is that of scipy's nnls."""
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    A = unit(rng.normal(size=(50, 6, 8)))
    A[:, 1], A[:, 2] = A[:, 0], unit(A[:, 3] + A[:, 4])
    x = rng.normal(size=(50, 8))
    used = np.ones((50, 6), bool)
    used[::2, 5] = False
    B = A * used[:, :, None]
    w = nonnegative(torch.tensor(B @ B.transpose(0, 2, 1)).double(), torch.tensor(np.einsum("rkd,rd->rk", B, x)),
                    torch.tensor(used)).numpy()  # fmt: skip
    assert (w >= 0).all()
    assert (w[~used] == 0).all()
    for i in range(50):
        best = nnls(B[i].T.astype(np.float64), x[i])[1]
        assert np.linalg.norm(x[i] - w[i] @ B[i]) <= best + 1e-5


@pytest.mark.parametrize("relative", [True, False])
def test_a_penalty_for_so_many_concepts(relative):
    X, D = problem(400, 200, 32, seed=8)
    l1 = choose_l1(X, D, 6, CoderConfig(relative=relative))
    assert SparseCoder(D, l1, relative=relative).transform(X).nnz / len(X) == pytest.approx(6, rel=0.05)
    with pytest.raises(SparsightError, match="no penalty"):
        choose_l1(X, D, 500, CoderConfig(relative=relative))


def test_is_a_scikit_learn_transformer():
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    X, D = problem(30, 40, 12, seed=3)
    coder = SparseCoder(D, l1=0.4)
    copy = clone(coder.set_params(tol=1e-5))
    assert {k: v for k, v in copy.get_params().items() if k != "dictionary"} == {
        k: v for k, v in coder.get_params().items() if k != "dictionary"
    }
    np.testing.assert_array_equal(copy.dictionary, D)
    W = copy.fit_transform(X)
    np.testing.assert_array_equal(copy.transform(X).toarray(), W.toarray())
    np.testing.assert_allclose(copy.inverse_transform(W), W.toarray() @ D, atol=1e-6)
    piped = make_pipeline(Normalizer(), SparseCoder(D, l1=0.4, tol=1e-5)).fit_transform(7 * X)
    np.testing.assert_allclose(piped.toarray(), W.toarray(), atol=1e-3)
    with pytest.raises(ValueError, match="no parameter 'l2'"):
        coder.set_params(l2=1)


def test_scikit_learn_and_numba_are_not_imported_for_a_query():
    check = (
        "import sys, numpy as np\n"
        "from indexer.coding import SparseCoder\n"
        "SparseCoder(np.eye(5)).transform(np.ones((1, 5)))\n"
        "print([m for m in ('sklearn', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_refitting_in_torch_keeps_to_its_memory():
    """No array that it makes is larger than the bytes it may take."""
    X, D = problem(60, 100, 32, seed=1)
    kept, memory = [], 1 << 18

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                kept.append(out.untyped_storage().nbytes())
            return out

    expected = encode_sparse(X, D, CoderConfig(0.1, refit=True), solver="torch").W.toarray()
    with Watch():
        W = encode_sparse(X, D, CoderConfig(0.1, refit=True, memory=memory), solver="torch").W.toarray()
    assert np.abs(W - expected).max() < 1e-4
    assert max(kept) <= memory


def test_memory_is_bounded_by_the_batch_not_by_n_times_m(tmp_path):
    """20,000 rows over 6,000 atoms: n × m would be 480 MB in float32, X itself 3 MB."""
    np.save(tmp_path / "X.npy", problem(1000, 6000, 32, seed=0)[0].repeat(20, 0))
    check = (
        "import resource, sys, numpy as np\n"
        "from indexer.coding import encode_sparse\n"
        "from indexer.config import CoderConfig\n"
        "X = np.load(sys.argv[1], mmap_mode='r')\n"
        "D = np.random.default_rng(0).normal(size=(6000, 32)).astype(np.float32)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "encode_sparse(X[:200], D, CoderConfig(l1=0.9))\n"
        "before = peak()\n"
        "encode_sparse(X, D, CoderConfig(l1=0.9, memory=16 << 20))\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path / "X.npy")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100


def test_one_sided_correlations_and_a_fully_negative_dictionary(way):
    X, D = problem(5, 10, 8, seed=0)
    against = -np.abs(D)
    codes = encode_sparse(np.abs(X), against, **way)
    assert codes.W.nnz == 0
    assert (codes.gap == 0).all()


def test_pivoting_exchanges_an_atom_for_its_dependents():
    """e1 + e2 over √2 does with less weight what e1 and e2 do together; all three are dependent."""
    A = np.array([[1, 0], [0, 1], [1, 1]]) / np.array([[1], [1], [np.sqrt(2)]])
    G, q = torch.tensor(A @ A.T)[None], torch.tensor(A @ np.array([1.0, 1.0]))[None]
    w = pivot(G, q, torch.tensor([0.1]))
    np.testing.assert_allclose(w.numpy(), [[0, 0, np.sqrt(2) - 0.1]], atol=1e-6)


def test_relative_penalty_leaves_no_code_empty(way):
    X, D = problem(50, 40, 12, seed=3)
    keep = (X @ D.T).max(1) > 1e-3
    W = encode_sparse(X[keep], D, CoderConfig(l1=0.99), **way).W
    assert (np.diff(W.indptr) > 0).all()


def test_penalty_at_or_above_lambda_max_gives_an_empty_code(way):
    X, D = problem(5, 10, 8, seed=0)
    codes = encode_sparse(X, D, CoderConfig(l1=1.01 * float((X @ D.T).max()), relative=False), **way)
    assert codes.W.nnz == 0
    assert (codes.gap == 0).all()


def test_zero_rows_have_zero_codes(way):
    X, D = problem(4, 10, 8, seed=0)
    X[2] = 0
    codes = encode_sparse(X, D, **way)
    assert codes.W[2].nnz == 0
    assert codes.gap[2] == 0
    assert codes.W[0].nnz > 0


def test_batches_do_not_change_the_codes(way):
    X, D = problem(37, 50, 16, seed=5)
    whole = encode_sparse(X, D, CoderConfig(l1=0.3), **way).W.toarray()
    parts = encode_sparse(X, D, CoderConfig(l1=0.3, memory=1), **way).W.toarray()  # a row at a time
    np.testing.assert_allclose(whole, parts, atol=1e-4)


def test_more_active_atoms_than_a_working_set(way):
    """More than twice the atoms that may join in one round."""
    m, d, joining = (120, 100, 32) if way["solver"] == "torch" else (300, 200, 64)
    D = problem(6, m, d, seed=2)[1]
    X = unit(np.abs(np.random.default_rng(0).normal(size=(6, m))) @ D)
    codes = encode_sparse(X, D, CoderConfig(l1=0.005), **way)
    assert np.diff(codes.W.indptr).max() > 2 * joining
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


def test_names_the_first_bad_row_of_many():
    X, D = problem(500, 20, 8, seed=0)
    X[[321, 400], 3] = np.inf, np.nan
    with pytest.raises(SparsightError, match="row 321 of X"):
        encode_sparse(X, D, CoderConfig(memory=1 << 16))


def test_says_so_when_the_gap_is_not_reached(way):
    X, D = problem(10, 60, 16, seed=1, coherence=3.0)
    with pytest.raises(SparsightError, match="stayed above"):
        encode_sparse(X, D, CoderConfig(l1=0.05, tol=1e-12), **way)
