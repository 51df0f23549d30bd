"""The settings of an encoder and of its training, and their defaults.

This module is light to import, so that `--help` can show the defaults. Each dataclass is saved as JSON beside what
it produced. "Pixels" are pixels of a 32 × 32 picture unless a size is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

HEAD_WIDTH = 32  # dimensions of one attention head of the text tower
MAX_TOKENS = 48  # tokens of a text that are read; the rest is cut off
SURE_FROM = 0.1  # `EncoderConfig.sure_from` of a new encoder; docs/training.md has the figures


@dataclass(frozen=True)
class EncoderConfig:
    """What must be known to rebuild an encoder and to use it.

    name:           what an index and a report call the encoder.
    image_tower:    a timm model name, or one of `training.encoders.image_tower`.
    image_size:     pixels a side of the pictures it takes.
    dim:            d, the dimensions of the space that pictures and texts share.
    text_width:     dimensions of a token inside the text tower; a multiple of `HEAD_WIDTH`.
    text_layers:    transformer layers of the text tower.
    vocab_size:     the most tokens that the tokenizer may learn.
    mean, std:      of each colour channel over CIFAR-10's training pictures, in units of the full range 0 … 1.
    flip_average:   embed a picture as the mean of itself and its mirror image.
    shift_average:  add to that mean, at half weight, the picture shifted by a pixel up and left, and down and right.
    sure_from:      the cosine by which the best class must lead the next after the first two of these views for the
                    other four to be left out; 0 takes all six of every picture.
    known_from:     the cosine between a text and its nearest concept below which the text means little to the encoder;
                    0 where no such cosine is known.
    trained_on:     the training data, in words, for reports.
    """

    name: str = "conv32-cifar10"
    image_tower: str = "conv32"
    image_size: int = 32
    dim: int = 256
    text_width: int = 128
    text_layers: int = 2
    vocab_size: int = 1024
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    flip_average: bool = True
    shift_average: bool = False
    sure_from: float = 0.0
    known_from: float = 0.0
    trained_on: str = "CIFAR-10 train split, captions of class and search term"


@dataclass(frozen=True)
class ObjectiveConfig:
    """The weights and constants of the loss that `training.objective` defines.

    The loss is contrast + structure_weight · structure + code_weight · code + fidelity_weight · fidelity, where
    contrast and code are each a cross-entropy over the classes + term_weight · one over all captions.

    term_weight:      weight of the captions' finer grain, the search terms.
    structure_weight: weight of the squared error of each term's cosine with its class.
    own_direction:    length r of a term's own direction, added to its class's unit direction; the cosine that a term
                      should have with its class is therefore 1 / √(1 + r²).
    code_weight:      weight of the contrast of the sparse code's reconstruction.
    fidelity_weight:  weight of 1 − the cosine between a picture and its code's reconstruction.
    penalties:        the range from which each step draws ρ, the l1 penalty as a fraction of each picture's λ_max (the
                      penalty from which its code is empty).
    code_steps:       unrolled FISTA steps of the sparse code.
    label_smoothing:  share of the class target that is spread evenly over all classes; terms are not smoothed.
    """

    term_weight: float = 0.4
    structure_weight: float = 1.0
    own_direction: float = 0.6
    code_weight: float = 0.5
    fidelity_weight: float = 0.2
    penalties: tuple[float, float] = (0.3, 0.9)
    code_steps: int = 12
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run of both towers (`training.loop`).

    encoder:     what is trained.
    objective:   by which loss.
    sizes:       pairs (pixels a side, epochs): the pictures are shrunk to the first size for so many epochs, then to
                 the next.
    batch_size:  pictures in one step.
    lr:          peak learning rate of Muon (the convolutions): a step's change relative to the size of the weights.
    head_lr:     peak learning rate of AdamW for the rest of the image tower (its projection and biases).
    text_lr:     peak learning rate of AdamW for the text tower and the temperature.
    warmup:      share of all steps in which the rates rise from zero to their peak.
    shift:       the most pixels by which a picture is shifted, in each direction.
    cutout:      pixels a side of the square that is hidden in each picture; 0 hides none.
    degrade:     share of the pictures that are made noisy, blurred or faint.
    max_scale:   the start and the upper bound of the inverse temperature, which multiplies the cosines in the loss.
    pretrained:  begin with the image tower's weights from timm.
    seed:        of the first weights, the order of the pictures, and all augmentation.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sizes: tuple[tuple[int, int], ...] = ((20, 2), (24, 7), (28, 5), (32, 8))
    batch_size: int = 1000
    lr: float = 0.12
    head_lr: float = 5e-3
    text_lr: float = 2e-3
    warmup: float = 0.1
    shift: int = 2
    cutout: int = 0
    degrade: float = 0.0
    max_scale: float = 20.0
    pretrained: bool = False
    seed: int = 0

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return sum(epochs for _, epochs in self.sizes)

    def size_at(self, epoch: int) -> int:
        """The pixels a side of an epoch's pictures. Raises IndexError after the last epoch."""
        for size, epochs in self.sizes:
            if epoch < epochs:
                return size
            epoch -= epochs
        raise IndexError(epoch)


