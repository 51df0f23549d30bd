"""Near-duplicates: the same photograph once more, mirrored, moved, cropped, scaled, recoloured or compressed.

Candidates are each picture's nearest others by embedding, and by the spectrum of its thumbnail (`pixels.py`), which
holds where an encoder gathers a whole class in one place. Most are told from duplicates by one small Fourier transform;
for the rest the thumbnails are laid over each other (`align.py`). What is joined by pairs is one group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from eval.audit.align import alike
from eval.audit.neighbours import nearest
from eval.audit.pixels import SIDE, grey, smooth, spectra
from eval.audit.subject import Shown, Subject

ALIKE, SURE = 0.62, 10.0  # correlation of the details from which two pictures are near-duplicates, if it is so sure …
CLEAR, BRIGHT = 0.92, 0.9  # … or the details and the brightness correlate so much
CLOSE = 5  # candidates of a picture by each measure
ROUGH = 0.35  # peak of the correlation of the details, at half the size, below which a candidate is dropped
AREA = 2.2  # by how much an area of one may be larger
SHARED = 0.5  # of the first picture that both must show
MIDDLE = np.linspace(0.09 * SIDE, 0.91 * SIDE, SIDE, endpoint=False).astype(int)  # rows and columns of a crop, enlarged
BATCH = 512  # pairs that are compared at a time
SAME = 1 - 1e-4  # cosine of embeddings that are one picture's, where there are no thumbnails to tell


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates, by place; alike: the correlation of their details, or the cosine of their embeddings where a
    thumbnail is missing."""

    a: int
    b: int
    alike: float
    mirrored: bool


@dataclass(frozen=True)
class DuplicateGroup:
    """Near-duplicates of each other. leak: they lie in several splits; conflict: they have several labels; alike: of
    the pair that is least so; mirrored: whether a pair is; verified: whether pixels were compared."""

    pictures: list[Shown]
    leak: bool
    conflict: bool
    alike: float
    mirrored: bool
    verified: bool
    concepts: list[str]


def find_duplicates(subject: Subject) -> list[DuplicateGroup]:
    """The groups of near-duplicates: those that lie in several splits first, then those of several labels, then by
    likeness."""
    pixels = subject.pixels
    places = np.searchsorted(subject.ids, pixels.ids)
    pairs = [] if len(places) < 2 else pixel_pairs(subject.X[places], pixels.rgb)
    known = [Pair(int(places[p.a]), int(places[p.b]), p.alike, p.mirrored) for p in pairs]
    blind = np.setdiff1d(np.arange(len(subject)), places)
    known += [] if len(subject) < 2 or not len(blind) else same_embeddings(subject.X, blind)
    return sorted(
        (_group(subject, places, *part) for part in grouped(known, len(subject))),
        key=lambda g: (not g.leak, not g.conflict, -g.alike),
    )


def pixel_pairs(X: np.ndarray, rgb: np.ndarray) -> list[Pair]:
    """The pairs of near-duplicates among n pictures: X (n, d) embeddings, rgb (n, SIDE, SIDE, 3) uint8."""
    own, mirrored = spectra(rgb)
    details = _details(rgb)
    kept = [
        _roughly(details, candidates(nearest(X, CLOSE)[1])),
        _roughly(details, candidates(nearest(own, CLOSE)[1]), (False,)),
        _roughly(details, candidates(nearest(own, CLOSE, mirrored)[1]), (True,)),
    ]
    best: dict[tuple[int, int], Pair] = {}
    for pair in _compared(rgb, np.unique(np.concatenate(kept), axis=0)):
        earlier = best.get((pair.a, pair.b))
        if earlier is None or pair.alike > earlier.alike:
            best[pair.a, pair.b] = pair
    return list(best.values())


