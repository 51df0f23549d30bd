"""The faults a person can mend: what is wrong, why, and the hint, in one line.

Everything that sparsight refuses on purpose is a `SparsightError`; the command line prints its text
and exits 1 (the world is wrong) or 2 (the call is wrong). Anything else that escapes is a bug.
"""


class SparsightError(Exception):
    """The world is wrong: a missing file, a damaged index, no GPU. Exit code 1."""

    exit_code = 1


class CallError(SparsightError):
    """The call is wrong: an empty query, k ≤ 0, an unknown concept. Exit code 2."""

    exit_code = 2
