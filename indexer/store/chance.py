"""How often an unrelated text would find a picture of an index with so high a score.

A score says little by itself: what is high for one encoder is low for another. So texts that mean nothing here are
asked of the index: made-up words, and words for what no picture shows. Their best scores are the distribution that a
query's scores are compared with: for a score s, chance = (1 + texts whose best score is ≥ s) / (1 + texts), the
p-value of a permutation test (Phipson & Smyth 2010). It holds for any encoder and any index. Whoever builds an index
measures it, since it takes a while where there are many pictures; it lies beside the database, and is no part of it.
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from indexer.store.dense import best_rows
from indexer.store.residuals import read_residuals
from training.errors import TextWarning
from training.files import write_whole

if TYPE_CHECKING:
    from indexer.store.meta import IndexMeta
    from indexer.store.reader import Store

LEVEL = 0.05  # hits of a higher chance do not match
FILE = "chance.json"
MADE_UP = 200  # words of syllables
BLOCK = 1 << 14  # pictures that are scored at a time
GROWN = 1.2  # an index that has grown or shrunk by more is measured again
# None of them is among the words that the report judges by.
ABSTRACT = """
allegory amendment annuity antithesis arbitration assumption audit axiom bankruptcy bureaucracy calculus
causality clause coefficient commission compliance concept consensus copyright covenant credit criterion
curriculum deadline deduction deficit derivative dialect dilemma diplomacy discount doctrine dogma efficiency
embargo epilogue equation equity ethics etymology exemption expertise exponent fallacy feasibility fiscal
forecast fraction franchise geometry governance guarantee harmony heuristic hypothesis idiom ideology
incentive income index inference insolvency integral interest irony jargon jurisdiction knowledge lease
legislation liability likelihood logarithm logic loyalty mandate matrix mean metaphor methodology modality
monopoly morality mortgage narrative negation negotiation notation novelty nuance obligation oligarchy optimum
ordinance orthography oversight paradox parameter patent patience payroll pension percentage phonetics
plagiarism pledge policy polynomial precedent predicate premium prerequisite privacy probability procedure
productivity pronoun proportion proposal proverb quantifier quarterly query quorum ratio rationale recession
reciprocity redundancy referendum reform regression regulation reliability relevance rhetoric royalty rumour
sanction satire schedule semantics sentiment simile solvency sovereignty statistics statute strategy subsidy
summary surplus syllogism synonym syntax tariff tautology taxation tenure theory threshold tolerance
transaction treaty trust turnover typology utility validity variance verb verdict veto virtue warranty wisdom
"""


class Best(NamedTuple):
    """The best score of each unrelated text, in the order of `unrelated_texts`: dense, sparse (t,)."""

    dense: np.ndarray
    sparse: np.ndarray


@dataclass(frozen=True)
class Chance:
    """The best scores of unrelated texts, ascending: dense, sparse (t,); dense is empty where there are no vectors."""

    dense: np.ndarray
    sparse: np.ndarray

    @classmethod
    def among(cls, parts: Sequence[Best]) -> Chance:
        """That of an index from those of its shards: the best score in the whole is the best of theirs."""
        return cls(*(np.sort(np.max(scores, 0)) for scores in zip(*parts, strict=True)))

    def of(self, score: float, mode: str) -> float:
        """How often an unrelated text finds a picture of this score; between 0 and 1."""
        best = self.sparse if mode == "sparse" else self.dense
        return float((1 + len(best) - np.searchsorted(best, score, "left")) / (1 + len(best)))

    def cut_off(self, mode: str, level: float = LEVEL) -> float:
        """The score from which `of` is at most `level`; above 1 where so few texts cannot tell."""
        best = self.sparse if mode == "sparse" else self.dense
        most = int(level * (1 + len(best))) - 1  # texts that may lie at or above it
        return float("inf") if most < 0 else float(np.nextafter(best[len(best) - 1 - most], np.inf))


@cache
def unrelated_texts() -> tuple[str, ...]:
    """Words that mean nothing in pictures, always the same."""
    draw = random.Random(20)
    starts = (*"bdfgklmnp", "qu", *"rstvwz", "bl", "dr", "kr", "pl", "tr")
    middles, ends = "aeiou", "bgklmnprtx"
    made_up: set[str] = set()
    while len(made_up) < MADE_UP:
        made_up.add(
            "".join(draw.choice(starts) + draw.choice(middles) for _ in range(draw.choice((2, 2, 3))))
            + draw.choice(ends)
        )
    return (*sorted(made_up), *ABSTRACT.split())


def kept_best(store: Store) -> Best | None:
    """The scores beside an index; None where they are missing, damaged, or of other pictures, atoms or texts."""
    path = store.folder / FILE
    try:
        return parse_best(path.read_text() if path.is_file() else "", store.meta)
    except (OSError, ValueError):
        return None


def parse_best(text: str, meta: IndexMeta) -> Best | None:
    """What `best_text` wrote; None where it is damaged, or of other pictures, atoms or texts."""
    body, _, checksum = text.rstrip("\n").partition("\n")
    try:
        held = json.loads(body) if body and checksum == _sum(body) else {}
    except ValueError:
        return None
    if held.get("key") != _key(meta) or not 1 / GROWN <= meta.n / held["n"] <= GROWN:
        return None
    return Best(np.array(held["dense"]), np.array(held["sparse"]))


def best_text(best: Best, meta: IndexMeta) -> str:
    """The scores as they are kept."""
    held = {"key": _key(meta), "n": meta.n, "dense": best.dense.tolist(), "sparse": best.sparse.tolist()}
    body = json.dumps(held)
    return f"{body}\n{_sum(body)}\n"


def embed_unrelated(embed: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """The unrelated texts as unit rows (t, d), without notes on those that are made up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        return embed(unrelated_texts())


def index_best(store: Store, embed: Callable[[Sequence[str]], np.ndarray]) -> Best:
    """The scores in an index that is not empty: the kept ones, else such as are measured now, and kept where they can
    be. embed: texts → unit rows (t, d)."""
    if best := kept_best(store):
        return best
    best = measured_best(store, embed_unrelated(embed))
    with suppress(OSError):  # then it is measured anew next time, and the answers are the same
        write_whole(store.folder / FILE, best_text(best, store.meta).encode())
    return best


def measured_best(store: Store, T: np.ndarray) -> Best:
    """The best score of each of some texts, unit rows T (t, d), among all pictures of an index that is not empty."""
    S, W = (T @ store.dictionary().T).T.astype(np.float32), store.codes()
    T, residuals = T.astype(np.float32), read_residuals(store)
    dense, sparse = [], []
    for start in range(0, len(store), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(store)))
        if store.meta.keeps_vectors:
            dense.append(best_rows([(rows, store.embeddings(rows))], T, 1)[0][:, 0])
        held = W[rows[0] : rows[-1] + 1] @ S if residuals is None else residuals.standing_for(rows) @ T.T
        sparse.append(held.max(0))
    return Best(*((np.max(kind, 0) if kind else np.zeros(0)).astype(np.float64) for kind in (dense, sparse)))


def _key(meta: IndexMeta) -> str:
    """What the scores of a text depend on, the pictures apart."""
    words = hashlib.sha256("\0".join(unrelated_texts()).encode()).hexdigest()[:16]
    kept = f" {meta.residual_fingerprint} {meta.keeps_vectors}" if meta.residual or not meta.keeps_vectors else ""
    return f"by text {meta.encoder_fingerprint} {meta.dictionary_fingerprint} {words}{kept}"


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
