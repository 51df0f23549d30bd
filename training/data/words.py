"""The English that a text tower is taught: words, their senses, and phrases made of them.

The words are the most frequent ones of the package wordfreq, and the lemmas and definitions of ImageNet's WordNet
synsets, which timm carries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from training.config import DistilConfig
from training.data.captions import fill
from training.errors import SparsightError

# Phrases of a relevant word and others. WORD: any frequent word. NEAR, ALSO: a relevant word.
PHRASES = (
    "a WORD NEAR", "a NEAR WORD", "a NEAR ALSO", "WORD NEAR", "NEAR in the WORD", "a NEAR on a WORD",
    "a NEAR with a WORD", "a NEAR that can WORD", "a NEAR for WORD", "the WORD of a NEAR", "a WORD with a NEAR",
    "a NEAR of WORD WORD",
)  # fmt: skip

# Descriptions of a thing without its name. KIND: one of the kinds. WORD: a word that describes it.
KINDS = ("animal", "creature", "pet", "beast", "wild animal", "farm animal", "vehicle", "machine", "craft", "thing")
DESCRIPTIONS = (
    "a WORD KIND", "a WORD KIND", "a WORD WORD KIND", "a KIND with WORD", "a KIND for WORD", "a KIND that can WORD",
    "a KIND of the WORD", "a WORD KIND in the WORD", "a KIND used for WORD", "KIND of WORD",
)  # fmt: skip


class Synset(NamedTuple):
    """A concept of WordNet: the words for it (lemmas), and what it is."""

    lemmas: list[str]
    definition: str


def synsets() -> list[Synset]:
    """The WordNet synsets that timm lists as ImageNet-22k."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet22k")
    return [
        Synset(
            info.index_to_description(i, detailed=False).split(", "),
            info.index_to_description(i, detailed=True).split(": ", 1)[-1],
        )
        for i in range(info.num_classes())
    ]


def word_senses() -> dict[str, list[str]]:
    """Each lemma of ImageNet's synsets, in lower case → its senses as texts: "galleon: a large square-rigged …"."""
    senses: dict[str, list[str]] = {}
    for lemmas, definition in synsets():
        for lemma in lemmas:
            senses.setdefault(lemma.lower(), []).append(f"{lemma.lower()}: {definition}")
    return senses


def broad_vocabulary(words: int) -> list[str]:
    """The `words` most frequent English words, then the lemmas and the definitions of ImageNet's synsets.

    Raises `SparsightError` where wordfreq is not installed.
    """
    lemmas, definitions = zip(*synsets(), strict=True)
    return list(dict.fromkeys([*frequent_words(0, words), *chain(*lemmas), *definitions]))


def rare_words(words: int, rare: int) -> list[str]:
    """Of the `rare` English words that follow the first `words` in frequency, those of ASCII letters."""
    return [word for word in frequent_words(words, words + rare) if word.isascii()]


def frequent_words(first: int, last: int) -> list[str]:
    """The English words of the frequency ranks `first` … `last` − 1, the most frequent of all having rank 0.

    Numbers, signs and words of one or two letters are left out. Raises `SparsightError` where wordfreq is not
    installed.
    """
    try:
        from wordfreq import top_n_list
    except ImportError as e:
        raise SparsightError("--teacher needs the package wordfreq: install 'sparsight[train]'") from e
    return [w for w in top_n_list("en", last)[first:] if w.replace("'", "").isalpha() and len(w) > 2]


def phrases(texts: Sequence[str], relevance: np.ndarray, sure: np.ndarray, config: DistilConfig) -> list[str]:
    """Makes new texts of words, from which a tower learns what a phrase makes of its words.

    They are, in this order: each relevant short text with its article (for "a doe" is not "doe"); relevant words beside
    others; and descriptions of animals and machines that do not name them. Repeated ones are left out.

    texts: n of them, the most frequent first. relevance (n,): 0 … 1. sure (n,) bool: whether the teacher knows the text
    by itself. A word that it does not know ("hart") stays out of phrases, because the teacher would misplace them too.
    """
    rng = np.random.default_rng(config.seed)
    short = [i for i, t in enumerate(texts) if t.count(" ") < 3]
    relevant = [i for i in short if relevance[i] > config.relevant_from]
    near = [texts[i] for i in relevant if sure[i]]
    words = [texts[i] for i in short[: config.company] if sure[i]]
    # Few of all words describe something; many of those with these endings do: "a galloping animal".
    doing = [w for w in words if w.endswith(("ing", "ed", "s"))]
    describing = [some for some in (near, doing, words) if some]
    made = [fill("a {}", texts[i]) for i in relevant]
    if near:
        slots = {"WORD": words, "NEAR": near, "ALSO": near}
        made += [_fill_slots(str(p), slots, rng) for p in rng.choice(PHRASES, config.phrases)]
    for pattern in rng.choice(DESCRIPTIONS, config.descriptions):
        drawn = describing[int(rng.integers(len(describing)))]
        made.append(_fill_slots(str(pattern), {"WORD": drawn, "KIND": KINDS}, rng))
    return list(dict.fromkeys(made))


def _fill_slots(pattern: str, slots: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    """Puts a word in place of each slot of a pattern, drawn anew each time."""
    phrase = re.sub("|".join(slots), lambda m: slots[m[0]][int(rng.integers(len(slots[m[0]])))], pattern)
    return re.sub(r"\ba (?=[aeiou])", "an ", phrase)
