"""FAISS's approximate indexes as a source of candidates, and how hard one must look to find what is asked for.

An approximate index is measured once, when it is built: queries of both kinds, pictures and texts, whose nearest rows
are known, tell how many lists or links must be visited, and how many candidates must be scored exactly, so that the
share of the true k best that is found (recall) reaches the target. The caller scores the candidates with the vectors
themselves. Where no setting reaches the target, or it is no cheaper, every row is scored.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from indexer.store.vectors import SCAN_ROWS, RowSource
from training.errors import CallError

RECALL = 0.95  # the target
LEVELS = (10, 30, 100, 300, 1000)  # numbers of hits for which it is measured
SAMPLE = 256  # queries of each kind
SLACK = 1.1  # rows that there may be more of than were measured
GAIN = 0.005  # a twofold effort that finds so little more is not worth it: more candidates are
CODED = 1.3  # where more candidates than so many times k are needed, codes stand for the rows
PATIENCE = 60  # seconds that a trial may take
TRIED = (256, 4096)  # rows of a further trial, where the fewest do not do
REFUSED = 3  # exit code of a trial that FAISS refuses


class Setting(NamedTuple):
    """How hard to look for k hits: lists or links to visit (1 where an index has no such choice), rows to score."""

    k: int
    effort: int
    candidates: int

    def doubled(self) -> Setting:
        return Setting(self.k, 2 * self.effort, 2 * self.candidates)


@dataclass(frozen=True)
class Tuning:
    """The settings that reached a recall over so many rows, by k; for a larger k none did."""

    recall: float
    rows: int
    settings: tuple[Setting, ...] = ()

    def at(self, k: int) -> Setting | None:
        """The setting for k hits; None where every row is to be scored."""
        return next((setting for setting in self.settings if setting.k >= k), None)

    def fits(self, recall: float, rows: int) -> bool:
        """Whether it was measured for this target, and over about as many rows."""
        return recall == self.recall and rows <= SLACK * self.rows

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes | str) -> Tuning:
        """What `to_json` wrote; raises ValueError, TypeError or KeyError for anything else."""
        held = json.loads(text)
        return cls(held["recall"], held["rows"], tuple(Setting(*map(int, s)) for s in held["settings"]))


@dataclass(frozen=True)
class Approximate:
    """An index of FAISS over rows 0 … n − 1, and its tuning."""

    index: Any
    tuning: Tuning

    @cached_property
    def is_graph(self) -> bool:
        """Whether it follows links: what it visits are its candidates."""
        return _graph(list(_parts(self.index))[-1]) is not None

    def candidates(self, Q: np.ndarray, setting: Setting) -> list[np.ndarray]:
        """For each query of Q (q, d) the rows, best first, that are worth an exact score."""
        return [found[found >= 0] for found in _ask(self.index, Q, setting.effort, setting.candidates)]


def build_approximate(X: RowSource, d: int, factory: str, texts: np.ndarray, recall: float) -> Approximate:
    """Builds a FAISS index of any `index_factory` description over rows (n, d) and measures it.

    texts (m, d): queries that are no pictures, as the dictionary's atoms. Raises `CallError` where FAISS cannot: the
    description means nothing to it, or asks for more rows.
    """
    rows = np.ascontiguousarray(X[:], np.float32)
    index = _built(rows, d, factory)
    return Approximate(index, tune(index, rows, texts, recall))


def grown(held: Approximate, X: RowSource, texts: np.ndarray, recall: float) -> Approximate:
    """The index with the rows of X that it does not hold yet; measured again where they are many."""
    if held.index.ntotal < len(X):
        _add(held.index, np.ascontiguousarray(X[held.index.ntotal :], np.float32))
    if held.tuning.fits(recall, len(X)):
        return held
    return Approximate(held.index, tune(held.index, X, texts, recall))


def refuse_description(factory: str, d: int, n: int) -> None:
    """Raises `CallError` for a description of which FAISS cannot build an index over n rows of d dimensions.

    It is tried on random rows, the fewest that it can be trained on: where there are fewer, FAISS says how many that
    is. In a process of its own, since some descriptions end the process.
    """
    if not re.search(r"\w", factory) or "\0" in factory:
        raise CallError(
            f"--dense {factory!r}: give a description as FAISS's index_factory reads it, such as IVF256,Flat"
        )
    needed = 2
    while True:
        command: list[str | bytes] = [sys.executable, "-m", "indexer.store.approximate"]
        command += [os.fsencode(factory), str(d), str(needed)]
        path = os.pathsep.join(p for p in sys.path if p)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=env, check=False, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired as e:
            raise CallError(f"--dense {factory!r}: FAISS does not build it in {PATIENCE} s over {needed} rows") from e
        if done.returncode == 0:
            return
        said = done.stdout.strip() if done.returncode == REFUSED else "FAISS breaks down over it"
        fewest = re.search(r"number of clusters \((\d+)\)", said)
        if fewest is None or int(fewest[1]) <= needed:
            more = next((rows for rows in TRIED if needed < rows <= n), None)  # some need more, and do not say how many
            if more is None:
                raise CallError(f"--dense {factory!r}: {said or 'its size does not fit'}")
            needed = more
            continue
        needed = int(fewest[1])
        if needed > n:
            raise CallError(f"--dense {factory!r} needs at least {needed} pictures to train on, and there are {n}")


def _try(factory: str, d: int, n: int) -> int:
    """Builds and searches an index over n random rows; prints why where that cannot be, and returns the exit code."""
    rows = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    try:
        _ask(_built(rows, d, factory, quick=True), rows[:1], 1, 1)
    except CallError as e:
        print(e)
        return REFUSED
    return 0


def _built(rows: np.ndarray, d: int, factory: str, *, quick: bool = False) -> Any:
    """quick: trained in one round, where it is only asked whether that can be done."""
    try:
        index = _described(d, factory)
        _hasten(index, quick)
        if not index.is_trained:
            index.train(rows)
        _add(index, rows)
    except (RuntimeError, AssertionError, MemoryError, OverflowError) as e:
        reason = str(e).strip().splitlines()[-1] if str(e).strip() else "its size does not fit"
        reason = re.sub(r"^Error in .*? at \S+:\d+: (Error: )?(.*? failed: ?)?", "", reason) or "it does not fit"
        raise CallError(f"FAISS cannot build it over {len(rows)} embeddings of {d} numbers: {reason}") from e
    return index


def _hasten(index: Any, quick: bool) -> None:
    """Leaves out the part of training that nothing here uses: an order of a quantiser's codes for Hamming distances,
    which takes most of the time."""
    import faiss

    for part in _parts(index):
        for coded in (part, faiss.downcast_index(part.storage) if isinstance(part, faiss.IndexHNSW) else None):
            if hasattr(coded, "do_polysemous_training"):
                setattr(coded, "do_polysemous_training", False)  # noqa: B010 (FAISS's types do not tell of it)
        for i in range(_steps(part) if quick else 0):
            if isinstance(transform := faiss.downcast_VectorTransform(part.chain.at(i)), faiss.OPQMatrix):
                transform.niter = transform.niter_pq = transform.niter_pq_0 = 1


def _steps(index: Any) -> int:
    """Transforms that come before an index."""
    return index.chain.size() if hasattr(index, "chain") else 0


def _described(d: int, factory: str) -> Any:
    """By inner product where the description knows it; else by distance, whose order is the same over unit rows."""
    import faiss

    try:
        return faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        try:
            return faiss.index_factory(d, factory, faiss.METRIC_L2)
        except RuntimeError:
            pass
        raise


def _add(index: Any, rows: np.ndarray) -> None:
    import faiss

    if any(isinstance(part, faiss.IndexIDMap | faiss.IndexIDMap2) for part in _parts(index)):
        index.add_with_ids(rows, np.arange(index.ntotal, index.ntotal + len(rows)))
    else:
        index.add(rows)


def _parts(index: Any) -> Iterator[Any]:
    """An index, and what it passes queries on to, outermost first."""
    import faiss

    part = faiss.downcast_index(index)
    yield part
    for name in ("index", "base_index"):  # of a transform or an id map; of a refinement
        if isinstance(inner := getattr(part, name, None), faiss.Index):
            yield from _parts(inner)


def _graph(part: Any) -> tuple[Any, str] | None:
    """Where a graph keeps how many links are followed."""
    for name, key in (("hnsw", "efSearch"), ("nsg", "search_L"), ("nndescent", "search_L")):
        if hasattr(part, name):
            return getattr(part, name), key
    return None


def _most_effort(index: Any) -> int:
    import faiss

    part = list(_parts(index))[-1]
    if _graph(part):
        return int(index.ntotal)
    return int(part.nlist) if isinstance(part, faiss.IndexIVF) else 1


def _set_effort(index: Any, effort: int) -> None:
    import faiss

    part = list(_parts(index))[-1]
    if graph := _graph(part):
        setattr(*graph, effort)
    elif isinstance(part, faiss.IndexIVF):
        part.nprobe = min(effort, part.nlist)
        _set_effort(part.quantizer, max(64, 2 * effort))


def _ask(index: Any, Q: np.ndarray, effort: int, count: int) -> np.ndarray:
    """Rows (q, count), best first, −1 where there are fewer. A refinement is left out: the caller scores exactly."""
    import faiss

    while isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    _set_effort(index, effort)
    try:
        return index.search(np.ascontiguousarray(Q, np.float32), min(count, max(1, index.ntotal)))[1]
    except RuntimeError as e:
        raise CallError(f"FAISS cannot search its index: {str(e).strip().splitlines()[-1]}") from e


class _Queries:
    """Queries of both kinds whose nearest rows are known: an index's own rows, each without itself, and texts."""

    def __init__(self, X: RowSource, texts: np.ndarray, k: int):
        rng, n = np.random.default_rng(0), len(X)
        chosen = np.sort(rng.choice(n, min(SAMPLE, n), replace=False))
        own = np.concatenate([X[i : i + 1] for i in chosen.tolist()])
        pairs = rng.integers(0, max(len(texts), 1), (SAMPLE if len(texts) else 0, 2))
        asked = texts[pairs].sum(1)  # texts are of two concepts, or of one where a pair is of the same
        asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-12)
        self.Q = np.ascontiguousarray(np.concatenate([own, asked.reshape(-1, own.shape[1])]), np.float32)
        self._is_own = np.arange(len(self.Q)) < len(own)
        nearest = _nearest(X, self.Q, k + 1)
        for row, self_id in zip(nearest, chosen, strict=False):
            others = row[row != self_id]
            row[: len(others)] = others
        self._nearest, self._n = nearest[:, :k], n

    def places(self, found: np.ndarray) -> np.ndarray:
        """(q, k): the place among the rows found (q, c) of each of the k nearest rows; n where it is not there."""
        place = np.full(self._n + 1, self._n)
        places = np.empty_like(self._nearest)
        for row, nearest, out in zip(found, self._nearest, places, strict=True):
            place[row] = np.arange(len(row))
            out[:] = place[nearest]
            place[row] = self._n
        return places

    def recall(self, places: np.ndarray, k: int, candidates: int) -> float:
        """Recall of the k best among so many candidates, of the kind that is harder to find: the mean less two
        standard errors, so that it holds for more than these queries."""
        shares = (places[:, :k] < candidates).mean(1)
        kinds = [shares[kind] for kind in (self._is_own, ~self._is_own) if kind.any()]
        return min(float(s.mean() - 2 * s.std() / np.sqrt(len(s))) for s in kinds)


