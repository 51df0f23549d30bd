"""The settings of an encoder and of its training, and their defaults; light, so that `--help` can show them."""

from __future__ import annotations

from dataclasses import dataclass, field

HEAD_WIDTH = 32  # of the text tower's attention
MAX_TOKENS = 48  # of a text; the rest is cut off


@dataclass(frozen=True)
class EncoderConfig:
    """What must be known to rebuild an encoder; saved as JSON beside its weights."""

    name: str = "conv32-cifar10"
    image_tower: str = "conv32"  # any timm model name
    image_size: int = 32
    dim: int = 256
    text_width: int = 128
    text_layers: int = 2
    vocab_size: int = 1024
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    flip_average: bool = True  # embed a picture as the mean of itself and its mirror image …
    shift_average: bool = False  # … and of both, half as heavy, a pixel up and left, and a pixel down and right
    known_from: float = 0.0  # cosine with the nearest concept below which a text means little to the encoder
    trained_on: str = "CIFAR-10 train split, captions of class and search term"


@dataclass(frozen=True)
class ObjectiveConfig:
    term_weight: float = 0.4
    structure_weight: float = 1.0
    own_direction: float = 0.6  # length of a term's own direction beside its class's unit direction
    code_weight: float = 0.5
    fidelity_weight: float = 0.2
    penalties: tuple[float, float] = (0.3, 0.9)  # range of ρ, the penalty as a fraction of each picture's λ_max
    code_steps: int = 12
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class DistilConfig:
    """Settings of the second stage: the text tower taught a broad vocabulary (`distil.py`)."""

    words: int = 40_000  # of wordfreq's most frequent
    rare: int = 120_000  # of the next ones those that are relevant
    vocab_size: int = 16_384  # tokens: most words are one
    width: int = 192
    layers: int = 3
    class_sharpness: float = 10.0
    class_power: float = 8.0
    term_sharpness: float = 10.0
    relevance_centre: float = 0.45  # the teacher's cosine at which a text is as much in as out
    relevance_width: float = 0.04
    relevant_from: float = 0.2
    agreement: float = 0.7  # cosine from which the teacher's place of a word alone is that of its senses
    emphasis: int = 4  # how often a relevant text is seen in an epoch
    word_emphasis: int = 6  # and one of one or two words
    known_from: float = 0.5  # half of the relevance: see EncoderConfig
    phrases: int = 120_000
    descriptions: int = 120_000
    company: int = 10_000  # most frequent words that stand in them
    epochs: int = 3
    batch_size: int = 256
    concept_batch: int = 64
    concept_weight: float = 4.0
    lr: float = 1.5e-3
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run; saved as JSON beside the weights."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sizes: tuple[tuple[int, int], ...] = ((20, 2), (24, 7), (28, 5), (32, 8))  # (pixels a side, epochs)
    batch_size: int = 1000
    lr: float = 0.12  # Muon, convolutions
    head_lr: float = 5e-3  # AdamW, the image tower's projection and biases
    text_lr: float = 2e-3  # AdamW, the text tower and the temperature
    warmup: float = 0.1  # of all steps
    shift: int = 2  # pixels, of 32
    cutout: int = 0  # side of the square that is hidden in each picture, pixels of 32
    degrade: float = 0.0  # share of the pictures that are made noisy, blurred or faint
    max_scale: float = 20.0  # bound, and start, of the inverse temperature
    pretrained: bool = False
    seed: int = 0

    @property
    def epochs(self) -> int:
        return sum(n for _, n in self.sizes)

    def size_at(self, epoch: int) -> int:
        for size, n in self.sizes:
            if epoch < n:
                return size
            epoch -= n
        raise IndexError(epoch)
