"""The words that a text tower was taught, and those of them that have a token of their own.

A small tower reads a rare word by its letters and takes "catsup" for a cat. A word that it would misplace is therefore
read as one token, a name of several words ("toad lily") too. Names that belong at the same place share a token: all
that mean nothing here have one. A frequent word ("trailer") makes phrases, in which the tower reads it well; it has its
token where it stands alone, as in "a photo of a trailer". What is no taught word is read by its letters still, and a
warning says so.
"""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from training.errors import UntaughtWarning

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_GAP = re.compile(r"[\s-]+|\. ?")  # what may stand between the words of a name
SHORT = 2  # letters of a word that says nothing by itself
SHOWN = 5  # words that a warning names
# Words beside which a name stands alone.
FRAME = frozenset(("a", "an", "the", "two", "some", "this", "is", "of", "small", "photo", "picture", "image"))


class Piece(NamedTuple):
    """A part of a text, from `start` to `end`, and the token that stands for it; None where it is read by letters."""

    start: int
    end: int
    token: int | None


@dataclass(frozen=True)
class Lexicon:
    """own: names, as `spelled`, and the number of the token of each, counted from 0. alone: those of them that have
    it only where a text has no other words than `FRAME`. taught: all other words known.

    A lexicon without words knows nothing of what its tower was taught.
    """

    own: Mapping[str, int] = field(default_factory=dict)
    taught: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()

    @classmethod
    def of_json(cls, text: str) -> Lexicon:
        """Reads what `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        read = json.loads(text)
        own = {name: token for token, names in enumerate(read["own"]) for name in names}
        return cls(own, frozenset(read["taught"].split()), frozenset(read["alone"].split("|")) - {""})

    def to_json(self) -> str:
        """The names of each token, and the taught words, as JSON."""
        names: list[list[str]] = [[] for _ in range(self.tokens)]
        for name, token in self.own.items():
            names[token].append(name)
        return json.dumps(
            {"own": names, "taught": " ".join(sorted(self.taught)), "alone": "|".join(sorted(self.alone))}
        )

    @cached_property
    def tokens(self) -> int:
        """How many tokens its names have."""
        return 1 + max(self.own.values(), default=-1)

    @cached_property
    def _longest(self) -> int:
        return max((name.count(" ") + 1 for name in self.own), default=0)

    def pieces(self, text: str) -> list[Piece]:
        """A text in parts, in order, without the space between them: names with a token of their own, and the rest.

        The longest name counts. A plural and a possessive of a name are read as the name, unless they are taught.
        """
        found = list(_WORD.finditer(text))
        words = [spelled(m[0]) for m in found]
        others = sum(word not in FRAME for word in words)
        pieces: list[Piece] = []
        at = i = 0
        while i < len(found):
            count, token = self._name_at(text, found, words, i, others)
            if token is not None:
                start, end = found[i].start(), found[i + count - 1].end()
                pieces += [*_rest(text, at, start), Piece(start, end, token)]
                at = end
            i += count
        return [*pieces, *_rest(text, at, len(text))]

    def _name_at(
        self, text: str, found: Sequence[re.Match[str]], words: Sequence[str], i: int, others: int
    ) -> tuple[int, int | None]:
        """The longest name that begins with word i: how many words it has, and its token; 1 and None without one.

        others: how many words of the text are none of `FRAME`.
        """
        for count in range(min(self._longest, len(words) - i), 0, -1):
            gaps = (text[a.end() : b.start()] for a, b in zip(found[i:], found[i + 1 : i + count], strict=False))
            *before, last = words[i : i + count]
            if all(_GAP.fullmatch(gap) for gap in gaps):
                forms = [last] if count == 1 and last in self.taught else [last, *singulars(last)]
                for name in (" ".join([*before, form]) for form in forms):
                    if name in self.own and (name not in self.alone or others <= count):
                        return count, self.own[name]
        return 1, None

    def untaught(self, text: str) -> list[str]:
        """The words of a text that the tower was not taught, as they are written; none where nothing is known of that.

        Numbers, words with digits, and words of one or two letters are no words here.
        """
        if not self.taught:
            return []
        return [
            text[piece.start : piece.end][m.start() : m.end()]
            for piece in self.pieces(text)
            if piece.token is None
            for m in _WORD.finditer(text[piece.start : piece.end])
            if not self._knows(spelled(m[0]))
        ]

    def _knows(self, word: str) -> bool:
        return (
            len(word) <= SHORT
            or any(letter.isdigit() for letter in word)
            or any(form in self.taught or form in self.own for form in (word, *singulars(word)))
        )


def spelled(name: str) -> str:
    """A name as a lexicon holds it: its words in lower case, a space between them, straight apostrophes."""
    plain = unicodedata.normalize("NFKC", name).lower().replace("’", "'")
    return " ".join(_WORD.findall(plain))


def singulars(word: str) -> Iterable[str]:
    """What a word may be the plural or the possessive of."""
    if word.endswith("'s"):
        yield word[:-2]
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("es"):
        yield word[:-2]
    if word.endswith("s"):
        yield word[:-1]


def _rest(text: str, start: int, end: int) -> list[Piece]:
    return [Piece(start, end, None)] if text[start:end].strip() else []


def warn_of_untaught(texts: Sequence[str], lexicon: Lexicon) -> None:
    """Warns, once for all of the texts, of the words that the tower was not taught."""
    words = list(dict.fromkeys(spelled(word) for text in texts for word in lexicon.untaught(text)))
    if not words:
        return
    said = ", ".join(repr(word if len(word) <= 80 else word[:80] + "…") for word in words[:SHOWN])
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    warnings.warn(
        f"the encoder was not taught {said}{more}: it goes by the letters, and may be far off",
        UntaughtWarning,
        stacklevel=3,
    )
