"""Open words: a compact text tower taught a broad English vocabulary by a pretrained sentence encoder.

The first stage of training (`loop.py`) knows only the words of its captions. Here its image tower and its
concepts' embeddings D stay as they are, and a new text tower learns to put any text where a teacher says it
belongs among the concepts:

* direction: the teacher's cosines between the text and each concept ("fire engine, a kind of truck") make
  soft weights, first over the classes, then over each class's concepts; the text's direction is the weighted
  mean of their D (attention with the teacher's similarities; a class counts by its mean, not by its size);
* relevance a: how near the nearest concept is, through a logistic. What is far from all of them ("democracy")
  is turned by a towards the *null direction*, which no picture uses: its scores are visibly low everywhere;
* senses: to the teacher a rare word alone means little ("galleon"), and some mean something else ("hart"). A lemma of
  WordNet's is therefore placed together with each of its senses ("galleon: a large square-rigged sailing ship …"),
  and the relevant ones decide.

The teacher is needed at training time only. The vocabulary: wordfreq's most frequent words, the rarer of its words
that mean something here, the lemmas and definitions of ImageNet's WordNet synsets, which timm carries, and phrases.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from training.config import MAX_TOKENS, DistilConfig
from training.data.captions import KIND_TEMPLATE, TEMPLATES, Captions, embed_concepts, fill
from training.data.cifar10 import CLASSES
from training.encoders.dual import DualEncoder
from training.encoders.text_tower import TextTower, tokenize, train_tokenizer
from training.errors import SparsightError
from training.loop import lr_factor

PHRASES = (
    "a WORD NEAR", "a NEAR WORD", "a NEAR ALSO", "WORD NEAR", "NEAR in the WORD", "a NEAR on a WORD",
    "a NEAR with a WORD", "a NEAR that can WORD", "a NEAR for WORD", "the WORD of a NEAR", "a WORD with a NEAR",
    "a NEAR of WORD WORD",
)  # fmt: skip


KINDS = ("animal", "creature", "pet", "beast", "wild animal", "farm animal", "vehicle", "machine", "craft", "thing")
DESCRIPTIONS = (
    "a WORD KIND", "a WORD KIND", "a WORD WORD KIND", "a KIND with WORD", "a KIND for WORD", "a KIND that can WORD",
    "a KIND of the WORD", "a WORD KIND in the WORD", "a KIND used for WORD", "KIND of WORD",
)  # fmt: skip


def broad_vocabulary(words: int) -> list[str]:
    """The `words` most frequent English words, and the lemmas and definitions of ImageNet's synsets."""
    try:
        from wordfreq import top_n_list
    except ImportError as e:
        raise SparsightError("--teacher needs the package wordfreq: install 'sparsight[train]'") from e
    frequent = [w for w in top_n_list("en", words) if _is_word(w)]
    lemmas, definitions = zip(*_synsets(), strict=True)
    return list(dict.fromkeys([*frequent, *chain(*lemmas), *definitions]))


def word_senses() -> dict[str, list[str]]:
    """Each lemma of ImageNet's synsets, lower case → its senses, as texts: "galleon: a large square-rigged …"."""
    senses: dict[str, list[str]] = {}
    for lemmas, definition in _synsets():
        for lemma in lemmas:
            senses.setdefault(lemma.lower(), []).append(f"{lemma.lower()}: {definition}")
    return senses


def _synsets() -> list[tuple[list[str], str]]:
    """The lemmas and the definition of each of the WordNet synsets that timm lists as ImageNet-22k."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet22k")
    return [
        (
            info.index_to_description(i, detailed=False).split(", "),
            info.index_to_description(i, detailed=True).split(": ", 1)[-1],
        )
        for i in range(info.num_classes())
    ]


def rare_words(words: int, rare: int) -> list[str]:
    """The `rare` English words that are next in frequency to the first `words`."""
    from wordfreq import top_n_list

    return [w for w in top_n_list("en", words + rare)[words:] if _is_word(w) and w.isascii()]


def _is_word(text: str) -> bool:
    return text.replace("'", "").isalpha() and len(text) > 2


def embed_by_teacher(teacher: str, texts: Sequence[str], device: torch.device, batch_size: int = 256) -> np.ndarray:
    """Sentence embeddings (n, e), unit rows: the mean of a transformers model's last hidden states.

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
    """The unit direction (d,) that pictures X (n, d) and concepts D (m, d) use least."""
    _, vectors = np.linalg.eigh(X.T @ X / len(X) + D.T @ D / len(D))
    return vectors[:, 0]


