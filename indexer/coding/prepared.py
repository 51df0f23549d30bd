"""A dictionary on its device, with what is derived from it once; and its screening products."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from indexer.coding.pivoting import precise

ROUNDING = 1.002 * 2.0**-9  # what rounding to bfloat16 may change of a number, as a part of what comes out
BLOCK = 128  # rows of D Dᵀ that are multiplied at once


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it is a CPU that multiplies bfloat16 natively."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class PreparedDictionary:
    """A dictionary D (m, d) on its device.

    screens: whether `correlate` multiplies in bfloat16. It only screens: the error is bounded row by row (the
    rounding of x and of D by their norms, the sum's by d), and whatever the bound leaves open is computed in float32.
    """

    D: Tensor
    screens: bool = False

    def gram(self, start: int, G: np.ndarray) -> None:
        """Writes the rows from `start` on, BLOCK of them, of D Dᵀ to G (m, m): left of their end, and mirrored."""
        end, out = start + BLOCK, torch.from_numpy(G)
        out[start:end, :end] = self.D[start:end] @ self.D[:end].T
        out[:start, start:end] = out[start:end, :start].T

    @cached_property
    def exact_G(self) -> Tensor:
        """D Dᵀ in float64 where the device has it."""
        D = self.D.to(precise(self.D.device))
        return D @ D.T

    @cached_property
    def columns(self) -> Tensor:
        """Dᵀ (d, m) in bfloat16, as the screening GEMM likes it best."""
        return self.D.bfloat16().T.contiguous()

    @cached_property
    def error(self) -> float:
        """max_j ‖d_j − bfloat16(d_j)‖."""
        return max(float((part - part.bfloat16().float()).norm(dim=1).max()) for part in self.D.split(4096))

    @cached_property
    def norm(self) -> float:
        return float(self.D.norm(dim=1).max())

    @property
    def kind(self) -> torch.dtype:
        """What correlations come in."""
        return torch.bfloat16 if self.screens else torch.float32

    @property
    def rounding(self) -> float:
        """How far a correlation may be from its rounded value, relatively, beside the bound of `correlate`."""
        return ROUNDING if self.screens else 0.0

    def correlate(self, R: np.ndarray, out: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """R Dᵀ (b, m) as integers that sort alike, in `out`, and a bound (b,) on what rounding did to a row of it.

        The bound does not count the rounding of the result itself (`rounding`): that keeps order, and so does `keys`.
        """
        r = torch.from_numpy(R)
        norm = r.norm(dim=1).numpy()
        slack = R.shape[1] * 2.0**-23 * 1.01 * self.norm  # of d products and sums in float32
        if self.screens:
            C = torch.mm(r.bfloat16(), self.columns, out=out[: len(r)])
            return C.view(torch.int16).numpy(), norm * np.float32(self.error + 1.004 * ROUNDING * self.norm + slack)
        C = torch.mm(r, self.D.T, out=out[: len(r)])
        return C.view(torch.int32).numpy(), norm * np.float32(slack)

    def keys(self, values: np.ndarray) -> np.ndarray:
        """Thresholds (b,) → the integers that `correlate` would make of them, or the next below; all pass one ≤ 0."""
        bits = np.where(values > 0, values, 0).astype(np.float32).view(np.int32)
        if self.screens:
            return np.where(values > 0, bits >> 16, -(2**15)).astype(np.int16)
        return np.where(values > 0, bits, -(2**31)).astype(np.int32)

    def values(self, keys: np.ndarray) -> np.ndarray:
        """The numbers of such integers."""
        return (keys.astype(np.int32) << 16 if self.screens else keys).view(np.float32)
