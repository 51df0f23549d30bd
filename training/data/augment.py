"""Random changes to a batch of training pictures, on whatever device they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import TrainConfig

MAX_NOISE = 0.12  # standard deviation, as a share of the range 0 … 255
BLUR_WIDTHS = (0.3, 1.1)  # standard deviation of the Gaussian, pixels
BLUR_RADIUS = 3  # of the blur's kernel, pixels
CONTRASTS = (0.12, 0.9)  # factor on the distance from a picture's mean


def augment(pixels: Tensor, rows: Tensor, epoch: int, config: TrainConfig, rng: np.random.Generator) -> Tensor:
    """Augments a batch of an epoch as its settings ask for: degraded, mirrored, shifted, cut out, shrunk.

    pixels: uint8 (b, 3, 32, 32). rows (b,): their numbers in the training set. Returns float (b, 3, s, s) in 0 … 255,
    s the epoch's size.
    """
    x = degrade(pixels, config.degrade, rng) if config.degrade else pixels.float()
    x = mirror_alternately(x, rows, epoch)
    if config.shift:
        x = shift(x, config.shift, rng)
    if config.cutout:
        x = cut_out(x, config.cutout, config.encoder.mean, rng)
    size = config.size_at(epoch)
    if size != x.shape[-1]:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return x


def mirror_alternately(x: Tensor, rows: Tensor, epoch: int) -> Tensor:
    """Mirrors about half of the pictures (b, 3, h, w) in one epoch and the other half in the next.

    This is airbench's alternating flip (https://arxiv.org/abs/2404.00498): two epochs in a row show both
    sides of every picture. A hash of its row number decides in which epoch a picture is mirrored.
    """
    mirrored = ((rows * 2654435761 >> 7) + epoch) % 2 == 0
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)


def shift(x: Tensor, most: int, rng: np.random.Generator) -> Tensor:
    """Shifts each picture of x (b, 3, s, s) by up to `most` pixels each way; the border is filled by reflection."""
    b, side = len(x), x.shape[-1]
    x = F.pad(x, (most,) * 4, mode="reflect")
    dy, dx = (torch.as_tensor(d, device=x.device) for d in rng.integers(0, 2 * most + 1, (2, b)))
    along = torch.arange(side, device=x.device)
    ys, xs = dy[:, None] + along, dx[:, None] + along  # (b, side)
    i = torch.arange(b, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[i, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)


def cut_out(x: Tensor, size: int, colour: Sequence[float], rng: np.random.Generator) -> Tensor:
    """Hides a square of `size` pixels a side in each picture of x (b, 3, s, s) (DeVries & Taylor 2017).

    The squares' centres are drawn evenly over the picture, so that a square at the border is cut off. colour: what
    fills it, one number of 0 … 1 a channel.
    """
    b, side = len(x), x.shape[-1]
    along = torch.arange(side, device=x.device)
    centres = torch.as_tensor(rng.integers(0, side, (2, b, 1)), device=x.device)
    ys, xs = ((along >= c - size // 2) & (along < c + (size + 1) // 2) for c in centres)  # (b, side)
    filling = 255 * torch.tensor(colour, device=x.device).view(1, 3, 1, 1)
    return torch.where((ys[:, :, None] & xs[:, None, :])[:, None], filling, x)


def degrade(pixels: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Makes a random share of the pictures (b, 3, h, w), in 0 … 255, look as if a poor camera had taken them.

    Half of these are noisy, a quarter blurred, a quarter of low contrast, each picture to a degree of its own. Returns
    float pictures in 0 … 255.
    """
    x = pixels.to(torch.float32, copy=True)
    kind = torch.as_tensor(rng.choice(4, len(x), p=(1 - share, share / 2, share / 4, share / 4)))
    noisy, blurred, faint = (torch.nonzero(kind == k).flatten().to(x.device) for k in (1, 2, 3))

    def strengths(rows: Tensor, low: float, high: float) -> Tensor:
        return torch.as_tensor(rng.uniform(low, high, len(rows)), dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)

    noise = torch.as_tensor(rng.standard_normal((len(noisy), *x.shape[1:]), np.float32), device=x.device)
    x[noisy] += 255 * strengths(noisy, 0, MAX_NOISE) * noise
    along = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    kernel = torch.exp(-0.5 * (along / strengths(blurred, *BLUR_WIDTHS)) ** 2)  # (r, 1, 1, taps)
    kernel = kernel / kernel.sum(3, keepdim=True)
    if len(blurred):
        y = F.pad(x[blurred], (BLUR_RADIUS,) * 4, mode="reflect").transpose(0, 1)  # one group a picture
        for taps in (kernel, kernel.transpose(2, 3)):
            y = F.conv2d(y, taps, groups=len(blurred))
        x[blurred] = y.transpose(0, 1)
    mean = x[faint].mean((1, 2, 3), keepdim=True)
    x[faint] = mean + strengths(faint, *CONTRASTS) * (x[faint] - mean)
    return x.clamp_(0, 255)
