"""What each part of the training's loss is for: short, equal trainings with and without it.

Each variant is trained from random weights on CIFAR-10 (the folder that SPARSIGHT_DATA names), by the same steps and
seeds. Then the test pictures are coded twice: with the penalty that `sparsight index` takes for the bundled encoder,
and with the one that gives CONCEPTS concepts a picture, which is the fairer comparison: a space that was not made for
codes needs more concepts. A training that was stopped goes on where it ended.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from eval.bench.common import Options, Row, Section
from training.config import ObjectiveConfig, TrainConfig
from training.errors import DataError

if TYPE_CHECKING:
    from training.data.cifar10 import Pictures

PLAIN = ObjectiveConfig(structure_weight=0.0, code_weight=0.0, fidelity_weight=0.0)
VARIANTS = {  # by name: the loss, and the largest inverse temperature; 100 is CLIP's
    "contrast, temperature of CLIP": (PLAIN, 100.0),
    "contrast": (PLAIN, TrainConfig.max_scale),
    "contrast + structure": (ObjectiveConfig(code_weight=0.0, fidelity_weight=0.0), TrainConfig.max_scale),
    "contrast + structure + code": (ObjectiveConfig(), TrainConfig.max_scale),
}
TOWER = "conv32_small"
SIZES = ((20, 2), (24, 2))  # pixels a side, epochs
SEEDS = (0, 1)
CONCEPTS = 5.0  # a picture on average


def run(options: Options) -> Section:
    """Trains what is not trained yet, in bench/objective/, and measures each on the test split."""
    import torch

    from training.data.cifar10 import load_cifar10
    from training.device import pick_device
    from training.loop import train

    data = Path(os.environ.get("SPARSIGHT_DATA", "data"))
    pictures, held_out = load_cifar10(data, ("train",)), load_cifar10(data, ("test",))
    device: torch.device = pick_device(options.device)
    rows: list[Row] = []
    for name, (loss, max_scale) in VARIANTS.items():
        for seed in SEEDS:
            out = options.out / "objective" / f"{name.replace(' + ', '-').replace(', ', '-').replace(' ', '-')}-{seed}"
            config = TrainConfig(objective=loss, sizes=SIZES, max_scale=max_scale, seed=seed)
            config = replace(config, encoder=replace(config.encoder, name=TOWER, image_tower=TOWER))
            if not (out / "model.safetensors").is_file():
                click.echo(f"{name}, seed {seed}", err=True)
                train(pictures, config, out, device=device, held_out=held_out)
            rows.append({"objective": name, "seed": seed, **measured(out, held_out)})
    epochs = sum(epochs for _, epochs in SIZES)
    title = f"parts of the loss, {TOWER}, {epochs} epochs, {len(held_out):,} test pictures"
    return Section(tables={title: rows, "means over the seeds": [_mean(name, rows) for name in VARIANTS]})


def measured(folder: Path, pictures: Pictures) -> Row:
    """Accuracy of embeddings and codes, and of the one strongest concept against the pictures' search terms."""
    from eval.evaluators import concept_accuracy, predicted, reconstruct
    from indexer.coding import choose_l1, encode_sparse, make_dictionary, merge_same
    from indexer.config import CoderConfig
    from training.data.cifar10 import CLASSES
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder(str(folder))
    X = load_test_embeddings(encoder).X
    dictionary = merge_same(make_dictionary("terms", encoder))
    D, T = dictionary.D, encoder.encode_concepts(CLASSES)
    ids = {n: i for i, (name, more) in enumerate(zip(dictionary.names, dictionary.aliases, strict=True))
           for n in (name, *more)}  # fmt: skip
    wanted = np.array([ids.get(term, -1) for term in pictures.terms])
    parents = np.array([CLASSES.index(p) if p in CLASSES else -1 for p in dictionary.parents])
    row: Row = {"m": len(D), "dense": float((predicted(X, T) == pictures.labels).mean())}
    coder = CoderConfig()
    settings = {"": coder.l1}
    with suppress(DataError):  # a space in which no penalty gives so many: its cells stay empty
        settings[f" at {CONCEPTS:g}"] = choose_l1(X, D, CONCEPTS, coder)
    for of, l1 in settings.items():
        W = encode_sparse(X, D, replace(coder, l1=l1, refit=True)).W
        right = predicted(reconstruct(W, D), T) == pictures.labels
        found = concept_accuracy(X, W, D, wanted, parents, pictures.labels)
        row |= {f"sparse{of}": float(right.mean()), f"concepts{of}": W.nnz / len(X)}
        row[f"term{of}"] = found.top_term_accuracy_sparse
        row["term dense"] = found.top_term_accuracy_dense
    return row


def _mean(name: str, rows: list[Row]) -> Row:
    mine = [row for row in rows if row["objective"] == name]
    keys = [key for key in mine[0] if key not in ("objective", "seed") and all(key in row for row in mine)]
    return {"objective": name, **{key: float(np.mean([float(str(row[key])) for row in mine])) for key in keys}}
