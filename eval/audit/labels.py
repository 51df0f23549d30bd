"""Label errors: pictures whose embedding, neighbours and concepts speak against their label.

Each picture has the probability p of its own label by evidence that this label is no part of (`evidence.py`). How often
a label of such a p is wrong follows from two distributions: of p under the labels as they are, and of p under labels
drawn at random from the other classes, which is known exactly. Where p is so low that random labels have it as often as
it is seen, these are the wrong ones; that gives their share, and by Bayes' rule the probability for every p. It counts
labels that are wrong at random: between classes that look alike a wrong label cannot be told from a hard picture, so
there it is a lower bound.

What an encoder was trained on it has learnt with its errors. Such pictures are judged among themselves, told apart, and
come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.audit.evidence import Evidence, weigh
from eval.audit.subject import Shown, Subject
from search.answers import ConceptWeight
from training.errors import SparsightError

DRAWN = 200_000  # random labels that stand for their distribution, about
SHOWN = 0.3  # least share of the random labels below a value by which their share is told
LISTED = 0.1  # of the pictures, the first of which are findings
FEWEST = 20  # labelled pictures that can be judged
BINS = 400


@dataclass(frozen=True)
class LabelError:
    """A picture whose label may be wrong.

    suggested: the likeliest other class; probability: that the label is wrong; given, other: how likely the label and
    the suggested class are by the evidence; neighbours: the labels of the nearest other pictures; concepts: what each
    adds to the suggested class's score over the label's; learnt: whether the encoder was trained on this label.
    """

    picture: Shown
    suggested: str
    probability: float
    given: float
    other: float
    neighbours: list[tuple[str, int]]
    concepts: list[ConceptWeight]
    learnt: bool


def find_label_errors(subject: Subject, seed: int = 0) -> list[LabelError]:
    """The pictures whose labels are most likely wrong, best first; those that the encoder has learnt behind the others.

    Raises `SparsightError` where there are too few labelled pictures, or all have one label.
    """
    if not (subject.labels >= 0).any():
        raise SparsightError(
            "no picture has a label; class folders give labels: `sparsight index PATH --labels folders`"
        )
    found, few = [], []
    for learnt in (False, True):
        rows = np.flatnonzero((subject.labels >= 0) & (subject.learnt == learnt))
        if len(rows) and (reason := refused(subject.labels[rows])):
            few.append(reason)
        elif len(rows):
            found += _judged(subject, rows, learnt, seed)
    if not found and few:
        raise SparsightError(few[0])
    return found


def refused(y: np.ndarray) -> str | None:
    """Why pictures of these classes (n,) cannot be judged; None where they can."""
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2:
        return f"all {len(y)} labelled pictures have one label: there is nothing to tell it from"
    if len(y) < FEWEST:
        return f"there are {len(y)} labelled pictures: at least {FEWEST} are needed"
    return None


def _judged(subject: Subject, rows: np.ndarray, learnt: bool, seed: int) -> list[LabelError]:
    used, y = np.unique(subject.labels[rows], return_inverse=True)
    renamed = np.full(len(subject.classes) + 1, -1)
    renamed[used] = np.arange(len(used))
    T = subject.T[used]
    evidence = weigh(subject.X[rows], y, T, subject.D, renamed[subject.parents], seed)
    p = evidence.P[np.arange(len(y)), y]
    wrong = wrong_probability(evidence.P, y, seed)
    listed = np.lexsort((p, -wrong))[: max(FEWEST, round(LISTED * len(y)))]
    names = [subject.classes[j] for j in used]
    return [
        _finding(subject, int(rows[i]), names, T, evidence, int(y[i]), int(i), float(wrong[i]), learnt) for i in listed
    ]


def _finding(
    subject: Subject,
    place: int,
    names: Sequence[str],
    T: np.ndarray,
    evidence: Evidence,
    own: int,
    row: int,
    probability: float,
    learnt: bool,
) -> LabelError:
    P, votes = evidence.P[row].copy(), evidence.votes[row]
    given, P[own] = float(P[own]), -1.0
    other = int(P.argmax())
    order = [int(j) for j in np.argsort(-votes, kind="stable") if votes[j] > 0]
    return LabelError(
        picture=subject.shown(place),
        suggested=names[other],
        probability=probability,
        given=given,
        other=float(P[other]),
        neighbours=[(names[j], int(votes[j])) for j in order],
        concepts=subject.parts(place, T[other] - T[own]),
        learnt=learnt,
    )


def wrong_probability(P: np.ndarray, y: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n,) the probability that each label y (n,) is wrong, from the probabilities P (n, c) of all classes."""
    n, c = P.shape
    log_p = np.log(np.maximum(P, 1e-300))
    own = log_p[np.arange(n), y]
    rng = np.random.default_rng(seed)
    times = max(1, min(c - 1, DRAWN // n))
    every = times == c - 1  # of the other classes
    shifts = np.tile(np.arange(c - 1), (n, 1)) if every else rng.integers(0, c - 1, (n, times))
    drawn = np.sort(log_p[np.arange(n)[:, None], (y[:, None] + 1 + shifts) % c].ravel())
    share = random_share(np.sort(own), drawn)
    edges = np.unique(np.quantile(np.concatenate([drawn, own]), np.linspace(0, 1, BINS + 1)))
    seen = np.histogram(own, edges)[0] / n
    random = share * np.histogram(drawn, edges)[0] / len(drawn)
    parts = falling(random / np.maximum(random + seen, 1e-12), random + seen)
    wrong = parts / np.maximum(1 - parts, 1e-6)
    return np.clip(wrong, 0, 1)[np.clip(np.searchsorted(edges, own, "right") - 1, 0, len(edges) - 2)]


def random_share(own: np.ndarray, drawn: np.ndarray) -> float:
    """The share of labels that are wrong at random: no more than lets any low value be seen as often as it is.

    own (n,), drawn (r,): log probabilities of the labels as they are and of random ones, ascending.
    """
    below = np.arange(SHOWN, 1, 0.1)  # few shares, far apart: the least of many would be so by chance
    counts = np.searchsorted(own, np.quantile(drawn, below), "right")
    return float(min(1.0, ((counts + 1) / len(own) / below).min()))


def falling(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The falling sequence nearest to values (b,) by weighted least squares: neighbours that rise are pooled."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] <= pools[-1][0]:
            (v, w, k), (u, x, j) = pools.pop(), pools.pop()
            pools.append(((v * w + u * x) / max(w + x, 1e-12), w + x, k + j))
    return np.concatenate([np.full(k, value) for value, _, k in pools])