def _nearest(X: RowSource, Q: np.ndarray, k: int) -> np.ndarray:
    """Ids (q, min(k, n)) of the rows with the largest products, best first."""
    scores, ids = np.zeros((len(Q), 0), np.float32), np.zeros((len(Q), 0), np.int64)
    for start in range(0, len(X), SCAN_ROWS):
        S = Q @ X[start : start + SCAN_ROWS].T
        scores = np.concatenate([scores, S], 1)
        ids = np.concatenate([ids, np.broadcast_to(np.arange(start, start + S.shape[1]), S.shape)], 1)
        if scores.shape[1] > k:
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    return np.take_along_axis(ids, np.argsort(-scores, axis=1, kind="stable"), 1)


def tune(index: Any, X: RowSource, texts: np.ndarray, recall: float) -> Tuning:
    """The least effort and the fewest candidates that reach a recall, for several numbers of hits; X (n, d): the rows
    that the index holds."""
    levels = [k for k in LEVELS if 2 * k <= len(X)]
    if not levels:
        return Tuning(recall, len(X))
    queries, settings = _Queries(X, texts, levels[-1]), []
    start = Setting(0, 1, 0)
    for k in levels:
        found = _least(index, queries, k, recall, start)
        if found is None:
            break
        start = found
        settings.append(found)
    return Tuning(recall, len(X), tuple(settings))


