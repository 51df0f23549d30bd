"""The baselines: each against an independent implementation, or what must hold of it."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest

from eval.baselines import WAYS, Material, judge_baseline, quantised
from eval.baselines.learned import autoencoder, most_active, trained
from eval.baselines.pursuit import matching_pursuit, splice, thresholding
from eval.evaluators import Judge, unit
from indexer.residual import balanced_axes
from indexer.store import Store


@pytest.fixture(scope="module")
def material(bundled_index) -> Material:
    """Every tenth bundled embedding, and the concepts."""
    with Store(bundled_index) as store:
        X = store.embeddings()[::10]
        return Material(X, X, store.dictionary())


@pytest.fixture(scope="module")
def judge(material) -> Judge:
    return Judge(material.X)


def test_quantisers_are_sized_and_left_out_with_a_reason(material, judge):
    found = {name: judge_baseline(WAYS[name], material, judge).baseline for name in ("SQ8", "PQ8", "OPQ8", "RaBitQ")}
    assert {name: b.bytes_per_image for name, b in found.items()} == {"SQ8": 256, "PQ8": 8, "OPQ8": 8, "RaBitQ": 40}
    assert found["PQ8"].table_bytes == 4 * 256 * 256
    assert found["OPQ8"].table_bytes == 4 * 256 * 256 + 4 * 256 * 256
    assert found["SQ8"].recall_of_dense > found["OPQ8"].recall_of_dense > found["PQ8"].recall_of_dense
    few = replace(material, train=material.train[:100])
    left = judge_baseline(WAYS["PQ8"], few, judge)
    assert left.baseline is None
    assert left.left_out.reason == "100 pictures to train on, 256 are needed"
    narrow = replace(material, X=material.X[:, :100], train=material.train[:, :100])
    assert judge_baseline(WAYS["PQ16"], narrow, judge).left_out.reason == "16 parts do not divide 100 dimensions"


def test_our_rotation_is_a_better_start_than_faiss_own(material):
    """And the rotation is one, so that nothing is lost but by the quantiser."""
    X = material.X[::2]
    R = balanced_axes(X, 8, 256)
    assert pytest.approx(np.eye(256), abs=1e-4) == R @ R.T
    ours = quantised(replace(material, X=X, train=X), "OPQ8,PQ8").A
    index = faiss.index_factory(256, "OPQ8,PQ8")
    rotation = faiss.downcast_VectorTransform(index.chain.at(0))
    rotation.niter = 4
    index.train(X)
    theirs = index.sa_decode(index.sa_encode(X))
    assert ((ours - X) ** 2).sum() < 0.8 * ((theirs - X) ** 2).sum()


def test_one_bit_a_dimension_keeps_its_side_of_the_mean(material):
    kept = WAYS["one bit a dimension"].make(material)
    mean = material.X.mean(0)
    assert ((mean < kept.A) == (mean < material.X)).all()
    assert kept.bytes_per_image == 32


def test_matching_pursuit_is_scikit_learns_where_no_weight_is_negative(material):
    from sklearn.linear_model import orthogonal_mp

    few = replace(material, X=material.X[:80])
    kept = matching_pursuit(few, k=3)
    W = orthogonal_mp(material.D.T.astype(np.float64), few.X.T.astype(np.float64), n_nonzero_coefs=3).T
    A = W @ material.D
    same = (W >= 0).all(1)
    assert same.sum() > 15
    cosines = (unit(A) * unit(kept.A)).sum(1)[same]
    assert (cosines > 0.999).mean() > 0.9  # theirs chooses by absolute value
    assert kept.bytes_per_image == pytest.approx(10, abs=0.2)


def test_thresholding_takes_the_concepts_that_correlate_most(material):
    few = replace(material, X=material.X[:50])
    kept = thresholding(few, k=2)
    top = np.argsort(-(few.X @ few.D.T), axis=1)[:, :2]
    for x, r, atoms in zip(few.X, kept.A, few.D[top], strict=True):
        w = np.linalg.lstsq(atoms.T.astype(np.float64), x, rcond=None)[0]
        if (w > 0.01).all():
            assert r == pytest.approx(w @ atoms, abs=0.01)  # weights have eight bits
    with_one = judge_baseline(WAYS["thresholding, 10 concepts"], replace(few, D=few.D[:5]), Judge(few.X))
    assert with_one.left_out.reason == "10 concepts, the dictionary has 5"


def test_splice_solves_its_own_problem(material):
    """Of centred pictures and concepts; against scikit-learn's nonnegative lasso, whose penalty is per dimension."""
    from sklearn.linear_model import Lasso

    few = replace(material, X=material.X[:40])
    kept = splice(few)
    mean, D = few.train.mean(0), unit(few.D - few.D.mean(0)).astype(np.float64)
    centred = unit(few.X - mean).astype(np.float64)
    lasso = Lasso(alpha=0.25 / 256, positive=True, fit_intercept=False, max_iter=5000, tol=1e-8)
    for x, found in zip(centred[:10], kept.A, strict=False):
        wanted = unit(unit((lasso.fit(D.T, x).coef_ @ D)[None]) + mean)[0]
        assert found == pytest.approx(wanted, abs=0.01)
    assert splice(few, concepts=3).concepts == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("contrastive", [False, True])
def test_learned_atoms_learn(material, contrastive, monkeypatch):
    monkeypatch.setattr("eval.baselines.learned.STEPS", 100)  # a quarter, which is enough to see it
    kept = autoencoder(material, 4, contrastive=contrastive)
    assert kept.concepts <= 4
    assert kept.bytes_per_image <= 13
    assert (kept.latent is not None) == contrastive
    _encoder, _bias, decoder, _mean = (part.numpy() for part in trained(material, 4, contrastive))
    assert np.linalg.norm(decoder, axis=1) == pytest.approx(1, abs=1e-4)
    start = ((material.X - material.X.mean(0)) ** 2).sum()
    assert ((material.X - kept.A) ** 2).sum() < 0.5 * start
    again = autoencoder(material, 4, contrastive=contrastive)
    assert pytest.approx(kept.A, abs=1e-3) == again.A


def test_the_most_active_are_kept_as_far_as_they_are_positive():
    import torch

    found = most_active(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), 2)
    assert found.tolist() == [[3, 0, 2], [0, 0, 0]]
