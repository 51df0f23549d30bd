"""Open words: a pretrained sentence encoder, the teacher, gives the text tower a broad English vocabulary.

After the first stages (`training.loop`) the text tower knows only the words of its captions. Here the image tower and
the concepts' embeddings D stay as they are. A text tower learns to put any text where the teacher says that it belongs
among the concepts:

* Direction. The teacher's cosines between the text and each concept ("fire engine, a kind of truck") become soft
  weights, first over the classes, then over the concepts of each class. The text's direction is the weighted mean of
  the concepts' rows of D. A class counts by the mean over its concepts, so that one of many concepts has no advantage.
* Relevance a, 0 … 1: how near the nearest concept is, through a logistic. A text that is far from all of them
  ("democracy") is turned towards the *null direction*, which no picture uses, so that its scores are low everywhere.
* Senses. A rare word by itself says little to the teacher ("galleon"), and it takes some words for others ("hart"). A
  lemma of WordNet's is therefore placed together with each of its senses ("galleon: a large square-rigged sailing
  ship …"), and those that are relevant count the most.

The teacher is needed in training only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from training.config import MAX_TOKENS, DistilConfig, Teaching
from training.data.captions import TEMPLATES, Captions, all_prompts
from training.data.cifar10 import CLASSES
from training.data.wordnet import read_nouns
from training.data.words import broad_vocabulary, frequent_words, phrases, rare_words, word_senses
from training.encoders.dual import DualEncoder
from training.encoders.text_tower import TextTower, tokenize, train_tokenizer
from training.encoders.tokens import TowerTokenizer
from training.errors import SparsightError
from training.schedule import lr_factor

WARMUP = 0.05  # share of the steps in which the learning rate rises
PROMPT_REPEATS = 5  # how often the captions' prompts stand among the texts that the tokenizer learns from
IN_PROMPT = 0.2  # share of the texts with an article that are shown in a prompt, as a person may ask for them


@dataclass(frozen=True)
class Lesson:
    """Texts and where each belongs in the encoder's space.

    texts: n of them. wanted: (n, d) unit rows. relevance: (n,) 0 … 1. sure: (n,) bool, whether the teacher means this
    place from the text alone, without its senses.
    """

    texts: list[str]
    wanted: np.ndarray
    relevance: np.ndarray
    sure: np.ndarray

    def take(self, rows: np.ndarray) -> Lesson:
        """The lesson of some rows (k,) int."""
        return Lesson([self.texts[i] for i in rows], self.wanted[rows], self.relevance[rows], self.sure[rows])

    def __add__(self, other: Lesson) -> Lesson:
        arrays = ((self.wanted, other.wanted), (self.relevance, other.relevance), (self.sure, other.sure))
        return Lesson([*self.texts, *other.texts], *(np.concatenate(pair) for pair in arrays))


def check_teacher(teaching: Teaching, device: torch.device) -> None:
    """Raises `SparsightError` where a teacher, its vocabulary or WordNet would be missing later."""
    frequent_words(0, 1)
    if teaching.wordnet is not None:
        read_nouns(teaching.wordnet)
    embed_by_teacher(teaching.teacher, ["a cat"], device)


def embed_by_teacher(teacher: str, texts: Sequence[str], device: torch.device, batch_size: int = 256) -> np.ndarray:
    """Sentence embeddings (n, e), unit rows: the mean of a transformers model's last hidden states over the tokens.

    teacher: a hub id or a local folder, safetensors only. Raises `SparsightError` where it cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        model = AutoModel.from_pretrained(teacher, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0]
        raise SparsightError(f"cannot load the teacher {teacher}: {reason}; give a hub id or a local folder") from e
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: little padding
    E = np.zeros((len(texts), model.config.hidden_size), np.float32)
    with torch.inference_mode(), tqdm(total=len(texts), desc="teacher", unit="text", file=sys.stderr) as bar:
        for start in range(0, len(order), batch_size):
            ids = order[start : start + batch_size]
            batch = tokenizer(
                [texts[i] for i in ids], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).to(device)
            hidden = model(**batch).last_hidden_state  # (b, t, e)
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            E[ids] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).float().cpu().numpy()
            bar.update(len(ids))
    return E


