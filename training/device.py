"""Where the arithmetic runs: choosing a device, and the precision that is fast on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from training.errors import SparsightError


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for `auto` (a GPU where there is one), `cpu`, `cuda` or `mps`.

    Raises `SparsightError` where there is no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if name == "cuda" and not cuda:
        raise SparsightError("--device cuda: torch sees no CUDA device; use --device cpu or auto")
    if name == "mps" and not mps:
        raise SparsightError("--device mps: torch sees no Apple GPU; use --device cpu or auto")
    return torch.device(name)


def fast_bf16(device: torch.device) -> bool:
    """True where a device computes bfloat16 in hardware.

    A CPU without AVX-512 BF16 and AMX emulates it; training on an AMD Zen 3 was then 13 × slower than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.backends.cpu.get_cpu_capability()
        return "AVX512" in capabilities and torch.cpu._is_avx512_bf16_supported()
    return False


@contextmanager
def single_threads() -> Iterator[Callable[[], None]]:
    """Yields what a thread calls so that torch computes in it alone, for where as many threads as cores call torch.

    Torch would otherwise start as many threads again beside each of them, which wait for one another in turns.
    """
    before = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(1)  # that of the calling thread, and of those that are begun after it
    finally:
        torch.set_num_threads(before)