def _least(index: Any, queries: _Queries, k: int, recall: float, start: Setting) -> Setting | None:
    """The setting for k hits, from that of fewer on; None where it would take half of all rows."""
    most, is_graph = _most_effort(index), _graph(list(_parts(index))[-1]) is not None
    effort, count, before = max(start.effort, 2 * k if is_graph else 1), max(8 * k, start.candidates), -1.0
    goal = recall if is_graph else (1 + recall) / 2  # one half of the loss to the lists, one to the candidates
    while True:
        if is_graph:
            count = effort  # what a graph visits are its candidates
        if 2 * count > index.ntotal and not (most > 1 and not is_graph and 2 * k <= index.ntotal):
            return None
        count = min(count, index.ntotal)
        places = queries.places(_ask(index, queries.Q, effort, count))
        reached = queries.recall(places, k, count)
        if reached >= goal:
            break
        if effort < most and (is_graph or reached > before + GAIN):
            effort, before = min(2 * effort, most), reached
        elif count == index.ntotal:
            return None
        else:
            count, before = 4 * count, -1.0
    candidates = count
    while not is_graph and candidates > k and queries.recall(places, k, max(k, candidates * 4 // 5)) >= recall:
        candidates = max(k, candidates * 4 // 5)
    if candidates > CODED * k:
        candidates = max(candidates, 2 * k)  # enough to notice a query that needs more
    return Setting(k, effort, candidates) if 2 * candidates <= index.ntotal else None


if __name__ == "__main__":
    sys.exit(_try(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