def null_direction(X: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The unit direction (d,) that pictures X (n, d) and concepts D (m, d) use least.

    It is the eigenvector of the smallest eigenvalue of their second moments, summed.
    """
    _, vectors = np.linalg.eigh(X.T @ X / len(X) + D.T @ D / len(D))
    return vectors[:, 0]


def targets(
    E: np.ndarray, C: np.ndarray, D: np.ndarray, parent: np.ndarray, null: np.ndarray, config: DistilConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Where texts belong: unit rows (n, d), and their relevance (n,), 0 … 1.

    E: (n, e) the teacher's embeddings of the texts. C: (m, e) those of the concepts. D: (m, d) the concepts in the
    encoder's space. parent: (m,) the class of each concept. null: (d,) the null direction.
    """
    S = E @ C.T  # (n, m)
    c = int(parent.max()) + 1
    member = np.eye(c, dtype=np.float32)[parent]  # (m, c)
    soft = np.exp(config.class_sharpness * (S - S.max(1, keepdims=True)))
    by_class = (soft @ member) / member.sum(0)  # (n, c) mean over each class's concepts
    by_class **= config.class_power
    by_class /= by_class.sum(1, keepdims=True)
    fine = np.exp(config.term_sharpness * (S - S.max(1, keepdims=True)))
    fine /= np.maximum((fine @ member)[:, parent], 1e-12)  # within its class, each concept's share
    U = (fine * by_class[:, parent]) @ D
    U -= (U @ null)[:, None] * null
    U /= np.maximum(np.linalg.norm(U, axis=1, keepdims=True), 1e-12)
    a = 1 / (1 + np.exp(-(S.max(1) - config.relevance_centre) / config.relevance_width))
    return a[:, None] * U + np.sqrt(1 - a**2)[:, None] * null, a


def blend(wanted: np.ndarray, relevance: np.ndarray) -> tuple[np.ndarray, float]:
    """One place for a text that has several: their mean, a unit row (d,), and the mean of their relevance.

    wanted: (k, d) unit rows. relevance: (k,), whose squares are the weights of both means.
    """
    weight = np.maximum(relevance, 1e-6) ** 2
    mean = weight @ wanted
    return mean / max(float(np.linalg.norm(mean)), 1e-12), float(weight @ relevance / weight.sum())


class Placer:
    """Places texts in the encoder's space, by the teacher and by WordNet's senses of a word.

    D: (m, d) the concepts in the encoder's space. null: (d,) the null direction.
    """

    def __init__(self, captions: Captions, D: np.ndarray, null: np.ndarray, teaching: Teaching, device: torch.device):
        self.teacher, self.config, self.device = teaching.teacher, teaching.config, device
        self.D, self.parent, self.null = D, captions.parent, null
        described = [*CLASSES, *captions.kinds[len(CLASSES) :]]  # a class is no kind of itself
        self.C = embed_by_teacher(self.teacher, described, device)
        self.senses = word_senses()
        self.of_sense: dict[str, tuple[np.ndarray, float]] = {}  # as far as they were asked for

    def place_alone(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The places (n, d) of texts by the teacher alone, and their relevance (n,)."""
        E = embed_by_teacher(self.teacher, texts, self.device)
        return targets(E, self.C, self.D, self.parent, self.null, self.config)

    def place(self, texts: list[str]) -> Lesson:
        """A text's own place; where it is a lemma, with or without an article, blended with those of its senses."""
        alone, relevance = self.place_alone(texts)
        wanted = alone.copy()
        senses_of = [self.senses.get(re.sub("^an? ", "", text.lower()), []) for text in texts]
        new = [sense for sense in dict.fromkeys(chain(*senses_of)) if sense not in self.of_sense]
        self.of_sense |= zip(new, zip(*self.place_alone(new), strict=True), strict=True)
        for i, senses in enumerate(senses_of):
            if senses:
                places = [(wanted[i], relevance[i]), *(self.of_sense[sense] for sense in senses)]
                wanted[i], relevance[i] = blend(*(np.array(part) for part in zip(*places, strict=True)))
        return Lesson(texts, wanted, relevance, (alone * wanted).sum(1) > self.config.agreement)


def prepare_lesson(captions: Captions, placer: Placer) -> Lesson:
    """All texts that the tower is to learn: the broad vocabulary, relevant rare words, and phrases of these."""
    config = placer.config
    known = set(captions.concepts)
    texts = [t for t in broad_vocabulary(config.words) if t.lower() not in known]
    broad = len(texts)
    known |= set(texts)
    texts += [t for t in rare_words(config.words, config.rare) if t not in known]
    lesson = placer.place(texts)
    # Of the rare words those that mean something here; for what means nothing the frequent words are enough.
    kept = (np.arange(len(texts)) < broad) | (lesson.relevance > config.relevant_from)
    lesson = lesson.take(np.flatnonzero(kept))
    return lesson + placer.place(phrases(lesson.texts, lesson.relevance, lesson.sure, config))


def teach(model: DualEncoder, captions: Captions, D: np.ndarray, lesson: Lesson, config: DistilConfig) -> DualEncoder:
    """Trains a text tower: a lesson's texts towards their places, each concept's prompts towards its row of D (m, d).

    The loss is 1 − the cosine. The model gets the new tower and its tokenizer; a tower of this shape that was taught
    before goes on learning instead, with its own tokens. Returns the model.

    An English vocabulary is for the most part irrelevant here, and its one place, the null direction, is soon learned.
    Relevant texts are therefore seen `emphasis` times as often as the rest, and those of one or two words
    `word_emphasis` times, for only repetition teaches what a word means. The tokens follow the same frequencies.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    prompts, places = own_prompts(captions, D)
    relevant = lesson.relevance > config.relevant_from
    short = np.array([t.count(" ") < 2 for t in lesson.texts])
    times = np.where(relevant, np.where(short, config.word_emphasis, config.emphasis), 1)
    seen = np.repeat(np.arange(len(lesson.texts)), times)
    tokenizer, tower = _tower_to_teach(model, [lesson.texts[i] for i in seen], captions, config)
    wanted = torch.as_tensor(lesson.wanted, dtype=torch.float32)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    lengths = np.array([len(t) for t in lesson.texts])[seen]
    steps = config.epochs * len(like_lengths(lengths, config.batch_size, rng))

    def distance(texts: list[str], goals: Tensor) -> Tensor:
        z = F.normalize(tower(**tokenize(tokenizer, texts, model.device)), dim=1).cpu()
        return 1 - (z * goals).sum(1).mean()

    with tqdm(total=steps, desc="distil", unit="step", file=sys.stderr) as bar:
        for epoch in range(config.epochs):
            for rows in (seen[batch] for batch in like_lengths(lengths, config.batch_size, rng)):
                own = rng.integers(0, len(prompts), config.concept_batch)
                texts_part = distance([_in_prompt(lesson.texts[i], rng) for i in rows], wanted[rows])
                concepts_part = distance([prompts[i] for i in own], places[own])
                loss = texts_part + config.concept_weight * concepts_part
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * lr_factor(bar.n / steps, WARMUP)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.update()
                if bar.n % 50 == 0:
                    shown = {"texts": f"{texts_part.item():.3f}", "concepts": f"{concepts_part.item():.4f}"}
                    bar.set_postfix(epoch=epoch, **shown, refresh=False)
    model.config = replace(
        model.config,
        vocab_size=len(tokenizer),
        text_width=config.width,
        text_layers=config.layers,
        known_from=config.known_from,
    )
    model.tokenizer, model.text = tokenizer, tower
    return model


def own_prompts(captions: Captions, D: np.ndarray) -> tuple[list[str], Tensor]:
    """The prompts of all concepts, those that name a term's class as well included, and the row of D that each wants.

    D: (m, d). Returns p prompts and their places (p, d).
    """
    c = len(CLASSES)
    prompts = all_prompts([*captions.concepts, *captions.kinds[c:]])
    return prompts, torch.as_tensor(np.repeat(np.concatenate([D, D[c:]]), len(TEMPLATES), axis=0))


def _tower_to_teach(
    model: DualEncoder, texts: list[str], captions: Captions, config: DistilConfig
) -> tuple[TowerTokenizer, TextTower]:
    """The model's tower where it was taught before and has the shape; otherwise a new one, with tokens of `texts`."""
    before = model.config
    if before.known_from and (before.text_width, before.text_layers) == (config.width, config.layers):
        return model.tokenizer, model.text
    tokenizer = train_tokenizer([*texts, *all_prompts(captions.concepts) * PROMPT_REPEATS], config.vocab_size)
    tower = TextTower(len(tokenizer), before.dim, width=config.width, layers=config.layers)
    return tokenizer, tower.to(model.device)


def like_lengths(lengths: np.ndarray, size: int, rng: np.random.Generator, ahead: int = 50) -> list[np.ndarray]:
    """Batches of `size` rows in random order, each of texts of about the same length, so that little is padding.

    lengths: (n,) of the texts. Rows are drawn at random, as many as fill `ahead` batches; of these, rows of like length
    come into one batch. Rows left over, too few for a batch, are left out. Returns arrays (size,) of row numbers.
    """
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), ahead * size):
        chunk = order[start : start + ahead * size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + size] for i in range(0, len(chunk) - size + 1, size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _in_prompt(text: str, rng: np.random.Generator) -> str:
    """Puts some of the texts that begin with an article into a prompt."""
    if text.startswith(("a ", "an ")) and rng.random() < IN_PROMPT:
        return f"{rng.choice(('a photo of', 'a picture of', 'an image of'))} {text}"
    return text
