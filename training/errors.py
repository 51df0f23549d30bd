"""Errors that a person can mend. Their text is one line: what is wrong, why, and a hint.

Everything that sparsight refuses on purpose is a `SparsightError`. The command line prints its text and exits with
its code. Any other exception that reaches the user is a bug.
"""


class SparsightError(Exception):
    """Something outside the call is wrong: a missing file, a damaged index, no GPU. Exit code 1."""

    exit_code = 1


class DataError(SparsightError, ValueError):
    """Numbers that cannot be used: a wrong shape, values that are not finite. Exit code 1."""


class TextWarning(UserWarning):
    """A text is not read as its writer may think; the command line and the answers of the web tell it as a note."""


class UntaughtWarning(TextWarning):
    """A text holds words that the encoder was not taught; the message names them."""


class CutTextWarning(TextWarning):
    """A text is longer than the encoder reads, and the end of it is left out; the message names it."""


class CallError(SparsightError):
    """The call itself is wrong: an empty query, k ≤ 0, an unknown concept. Exit code 2."""

    exit_code = 2
