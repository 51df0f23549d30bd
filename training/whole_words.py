"""Whole words: what the taught text tower misplaces gets tokens of its own (`training.encoders.lexicon`).

The teacher gives each word a place, but four million parameters cannot learn seventy thousand: among WordNet's nouns
somebody always looks like a cat. So the tower is asked for each word that it was taught, and where it is wrong the word
becomes a token. Only the embeddings of these tokens are trained; whatever has none of them is read as before, bit for
bit.

Where a noun belongs, WordNet's tree says. A class's *root* is the smallest synset that has all of its concepts below
it. A noun below a root belongs among the concepts of that class, the closer in the tree the more. A noun that shares
only a higher synset with a root (a lion with cats) lies in the same direction but nearer to the null direction, the
more synsets there are below the one they share. All others belong on the null direction, or, where the teacher finds
their meaning relevant ("aviation"), between it and the nearest concept. Tokens whose places nearly coincide are one, so
that there are few.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from training.config import Teaching, WholeWordsConfig
from training.data.captions import TEMPLATES, Captions, embed_concepts, fill
from training.data.cifar10 import CLASSES
from training.data.wordnet import Nouns, read_nouns
from training.data.words import frequent_words, rare_words, synsets
from training.distil import Placer, null_direction, prepare_lesson, teach
from training.encoders.dual import DualEncoder
from training.encoders.lexicon import SHORT, Lexicon, singulars, spelled
from training.encoders.tokens import TowerTokenizer

NATURAL = {5, 8, 13, 20, 27}  # WordNet's categories animal, body, food, plant, substance: the tree alone judges these
SENSES = 2  # of a word's that are its commonest
# What a word is taught in beside the templates of the captions. ALSO: one of the encoder's own concepts.
CONTEXTS = ("the {}", "two {}", "a small {}", "a {} in the snow", "a picture of some {}", "this is a {}.")
COMPANY = ("a ALSO with a {}", "a {} and a ALSO", "a ALSO near the {}", "the {} of a ALSO", "a {} ALSO")


def teach_texts(model: DualEncoder, captions: Captions, X: np.ndarray, teaching: Teaching) -> DualEncoder:
    """Teaches a trained encoder a broad vocabulary, through a new text tower or one taught before; returns the encoder.

    The model is changed in place. captions: of its training pictures. X: (n, d) embeddings of training pictures, from
    which the null direction is found. Raises `SparsightError` where the teacher cannot be loaded.
    """
    forget_own_words(model)  # what is taught now is read by its letters
    D = embed_concepts(model.encode_texts, captions.concepts, TEMPLATES)
    placer = Placer(captions, D, null_direction(X, D), teaching, model.device)
    if teaching.config.epochs:
        model = teach(model, captions, D, prepare_lesson(captions, placer), teaching.config)
    if teaching.wordnet is not None:
        teach_whole_words(model, captions, placer, read_nouns(teaching.wordnet), teaching.words)
    return model


@dataclass(frozen=True)
class TreePlace:
    """Where the tree puts a noun. direction (d,): a unit vector. relevance: the cosine with it, 0 … 1; the rest is the
    null direction. classes: ids of those that it lies below."""

    direction: np.ndarray
    relevance: float
    classes: frozenset[int]


class TreePlacer:
    """Places nouns by WordNet's tree. D: (m, d) the concepts in the encoder's space. null: (d,) the null direction."""

    def __init__(self, nouns: Nouns, captions: Captions, D: np.ndarray, null: np.ndarray, config: WholeWordsConfig):
        self.nouns, self.null, self.config = nouns, null, config
        self.parent = captions.parent
        self.D = D - (D @ null)[:, None] * null
        of_class = [
            [c for c, p in zip(captions.concepts, captions.parent, strict=True) if p == k] for k in range(len(CLASSES))
        ]
        self.roots = [nouns.lowest_above(concepts) if concepts else "" for concepts in of_class]
        self.lineages = [
            self._lineage(c, self.roots[p]) for c, p in zip(captions.concepts, captions.parent, strict=True)
        ]
        self.towards = self.D / np.maximum(np.linalg.norm(self.D, axis=1, keepdims=True), 1e-12)
        self.known = set[str]().union(*self.lineages)  # all that lies above some concept, and the concepts

    def _lineage(self, concept: str, root: str) -> set[str]:
        """Everything above a concept, in the sense in which it belongs to its class."""
        return self.nouns.lineage(*(s for s in self.nouns.senses[concept] if root in self.nouns.lineage(s)))

    def classes(self, synset: str) -> frozenset[int]:
        """The classes whose root a synset lies below."""
        above = self.nouns.lineage(synset)
        return frozenset(k for k, root in enumerate(self.roots) if root in above)

    def place(self, noun: str) -> TreePlace:
        """Where a noun belongs: by its senses below a root where it has some, else by all of them."""
        senses = self.nouns.senses[noun]
        classes = frozenset[int]().union(*map(self.classes, senses))
        above = self.nouns.lineage(*([s for s in senses if self.classes(s)] or senses))
        closest = self._smallest(above & self.known)
        kin = 1 - np.log(closest) / np.log(self.config.strangers)
        relevance = 1.0 if classes else float(np.clip(self.config.kin * kin, 0, self.config.kin_most))
        if not relevance:
            return TreePlace(self.null, 0.0, classes)
        shared = np.array([self._smallest(above & lineage) for lineage in self.lineages])  # (m,)
        weight = shared.astype(float) ** -self.config.nearness
        if classes:
            weight *= np.isin(self.parent, [*classes])
        direction = weight @ self.D
        return TreePlace(direction / max(float(np.linalg.norm(direction)), 1e-12), relevance, classes)

    def _smallest(self, synsets: set[str]) -> int:
        """How many synsets lie below the one of some synsets that has the fewest; below none there are all."""
        return min((self.nouns.size[s] for s in synsets), default=len(self.nouns.size))

    def wanted(self, place: TreePlace) -> np.ndarray:
        """The unit row (d,) of a place."""
        return place.relevance * place.direction + np.sqrt(1 - place.relevance**2) * self.null


class Correction(NamedTuple):
    """Where a misplaced word belongs: wanted (d,), or if_relevant (d,) where the teacher finds its meaning relevant.

    None: it stays as it is."""

    wanted: np.ndarray | None
    if_relevant: np.ndarray | None


def misplaced(
    tree: TreePlacer, words: Sequence[str], S: np.ndarray, frequent: Collection[str]
) -> dict[str, Correction]:
    """The nouns that the tower puts where they do not belong.

    S: (n, m) the cosines of n words with the concepts. frequent: words that were taught for their frequency; of these
    the teacher knows more than the tree does, which thinks of their rarest senses too.
    """
    config, nouns = tree.config, tree.nouns
    found: dict[str, Correction] = {}
    for word, cosines in zip(words, S, strict=True):
        senses, near = nouns.senses.get(word, []), cosines.max()
        classes = [tree.classes(sense) for sense in senses]
        if any(sense in tree.known and not some for sense, some in zip(senses, classes, strict=True)):
            continue  # "amphibian": what lies above a concept is no other thing
        if any(classes):
            right = near >= config.near and any(tree.parent[cosines.argmax()] in some for some in classes)
            if not right and (word not in frequent or classes[0]):
                found[word] = Correction(*[tree.wanted(tree.place(word))] * 2)
        elif senses and near > config.far:
            place = tree.place(word)
            wanted = if_relevant = tree.wanted(place) if near > place.relevance + config.slack else None
            if word in frequent or any(nouns.category[sense] not in NATURAL for sense in senses):
                associated = TreePlace(tree.towards[cosines.argmax()], config.associated, frozenset())
                if_relevant = tree.wanted(associated) if near > config.associated + config.slack else None
            if wanted is not None or if_relevant is not None:
                found[word] = Correction(wanted, if_relevant)
    return found


def share_tokens(places: dict[str, np.ndarray], same: float) -> tuple[dict[str, int], np.ndarray]:
    """Names with the number of the token of each, and the tokens' places (r, d): of the first name of each.

    A name takes the token of an earlier one whose place has a cosine of at least `same` with its own.
    """
    own: dict[str, int] = {}
    rows: list[np.ndarray] = []
    for name, place in places.items():
        cosines = np.array(rows) @ place if rows else np.zeros(0)
        if len(cosines) and cosines.max() >= same:
            own[spelled(name)] = int(cosines.argmax())
        else:
            own[spelled(name)] = len(rows)
            rows.append(place)
    return own, np.array(rows, np.float32).reshape(len(rows), -1)


def forget_own_words(model: DualEncoder) -> None:
    """Takes the lexicon and its tokens from an encoder, whose tower then reads every word by its letters."""
    pieces = TowerTokenizer(model.tokenizer.word_pieces)
    _resize(model, pieces.lexicon.tokens)
    model.tokenizer = pieces


def _resize(model: DualEncoder, tokens: int) -> None:
    """Gives the text tower as many rows as its word pieces and `tokens` need; the first ones stay as they are."""
    embeddings = model.text.bert.embeddings
    old = embeddings.word_embeddings.weight.detach()
    first = model.tokenizer.word_pieces.get_vocab_size()
    rows = torch.cat([old[:first], old[:first].mean(0, keepdim=True).repeat(tokens, 1)])
    embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=0)


def teach_tokens(
    model: DualEncoder,
    captions: Captions,
    lexicon: Lexicon,
    wanted: np.ndarray,
    ordinary: Sequence[str],
    config: WholeWordsConfig,
) -> None:
    """Gives an encoder a lexicon, and trains the embeddings of its tokens, and nothing else.

    wanted: (r, d) the tokens' places; the first is that of words without a meaning. ordinary: such words that are read
    by their letters. In the company of a concept the first token is to do what these do.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    _resize(model, lexicon.tokens)
    first = len(model.tokenizer)
    model.tokenizer = TowerTokenizer(model.tokenizer.word_pieces, lexicon)
    names = {token: name for name, token in lexicon.own.items()}
    weight = model.text.bert.embeddings.word_embeddings.weight
    optimizer = torch.optim.Adam([weight], lr=config.lr)
    for step in tqdm(range(config.steps), desc="words", unit="step", file=sys.stderr):
        rows = rng.integers(len(wanted), size=config.batch_size)
        texts = [fill(str(rng.choice([*TEMPLATES, *CONTEXTS])), names[i]) for i in rows]
        phrases = [
            str(rng.choice(COMPANY)).replace("ALSO", str(rng.choice(captions.concepts))) for _ in range(config.company)
        ]
        with torch.no_grad():
            stand_ins = model.embed_texts([fill(phrase, str(rng.choice(ordinary))) for phrase in phrases])
        aims = torch.cat([torch.as_tensor(wanted[rows], device=model.device), stand_ins])
        loss = 1 - (model.embed_texts([*texts, *(fill(phrase, names[0]) for phrase in phrases)]) * aims).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        (weight.grad,) = torch.autograd.grad(loss, [weight])
        weight.grad[:first] = 0  # the word pieces stay as they are
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        optimizer.step()


