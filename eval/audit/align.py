"""How alike two small pictures are when one is laid over the other as well as can be.

A near-duplicate may be moved, cropped, scaled and recoloured. So the second picture is first moved and scaled to where
its details correlate most with those of the first (by Fourier transform), then fitted by an affine map (Gauss-Newton
steps on the correlation, which knows no brightness or contrast; Evangelidis & Psarakis 2008). *Alike* is then the
correlation of the details alone, in the part that both show: brightness and colours of large areas, which many pictures
share, do not count, nor does what is the same along a row or a column, as a horizon is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.audit.pixels import SIDE

if TYPE_CHECKING:
    from torch import Tensor

SCALES = (0.8, 0.9, 1.0, 1.11, 1.25)
MOVED = 8  # pixels that a picture may be moved by
PADDED = 48  # pixels a side, so that a moved picture does not come in again at the other edge
STEPS = 8  # of Gauss-Newton
SPENT = 8  # degrees of freedom that the map and the brightness take


@dataclass(frozen=True)
class Alike:
    """For k pairs, float32 (k,): the correlation r of the details · how sure that is, atanh(r) √(p − 8), where p pixels
    hold the details: a dark spot in a bright sky fits any other · the correlation of brightness · the share of the
    first picture that both show · by how much an area of the second is larger."""

    detail: np.ndarray
    sure: np.ndarray
    brightness: np.ndarray
    shared: np.ndarray
    area: np.ndarray


def alike(A: np.ndarray, B: np.ndarray) -> Alike:
    """Compares A[i] with B[i], uint8 (k, SIDE, SIDE, 3)."""
    import torch

    with torch.inference_mode():
        a, b = (_grey(torch.from_numpy(np.ascontiguousarray(p))) for p in (A, B))
        soft_a, soft_b = _blurred(a, 1), _blurred(b, 1)
        fine_a, fine_b = a - _blurred(a, 3), b - _blurred(b, 3)
        maps = _fitted(soft_a, soft_b, _placed(fine_a, fine_b))
        warped, inside = _warp(torch.cat([fine_b, soft_b], 1), maps)
        shown = inside[:, None]
        detail = torch.minimum(
            _correlation(fine_a, warped[:, :1], shown),
            _correlation(_crossed(fine_a, shown), _crossed(warped[:, :1], shown), shown),
        )
        pixels = torch.minimum(_spread(fine_a, shown), _spread(warped[:, :1], shown))
        sure = torch.atanh(detail.clamp(-0.999, 0.999)) * (pixels - SPENT).clamp_min(0).sqrt()
        area = (maps[:, 0, 0] * maps[:, 1, 1] - maps[:, 0, 1] * maps[:, 1, 0]).abs()
        parts = (detail, sure, _correlation(soft_a, warped[:, 1:], shown), inside.mean((1, 2)), area)
        return Alike(*(part.numpy() for part in parts))


def _grey(rgb: Tensor) -> Tensor:
    """uint8 (k, h, w, 3) → brightness (k, 1, h, w), from 0 to 1."""
    import torch

    return (rgb.float() @ (torch.tensor([0.299, 0.587, 0.114]) / 255))[:, None]


def _blurred(x: Tensor, times: int) -> Tensor:
    import torch
    from torch.nn import functional as F

    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    for _ in range(times):
        x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel.view(1, 1, 1, 5))
        x = F.conv2d(x, kernel.view(1, 1, 5, 1))
    return x


def _warp(x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """x (k, c, h, w) drawn through affine maps (k, 2, 3), and where the result shows x (k, h, w)."""
    from torch.nn import functional as F

    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    inside = (grid.abs() <= 1).all(-1).float()
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False), inside


def _placed(a: Tensor, b: Tensor) -> Tensor:
    """The maps (k, 2, 3) of a scale of SCALES and a move that give details a, b (k, 1, h, w) their best correlation."""
    import torch

    k, size = len(a), (PADDED, PADDED)
    spectrum = torch.fft.rfft2(a, s=size)
    best, maps = torch.full((k,), -np.inf), torch.zeros(k, 2, 3)
    moves = torch.arange(-MOVED, MOVED + 1) % PADDED
    for scale in SCALES:
        scaled = torch.tensor([[scale, 0.0, 0.0], [0.0, scale, 0.0]]).repeat(k, 1, 1)
        warped, inside = _warp(b, scaled)
        warped = warped * inside[:, None]
        every = torch.fft.irfft2(spectrum * torch.fft.rfft2(warped, s=size).conj(), s=size)[:, 0]
        most, at = every[:, moves[:, None], moves].flatten(1).max(1)
        most = most / warped.square().sum((1, 2, 3)).clamp_min(1e-6).sqrt()
        scaled[:, 1, 2] = -(at // len(moves) - MOVED) * 2 / SIDE * scale
        scaled[:, 0, 2] = -(at % len(moves) - MOVED) * 2 / SIDE * scale
        better = most > best
        best, maps = torch.where(better, most, best), torch.where(better[:, None, None], scaled, maps)
    return maps


def _fitted(a: Tensor, b: Tensor, maps: Tensor) -> Tensor:
    """Maps (k, 2, 3) from which STEPS of Gauss-Newton have set out to make b, seen through them, correlate with a."""
    import torch
    from torch.nn import functional as F

    k = len(a)
    at = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    y, x = at[:, None].expand(SIDE, SIDE), at.expand(SIDE, SIDE)
    slope_x = F.pad((b[..., 2:] - b[..., :-2]) * (SIDE / 4), (1, 1))
    slope_y = F.pad((b[..., 2:, :] - b[..., :-2, :]) * (SIDE / 4), (0, 0, 1, 1))
    seen, few = torch.cat([b, slope_x, slope_y], 1), 1e-3
    for _ in range(STEPS):
        drawn, inside = _warp(seen, maps)
        shown = inside[:, None]
        now, wanted = _centred(drawn[:, :1], shown), _centred(a, shown)
        size = [(v.square().sum((2, 3), keepdim=True) + few).sqrt() for v in (now, wanted)]
        rest = (wanted / size[1] * size[0] - now).flatten(1)
        dx, dy = drawn[:, 1], drawn[:, 2]
        J = torch.stack([dx * x, dx * y, dx, dy * x, dy * y, dy], -1) * inside[..., None]
        J = (J - J.mean((1, 2), keepdim=True)).reshape(k, -1, 6)
        H = J.mT @ J
        H = H + torch.eye(6) * (few * H.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + few)
        step = torch.linalg.solve(H, J.mT @ rest[..., None])[..., 0].clamp(-0.15, 0.15)
        maps = maps + step.view(k, 2, 3)
        maps = torch.cat([maps[..., :2].clamp(-1.6, 1.6), maps[..., 2:].clamp(-0.8, 0.8)], -1)
    return maps


def _centred(x: Tensor, shown: Tensor) -> Tensor:
    """x (k, 1, h, w) less its mean over what is shown, and zero elsewhere."""
    return (x - (x * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp_min(1)) * shown


def _crossed(x: Tensor, shown: Tensor) -> Tensor:
    """x without what is the same along a row or along a column."""
    for axis in (3, 2):
        x = x * shown
        x = x - x.sum(axis, keepdim=True) / shown.sum(axis, keepdim=True).clamp_min(1)
    return x


def _spread(x: Tensor, shown: Tensor) -> Tensor:
    """(k,) over how many pixels the energy of x (k, 1, h, w) is spread: (Σ e)² / Σ e²."""
    energy = _centred(x, shown).square().flatten(1)
    return energy.sum(1).square() / energy.square().sum(1).clamp_min(1e-12)


def _correlation(a: Tensor, b: Tensor, shown: Tensor) -> Tensor:
    """(k,) over what is shown."""
    a, b = _centred(a, shown), _centred(b, shown)
    sizes = a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))
    return (a * b).sum((1, 2, 3)) / (sizes + 1e-6).sqrt()