def targets(
    E: np.ndarray, C: np.ndarray, D: np.ndarray, parent: np.ndarray, null: np.ndarray, config: DistilConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Where texts belong: unit rows (n, d), and their relevance (n,) in 0 … 1.

    E (n, e) the teacher's embeddings of the texts, C (m, e) of the concepts; D (m, d) the concepts in the
    encoder's space; parent (m,) the class of each; null (d,).
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
    """Several places (k, d) of one text → their mean by squared relevance (k,), a unit row, and its relevance."""
    weight = np.maximum(relevance, 1e-6) ** 2
    mean = weight @ wanted
    return mean / max(float(np.linalg.norm(mean)), 1e-12), float(weight @ relevance / weight.sum())


def distil_text(
    model: DualEncoder, captions: Captions, X: np.ndarray, teacher: str, config: DistilConfig, device: torch.device
) -> DualEncoder:
    """Teaches a trained encoder a broad vocabulary, by a new text tower or one taught before; returns the encoder.

    X (n, d): embeddings of training pictures, for the null direction.
    """
    D = embed_concepts(model.encode_texts, captions.concepts, TEMPLATES)
    null = null_direction(X, D)
    kinds = [fill(KIND_TEMPLATE, c, CLASSES[p]) for c, p in zip(captions.concepts, captions.parent, strict=True)]
    kinds[: len(CLASSES)] = CLASSES
    known = set(captions.concepts)
    C = embed_by_teacher(teacher, kinds, device)

    def alone(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return targets(embed_by_teacher(teacher, texts, device), C, D, captions.parent, null, config)

    senses = word_senses()
    sense_texts = [*chain(*senses.values())]
    of_senses = dict(zip(sense_texts, zip(*alone(sense_texts), strict=True), strict=True))

    def placed(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A text's own place, or, where it is a lemma, with or without its article, that place among its senses'; its
        relevance; and whether the teacher, from the text alone, means the same place."""
        by_itself, relevance = alone(texts)
        wanted = by_itself.copy()
        for i, text in enumerate(texts):
            if known_senses := senses.get(re.sub("^an? ", "", text.lower())):
                places = [(wanted[i], relevance[i]), *(of_senses[sense] for sense in known_senses)]
                wanted[i], relevance[i] = blend(*(np.array(part) for part in zip(*places, strict=True)))
        return wanted, relevance, (by_itself * wanted).sum(1) > config.agreement

    texts = [t for t in broad_vocabulary(config.words) if t.lower() not in known]
    broad = len(texts)
    known |= set(texts)
    texts += [t for t in rare_words(config.words, config.rare) if t not in known]
    wanted, relevance, sure = placed(texts)
    # Of the rare words those that mean something here; of the others the frequent words are enough.
    kept = np.flatnonzero((np.arange(len(texts)) < broad) | (relevance > config.relevant_from))
    texts, wanted, relevance, sure = [texts[i] for i in kept], wanted[kept], relevance[kept], sure[kept]
    more = phrases(texts, relevance, sure, config)
    more_wanted, more_relevance, _ = placed(more)
    wanted, relevance = np.concatenate([wanted, more_wanted]), np.append(relevance, more_relevance)
    return teach(model, captions, D, [*texts, *more], wanted, relevance, config, device)


def phrases(texts: Sequence[str], relevance: np.ndarray, sure: np.ndarray, config: DistilConfig) -> list[str]:
    """Each short text with its article, for "a doe" is not "doe"; relevant words in the company of others; and what is
    said of animals and machines without naming them, by any frequent words.

    texts, relevance (n,), sure (n,): whether the teacher knows the text without its senses. They are new texts for the
    teacher to place, so that the tower learns what a phrase makes of its words; a word that it does not know ("hart")
    stays out of them, for it would misplace its phrases too.
    """
    rng = np.random.default_rng(config.seed)
    short = [i for i, t in enumerate(texts) if t.count(" ") < 3]
    relevant = [i for i in short if relevance[i] > config.relevant_from]
    near = [texts[i] for i in relevant if sure[i]]
    words = [texts[i] for i in short[: config.company] if sure[i]]
    doing = [w for w in words if w.endswith(("ing", "ed", "s"))]  # few of all words, many of those that describe
    describing = [d for d in (near, doing, words) if d]  # "a purring pet", "a galloping animal", "a soft thing"
    made = [fill("a {}", texts[i]) for i in relevant]
    for patterns, n in ((PHRASES, config.phrases if near else 0), (DESCRIPTIONS, config.descriptions)):
        for pattern in rng.choice(patterns, n):
            drawn = describing[int(rng.integers(len(describing)))] if patterns is DESCRIPTIONS else words
            slots = {"WORD": drawn, "NEAR": near, "ALSO": near, "KIND": KINDS}
            made.append(_filled(str(pattern), slots, rng))
    return list(dict.fromkeys(made))


def _filled(pattern: str, slots: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    """A pattern with a word drawn anew for each of its slots."""
    phrase = re.sub("|".join(slots), lambda m: slots[m[0]][int(rng.integers(len(slots[m[0]])))], pattern)
    return re.sub(r"\ba (?=[aeiou])", "an ", phrase)


def teach(
    model: DualEncoder,
    captions: Captions,
    D: np.ndarray,
    texts: list[str],
    wanted: np.ndarray,
    relevance: np.ndarray,
    config: DistilConfig,
    device: torch.device,
) -> DualEncoder:
    """Trains a new text tower: `texts` towards `wanted` (n, d), every concept's prompts towards its row of D. A tower
    of this shape that was taught before goes on instead, with its tokens.

    Texts of any relevance (n,) are seen `emphasis` times as often as the rest, most of an English vocabulary, whose
    one place, the null direction, is soon learned; and those of one or two words `word_emphasis` times, for nothing but
    repetition teaches what a word means. The tokens follow the same frequencies.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    kinds = [KIND_TEMPLATE.format(c, CLASSES[p]) for c, p in zip(captions.concepts, captions.parent, strict=True)]
    prompts = [fill(t, c) for c in captions.concepts for t in TEMPLATES]
    kind_prompts = [fill(t, c) for c in kinds[len(CLASSES) :] for t in TEMPLATES]
    relevant = relevance > config.relevant_from
    short = np.array([t.count(" ") < 2 for t in texts])
    times = np.where(relevant, np.where(short, config.word_emphasis, config.emphasis), 1)
    seen = np.repeat(np.arange(len(texts)), times)
    before = model.config
    if before.known_from and (before.text_width, before.text_layers) == (config.width, config.layers):
        tokenizer, tower = model.tokenizer, model.text
    else:
        tokenizer = train_tokenizer([*(texts[i] for i in seen), *prompts * 5], config.vocab_size)
        tower = TextTower(len(tokenizer), before.dim, width=config.width, layers=config.layers).to(device)
    settings = replace(
        before,
        vocab_size=len(tokenizer),
        text_width=config.width,
        text_layers=config.layers,
        known_from=config.known_from,
    )
    # Targets of the prompts: the concept's row; the longer ones that name the class as well, the same row.
    own = torch.as_tensor(
        np.concatenate([np.repeat(D, len(TEMPLATES), 0), np.repeat(D[len(CLASSES) :], len(TEMPLATES), 0)])
    )
    own_prompts = [*prompts, *kind_prompts]
    goal = torch.as_tensor(wanted, dtype=torch.float32)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    lengths = np.array([len(t) for t in texts])[seen]
    steps = config.epochs * len(like_lengths(lengths, config.batch_size, rng))

    def distance(batch: list[str], wanted: torch.Tensor) -> torch.Tensor:
        z = F.normalize(tower(**tokenize(tokenizer, batch, device)), dim=1).cpu()
        return 1 - (z * wanted).sum(1).mean()

    with tqdm(total=steps, desc="distil", unit="step", file=sys.stderr) as bar:
        for epoch in range(config.epochs):
            for rows in (seen[batch] for batch in like_lengths(lengths, config.batch_size, rng)):
                mine = rng.integers(0, len(own_prompts), config.concept_batch)
                far = distance([_in_prompt(texts[i], rng) for i in rows], goal[rows])
                own_far = distance([own_prompts[i] for i in mine], own[mine])
                loss = far + config.concept_weight * own_far
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * lr_factor(bar.n / steps, 0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.update()
                if bar.n % 50 == 0:
                    bar.set_postfix(
                        epoch=epoch,
                        texts=f"{float(far.detach()):.3f}",
                        concepts=f"{float(own_far.detach()):.4f}",
                        refresh=False,
                    )
    model.config, model.tokenizer, model.text = settings, tokenizer, tower
    return model


def like_lengths(lengths: np.ndarray, size: int, rng: np.random.Generator, ahead: int = 50) -> list[np.ndarray]:
    """Batches of `size` rows in random order, each of texts of like length: little of them is padding.

    Of every `ahead` batches' worth of rows, drawn at random, those of like length come together; rows that fill no
    batch are left out.
    """
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), ahead * size):
        chunk = order[start : start + ahead * size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + size] for i in range(0, len(chunk) - size + 1, size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _in_prompt(text: str, rng: np.random.Generator) -> str:
    """A phrase stands in a prompt at times, as a person may ask for it."""
    if text.startswith(("a ", "an ")) and rng.random() < 0.2:
        return f"{rng.choice(('a photo of', 'a picture of', 'an image of'))} {text}"
    return text
