"""How often a piece of work was begun and not ended: Ray gives the work of a worker that died to another, for ever, and
a picture that ends each process that reads it would hold a build up so.

Each beginning adds a byte to a file beside what is made; the end of the work removes it.
"""

from __future__ import annotations

from pathlib import Path

from training.errors import SparsightError

MOST = 5
STAGES = ("read", "encode", "code")


def begin(made: Path, stage: str, told: str) -> None:
    """Notes that a stage begins with what `made` is made of; raises `SparsightError`, which tells of it in the words
    `told`, where it has begun too often."""
    path = _note(made, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as f:
        f.write(b".")
        begun = f.tell()
    if begun > MOST:
        raise SparsightError(f"{told}: to {stage} it ended a worker {MOST} times; take it away, and run it again")


def ended(made: Path) -> None:
    """Notes that the work is done."""
    for stage in STAGES:
        _note(made, stage).unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """A build that is run again tries all anew."""
    for path in folder.glob("*/.*.tries"):
        path.unlink(missing_ok=True)


def _note(made: Path, stage: str) -> Path:
    return made.parent / f".{made.name}.{stage}.tries"