def candidates(places: np.ndarray) -> np.ndarray:
    """Nearest others (n, k) → different pairs (p, 2), the lower place first."""
    n = len(places)
    a, b = np.repeat(np.arange(n), places.shape[1]), places.ravel()
    a, b = a[b >= 0], b[b >= 0]
    code = np.unique(np.minimum(a, b) * n + np.maximum(a, b))
    return np.stack([code // n, code % n], 1)


def same_embeddings(X: np.ndarray, blind: np.ndarray) -> list[Pair]:
    """Pairs of the same embedding, of which one at least is of `blind`, places of pictures without a thumbnail."""
    scores, places = nearest(X, CLOSE)
    found = {
        (min(i, j), max(i, j)): float(score)
        for i in blind.tolist()
        for score, j in zip(scores[i].tolist(), places[i].tolist(), strict=True)
        if score >= SAME and j >= 0
    }
    return [Pair(a, b, min(1.0, score), False) for (a, b), score in found.items()]


def grouped(pairs: list[Pair], n: int) -> list[tuple[list[int], list[Pair]]]:
    """Which of n pictures hang together by pairs: for each group its places and its pairs."""
    if not pairs:
        return []
    a, b = np.array([p.a for p in pairs]), np.array([p.b for p in pairs])
    _, of = connected_components(sparse.coo_matrix((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)
    groups: dict[int, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(int(of[pair.a]), []).append(pair)
    return [(sorted({i for p in found for i in (p.a, p.b)}), found) for found in groups.values()]


def _details(rgb: np.ndarray) -> np.ndarray:
    """The details of pictures at half their size, of the whole and of the middle, enlarged: unit (2, n, h, h)."""
    parts = []
    for start in range(0, len(rgb), 4096):
        g = grey(rgb[start : start + 4096])
        whole = g - smooth(g, 3)
        middle = whole[:, MIDDLE[:, None], MIDDLE]
        fine = np.stack([whole, middle]).reshape(2, len(g), SIDE // 2, 2, SIDE // 2, 2).mean((3, 5))
        parts.append(fine / np.sqrt(np.square(fine).sum((2, 3), keepdims=True) + 1e-6))
    return np.concatenate(parts, 1)


def _roughly(details: np.ndarray, pairs: np.ndarray, ways: tuple[bool, ...] = (False, True)) -> np.ndarray:
    """Those of some pairs (p, 2) whose details have a peak of ROUGH somewhere near, the one or the other being enlarged
    or neither, as rows (a, b, mirrored)."""
    import torch

    fine = torch.from_numpy(details)
    size, moves = (20, 20), torch.arange(-3, 4) % 20
    kept = [np.zeros((0, 3), np.int64)]
    for start in range(0, len(pairs), 4096):
        part = pairs[start : start + 4096]
        a, b = fine[:, part[:, 0]], fine[:, part[:, 1]]
        A = torch.fft.rfft2(a, s=size)
        for mirrored in ways:
            B = torch.fft.rfft2(b.flip(3) if mirrored else b, s=size).conj()
            peak = torch.full((len(part),), -1.0)
            for spectrum in (A[0] * B[0], A[1] * B[0], A[0] * B[1]):
                found = torch.fft.irfft2(spectrum, s=size)[:, moves[:, None], moves]
                peak = torch.maximum(peak, found.amax((1, 2)))
            rows = part[peak.numpy() >= ROUGH]
            kept.append(np.column_stack([rows, np.full(len(rows), mirrored)]))
    return np.concatenate(kept)


def _compared(rgb: np.ndarray, rows: np.ndarray) -> list[Pair]:
    """The near-duplicates among rows (a, b, mirrored)."""
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        A, B = rgb[part[:, 0]], rgb[part[:, 1]]
        is_mirrored = part[:, 2] == 1
        B[is_mirrored] = B[is_mirrored][:, :, ::-1]
        seen = alike(A, B)
        area = np.maximum(seen.area, 1 / np.maximum(seen.area, 1e-6))
        same = (seen.detail >= ALIKE) & (seen.sure >= SURE) | (seen.detail >= CLEAR) & (seen.brightness >= BRIGHT)
        good = same & (seen.shared >= SHARED) & (area <= AREA)
        kept = zip(part[good].tolist(), seen.detail[good].tolist(), strict=True)
        found += [Pair(a, b, value, bool(mirrored)) for (a, b, mirrored), value in kept]
    return found


def _group(subject: Subject, seen: np.ndarray, places: list[int], pairs: list[Pair]) -> DuplicateGroup:
    shown = [subject.shown(i) for i in places]
    weights = np.asarray(subject.W[places].sum(0)).ravel()
    strongest = [j for j in np.argsort(-weights, kind="stable")[:3] if weights[j] > 0]
    return DuplicateGroup(
        pictures=shown,
        leak=len({p.split for p in shown}) > 1,
        conflict=len({p.label for p in shown if p.label is not None}) > 1,
        alike=min(p.alike for p in pairs),
        mirrored=any(p.mirrored for p in pairs),
        verified=bool(np.isin(places, seen).all()),
        concepts=[subject.names[j] for j in strongest],
    )
