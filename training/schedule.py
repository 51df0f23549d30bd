"""Which optimizer changes which weights, and how fast over a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training.config import TrainConfig
from training.encoders.dual import DualEncoder
from training.muon import Muon

EARLIEST = 1e-3  # share of a run at which the warm-up counts as begun, so that the first step is not empty


def make_optimizers(model: DualEncoder, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Makes the optimizers of a run; each trainable weight belongs to one of them.

    * Muon, at `config.lr`: the convolutions of the image tower, which are its weights of four dimensions. It is left
      out where there are none, as in a vision transformer.
    * AdamW, at `config.head_lr`: the rest of the image tower, which is its projection, norms and biases.
    * AdamW, at `config.text_lr`: the text tower and the temperature.

    AdamW forgets squared gradients faster than usual (β₂ = 0.98, as CLIP's vision transformers) and has no weight
    decay. The rates are the peaks, which `set_rates` scales.
    """
    trainable = [p for p in model.image.parameters() if p.requires_grad]
    convolutions = [p for p in trainable if p.ndim == 4]
    others = [p for p in trainable if p.ndim != 4]
    text = [*model.text.parameters(), model.log_scale]
    adam = torch.optim.AdamW(
        [{"params": others, "lr": config.head_lr}, {"params": text, "lr": config.text_lr}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    optimizers: list[torch.optim.Optimizer] = [Muon(convolutions, lr=config.lr), adam] if convolutions else [adam]
    for group in (g for o in optimizers for g in o.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Sets every learning rate to its peak times a factor."""
    for group in (g for o in optimizers for g in o.param_groups):
        group["lr"] = group["peak_lr"] * factor


def lr_factor(done: float, warmup: float) -> float:
    """The learning rate as a share of its peak: linear up over the share `warmup` of a run, then linear down to zero.

    done: the share of the run that is done, 0 … 1.
    """
    return max(done, EARLIEST) / warmup if done < warmup else max(0.0, (1 - done) / (1 - warmup))