def teach_whole_words(
    model: DualEncoder, captions: Captions, placer: Placer, nouns: Nouns, config: WholeWordsConfig
) -> None:
    """Gives a taught encoder its lexicon: all words that it was taught, and tokens for those that it misplaces.

    The model is changed in place. placer: by which it was taught.
    """
    D, teaching = placer.D, placer.config
    frequent = dict.fromkeys(frequent_words(0, teaching.words))
    lemmas = [lemma.lower() for synset in synsets() for lemma in synset.lemmas if len(lemma) > SHORT]
    words = [*dict.fromkeys([*frequent, *lemmas])]
    Z = model.encode_texts([fill("a {}", word) for word in words])
    S = Z @ D.T
    null = meaningless(Z[S.max(1) < config.far / 2])
    tree = TreePlacer(nouns, captions, D, null, config)
    found = misplaced(tree, words, S, frequent)
    relevant = relevant_words(words, found, placer, nouns, frequent, spelled_alike(words, captions, S))
    grammar, concept_words = {*[*frequent][: config.grammar]}, parts_of(captions.concepts)
    places: dict[str, np.ndarray] = {}
    for word, correction in found.items():
        wanted = correction.if_relevant if word in relevant else correction.wanted
        if wanted is not None and word not in grammar and spelled(word) not in concept_words:
            places[word] = wanted
    own, wanted_rows = share_tokens({"": null, **places}, config.same)
    taught = {part for word in (*words, *captions.concepts) for part in spelled(word).split()}
    taught |= learned_rare_words(model, captions, placer, D, nouns, config.near)
    plurals = {word for word in taught if word not in nouns.senses and any(form in own for form in singulars(word))}
    own.pop("")
    alone = frozenset(spelled(word) for word in places if word in frequent)
    lexicon = Lexicon(own, frozenset(taught - plurals - {*own}), alone)
    ordinary = [w for w, s in zip(words, S, strict=True) if w in nouns.senses and s.max() < config.far / 2]
    teach_tokens(model, captions, lexicon, wanted_rows, ordinary[: teaching.company], config)
    known = f"{len(lexicon.taught)} more words are known"
    print(f"{len(lexicon.own)} names have {lexicon.tokens} tokens of their own; {known}", file=sys.stderr)


