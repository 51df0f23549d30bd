"""Loops compiled by numba, kept for the next process where a folder can be written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """`numba.njit` whose machine code is kept beside the module, or in the user's cache folder.

    Where neither can be written, as in a read-only installation without a home, numba refuses. Then the code is
    compiled anew in each process.
    """

    def compile_(function: F) -> F:
        try:
            return njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # numba's "no locator available"
            _note()
            return njit(nogil=True, **options)(function)

    return compile_


@cache
def _note() -> None:
    print(
        "note: no folder for compiled code can be written, so it is compiled anew, which takes a while; "
        "name one with NUMBA_CACHE_DIR",
        file=sys.stderr,
    )
