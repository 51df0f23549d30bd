"""WordNet's nouns and their tree, from the files of its database (Debian's package wordnet-base holds them)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from training.errors import SparsightError

DATA, INDEX = "data.noun", "index.noun"  # their form is told in WordNet's wndb(5)
HYPERNYMS = ("@", "@i")


@dataclass(frozen=True)
class Nouns:
    """WordNet's nouns. above: synset → those right above it. category: synset → the number of its lexicographer file,
    which tells an animal from a tool. definition: synset → what it is. senses: noun, in lower case → its synsets, the
    most frequent sense first.
    """

    above: dict[str, list[str]]
    category: dict[str, int]
    definition: dict[str, str]
    senses: dict[str, list[str]]

    def lineage(self, *synsets: str) -> set[str]:
        """Synsets, and everything that lies above them."""
        seen: set[str] = set()
        left = [*synsets]
        while left:
            if (one := left.pop()) not in seen:
                seen.add(one)
                left += self.above[one]
        return seen

    @cached_property
    def size(self) -> Counter[str]:
        """Synset → how many lie below it, itself included: the fewer, the more alike they are."""
        return Counter(one for synset in self.above for one in self.lineage(synset))

    def lowest_above(self, nouns: Iterable[str]) -> str:
        """The smallest synset that has some sense of every noun below it; raises KeyError for a noun that is none."""
        shared = [self.lineage(*self.senses[noun]) for noun in nouns]
        return min(set.intersection(*shared), key=lambda synset: (self.size[synset], synset))


def read_nouns(folder: Path) -> Nouns:
    """Reads WordNet's nouns. Raises `SparsightError` where the folder holds none."""
    above: dict[str, list[str]] = {}
    category: dict[str, int] = {}
    definition: dict[str, str] = {}
    try:
        for fields, gloss in _lines(folder / DATA):
            at, pointers = fields[0], fields[5 + 2 * int(fields[3], 16) :]
            higher = zip(pointers[::4], pointers[1::4], strict=False)
            above[at], category[at] = [to for kind, to in higher if kind in HYPERNYMS], int(fields[1])
            definition[at] = gloss.split('; "')[0].strip()  # without the examples
        senses = {fields[0].replace("_", " "): fields[-int(fields[2]) :] for fields, _ in _lines(folder / INDEX)}
    except (OSError, ValueError, IndexError) as e:
        reason = e.strerror if isinstance(e, OSError) else "damaged"
        raise SparsightError(
            f"--wordnet {folder}: no nouns of WordNet there ({reason}); Debian's package wordnet-base holds them"
        ) from e
    return Nouns(above, category, definition, senses)


def _lines(path: Path) -> Iterable[tuple[list[str], str]]:
    """The fields of each line but those of the licence, and its gloss."""
    for line in path.read_text(encoding="latin-1").splitlines():
        if not line.startswith(" "):
            data, _, gloss = line.partition(" | ")
            yield data.split(), gloss