def parts_of(names: Sequence[str]) -> set[str]:
    """Names, and all words and parts of several words in them: a token of one would change what the name means."""
    split = [spelled(name).split() for name in names]
    return {" ".join(words[i:j]) for words in split for i in range(len(words)) for j in range(i + 1, len(words) + 1)}


def meaningless(Z: np.ndarray) -> np.ndarray:
    """The unit direction (d,) in which a tower puts words without a meaning here, Z (n, d): that of their mean.

    It is the null direction of the tower's own teaching, which another teaching would not find again.
    """
    mean = Z.mean(0)
    return mean / np.linalg.norm(mean)


def spelled_alike(words: Sequence[str], captions: Captions, S: np.ndarray) -> list[bool]:
    """Whether each word holds a word of the concept that is nearest to it by S (n, m), as "dogma" does and "shipton".

    Then the teacher, too, goes by its letters.
    """
    nearest = [spelled(captions.concepts[i]).split() for i in S.argmax(1)]
    return [any(len(p) > SHORT and p in word for p in parts) for word, parts in zip(words, nearest, strict=True)]


def relevant_words(
    words: Sequence[str],
    found: Mapping[str, Correction],
    placer: Placer,
    nouns: Nouns,
    frequent: Collection[str],
    alike: Sequence[bool],
) -> set[str]:
    """Of the misplaced words those that the teacher finds relevant, where that counts.

    One of a word's commonest meanings must be: of the word itself the teacher too sees the letters. A frequent word may
    be relevant by itself where it is not spelled `alike`, for WordNet does not know a dog that is called a labrador.
    """
    meanings: dict[str, list[str]] = {}
    for word, by_letters in zip(words, alike, strict=True):
        if word in found and found[word].wanted is not found[word].if_relevant:
            itself = [word] if word in frequent and not by_letters else []
            meanings[word] = [*(nouns.definition[sense] for sense in nouns.senses[word][:SENSES]), *itself]
    texts = [*dict.fromkeys(chain(*meanings.values()))]
    relevance = dict(zip(texts, placer.place_alone(texts)[1], strict=True))
    least = placer.config.relevant_from
    return {word for word, some in meanings.items() if any(relevance[meaning] > least for meaning in some)}


def learned_rare_words(
    model: DualEncoder, captions: Captions, placer: Placer, D: np.ndarray, nouns: Nouns, near: float
) -> set[str]:
    """The rare words that were learned: relevant ones with a cosine above `near` with a concept (a row of D).

    What is no noun of WordNet's and spelled like the concept is none of them.
    """
    rare = rare_words(placer.config.words, placer.config.rare)
    S = model.encode_texts([fill("a {}", word) for word in rare]) @ D.T
    alike = spelled_alike(rare, captions, S)
    close = [rare[i] for i in np.flatnonzero(S.max(1) > near) if rare[i] in nouns.senses or not alike[i]]
    return {close[i] for i in np.flatnonzero(placer.place(close).relevance > placer.config.relevant_from)}
