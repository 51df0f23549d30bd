"""How well unrelated pictures are told from known ones, by `indexer.store.familiarity` and by simpler figures.

Known are CIFAR-10's test pictures, each judged by the half that was not fitted to it. Unrelated are pictures made by
code, or those below folders: `python -m eval.bench.familiarity FOLDER...`, which should hold nothing of CIFAR-10's
classes. AUROC is how often a known picture has the higher figure; FPR is the share of unrelated ones above the figure
that 95 % of the known ones reach.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from eval.bench.common import Options, Row, Section, table
from indexer.store.familiarity import measured
from training.encoders import Encoder, embeddings_beside, open_encoder

EACH = 100  # made pictures of a kind
NEIGHBOUR = 5  # of the baseline by nearest neighbours (Sun et al. 2022): the best of 1, 5, 20, 50 and 100
Figure = Callable[[np.ndarray], np.ndarray]  # X (n, d) → the more familiar the larger (n,)


def run(options: Options) -> Section:
    """AUROC and FPR for each kind of made pictures."""
    encoder = open_encoder(options.encoder or "bundled")
    strange = {kind: encoder.encode_images(pixels) for kind, pixels in made_pictures(EACH).items()}
    return Section(tables={"unrelated pictures, made by code": rows(encoder, strange)})


def rows(encoder: Encoder, strange: Mapping[str, np.ndarray]) -> list[Row]:
    """One row for each kind of unrelated pictures, embedded as X (n, d), and one for the mean of all kinds."""
    X = embeddings_beside(encoder.source).X
    ids, D = np.arange(len(X)), encoder.encode_concepts(list(encoder.concepts))
    known = measured(X, ids)
    assert known is not None
    half = X[::2]
    ways: dict[str, tuple[np.ndarray, Figure]] = {
        "familiarity": (known.share(X, ids), known.share),
        "neighbour": (_neighbour(X[1::2], half), lambda Z: _neighbour(Z, half)),
        "concept": ((X @ D.T).max(1), lambda Z: (Z @ D.T).max(1)),
    }
    found: list[Row] = []
    for kind, Z in strange.items():
        row: Row = {"unrelated": kind, "n": len(Z)}
        for name, (usual, figure) in ways.items():
            row[f"AUROC, {name}"] = round(auroc(usual, figure(Z)), 3)
            row[f"FPR, {name}"] = round(float((figure(Z) >= np.quantile(usual, 0.05)).mean()), 2)
        found.append(row)
    mean: Row = {"unrelated": "mean", "n": sum(len(Z) for Z in strange.values())}
    values = {key: [float(str(row[key])) for row in found] for key in found[0] if key not in mean}
    return [*found, mean | {key: round(float(np.mean(v)), 3) for key, v in values.items()}]


def auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """How often a known picture (n,) has a higher figure than a strange one (m,); equal ones count half."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, strange, "left") + np.searchsorted(ordered, strange, "right")
    return float(1 - below.mean() / (2 * len(known)))


def made_pictures(n: int, seed: int = 3) -> dict[str, np.ndarray]:
    """Pictures (n, 32, 32, 3) uint8 of nothing, by kind: stripes, checks, discs, letters, noise."""
    rng = np.random.default_rng(seed)
    made: dict[str, list[np.ndarray]] = {kind: [] for kind in ("stripes", "checks", "discs", "letters", "noise")}
    y, x = np.mgrid[:32, :32]
    for _ in range(n):
        one, two = rng.integers(0, 256, (2, 3))
        turn = rng.uniform(0, np.pi)
        wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * rng.uniform(0.4, 1.5)) / 2 + 0.5
        made["stripes"].append(one + (two - one) * wave[..., None])
        size = rng.integers(3, 9)
        made["checks"].append(one + (two - one) * ((x // size + y // size) % 2)[..., None])
        made["discs"].append(_discs(rng, one))
        made["letters"].append(_letter(chr(rng.integers(65, 91)), one, two))
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        made["noise"].append(np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC)))
    return {kind: np.stack(pictures).clip(0, 255).astype(np.uint8) for kind, pictures in made.items()}


def _discs(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    picture = Image.new("RGB", (32, 32), tuple(ground.tolist()))
    for left, top, size in rng.integers(0, 20, (6, 3)).tolist():
        colour = tuple(rng.integers(0, 256, 3).tolist())
        ImageDraw.Draw(picture).ellipse((left, top, left + size + 3, top + size + 3), fill=colour)
    return np.asarray(picture)


def _letter(letter: str, ground: np.ndarray, ink: np.ndarray) -> np.ndarray:
    picture = Image.new("RGB", (32, 32), tuple(ground.tolist()))
    ImageDraw.Draw(picture).text((6, 2), letter, fill=tuple(ink.tolist()), font_size=26)
    return np.asarray(picture)


def _neighbour(Z: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The cosine of each row of Z (n, d) with the k-th nearest of X (m, d)."""
    return np.concatenate([np.partition(part @ X.T, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR] for part in _parts(Z)])


def _parts(Z: np.ndarray) -> list[np.ndarray]:
    return [Z[i : i + 500] for i in range(0, len(Z), 500)]


def main(folders: list[str]) -> None:
    """The rows for the pictures below some folders."""
    from indexer.pictures import find_pictures
    from indexer.pictures.files import read_picture

    encoder = open_encoder()
    strange = {}
    for folder in folders:
        found, _ = find_pictures(Path(folder))
        strange[Path(folder).name] = encoder.encode_images([read_picture(p, encoder.image_size) for p in found])
    print(table(rows(encoder, strange)))


if __name__ == "__main__":
    main(sys.argv[1:])