@dataclass(frozen=True)
class DistilConfig:
    """The settings of the last stage, in which a teacher teaches the text tower a broad vocabulary (`training.distil`).

    The texts to learn (`training.data.words`):
    words:             how many of the most frequent English words are learned.
    rare:              how many of the next most frequent ones are looked at; the relevant ones among them are learned.
    phrases:           how many phrases are made of relevant words and others; repeated ones count once.
    descriptions:      how many descriptions of unnamed animals and machines are made; repeated ones count once.
    company:           how many of the first texts, the most frequent ones, may fill up phrases and descriptions.

    Where the teacher places a text (`training.distil.targets`):
    class_sharpness:   factor on the teacher's cosines before the exponential, when the classes are weighed.
    class_power:       exponent on the class weights, which makes the nearest class count for more.
    term_sharpness:    factor on the teacher's cosines when the concepts within one class are weighed.
    relevance_centre:  the teacher's cosine with the nearest concept at which a text's relevance is one half.
    relevance_width:   width of the logistic about that cosine, also a cosine.
    relevant_from:     the relevance from which a text counts as relevant.
    agreement:         the cosine between a word's place by itself and its place with its senses from which the
                       teacher is taken to know the word.

    The text tower and its training:
    vocab_size:        tokens of the new tokenizer; large enough that most words are one token.
    width, layers:     of the new text tower, as `text_width` and `text_layers` of `EncoderConfig`.
    known_from:        as in `EncoderConfig`; the default is the cosine at half relevance.
    emphasis:          how often a relevant text is seen in an epoch; any other is seen once.
    word_emphasis:     the same for relevant texts of one or two words.
    epochs:            passes over the texts.
    batch_size:        texts in one step.
    concept_batch:     prompts of the encoder's own concepts in one step, so that they keep their places.
    concept_weight:    weight of their loss beside that of the texts.
    lr:                peak learning rate of AdamW.
    seed:              of the phrases, the first weights and the order of the texts.
    """

    words: int = 40_000
    rare: int = 120_000
    vocab_size: int = 16_384
    width: int = 192
    layers: int = 3
    class_sharpness: float = 10.0
    class_power: float = 8.0
    term_sharpness: float = 10.0
    relevance_centre: float = 0.45
    relevance_width: float = 0.04
    relevant_from: float = 0.2
    agreement: float = 0.7
    emphasis: int = 4
    word_emphasis: int = 6
    known_from: float = 0.5
    phrases: int = 120_000
    descriptions: int = 120_000
    company: int = 10_000
    epochs: int = 3
    batch_size: int = 256
    concept_batch: int = 64
    concept_weight: float = 4.0
    lr: float = 1.5e-3
    seed: int = 0


@dataclass(frozen=True)
class WholeWordsConfig:
    """The settings of the last stage, in which misplaced words become tokens (`training.whole_words`).

    Which words are misplaced; cosines are those with the nearest concept:
    far:         the cosine up to which a word that belongs nowhere may stay as it is.
    near:        the cosine from which a word that belongs to a class may stay as it is.
    slack:       how much nearer than it belongs a word may lie and stay as it is.
    grammar:     how many of the most frequent words stay as they are.

    Where a noun belongs by WordNet's tree (`TreePlacer`):
    nearness:    exponent on the number of synsets below the one that a noun shares with a concept.
    strangers:   the number of synsets below the shared one from which a noun has nothing in common with a class.
    kin:         factor on the relevance of a noun below no class's root, 1 − log synsets / log `strangers`.
    kin_most:    the largest such relevance.
    associated:  the relevance of a noun that only the teacher finds relevant.

    The tokens and their training:
    same:        the cosine of two places from which on they share a token.
    steps:       of the training.
    batch_size:  texts of the tokens themselves in one step.
    company:     texts in one step in which the token without a meaning stands beside a concept.
    lr:          learning rate of Adam at the first step; it falls to 0.
    seed:        of the texts.
    """

    far: float = 0.4
    near: float = 0.6
    slack: float = 0.1
    grammar: int = 300
    nearness: float = 2.0
    strangers: int = 5_000
    kin: float = 1.4
    kin_most: float = 0.75
    associated: float = 0.65
    same: float = 0.98
    steps: int = 300
    batch_size: int = 256
    company: int = 32
    lr: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class Teaching:
    """Who teaches the text tower, and how.

    teacher: a sentence encoder, a hub id or a local folder. wordnet: the folder of WordNet's files, by which misplaced
    words become tokens; None leaves the words to their letters.
    """

    teacher: str
    config: DistilConfig = field(default_factory=DistilConfig)
    wordnet: Path | None = None
    words: WholeWordsConfig = field(default_factory=WholeWordsConfig)
