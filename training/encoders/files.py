"""The files of an encoder that `sparsight train` wrote, and its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

from training.files import digest, full_path

BUNDLED = Path(__file__).parent.parent / "weights"  # the encoder that ships with the package
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
WORDS = "words.json"  # the lexicon of the text tower, where it has one
CONCEPTS, TEST_EMBEDDINGS, NOTES = "concepts.json", "cifar10-test.safetensors", "training.json"


def folder_of(name: str) -> Path:
    """The folder of an encoder, by its name: `bundled`, or a path. The folder need not exist."""
    return BUNDLED if name == "bundled" else full_path(name)


def is_trained_folder(folder: Path) -> bool:
    """True where a folder's configuration is one that `sparsight train` wrote."""
    return has_setting(folder, "image_tower")


def has_setting(folder: Path, key: str) -> bool:
    """True where a folder's configuration can be read and has a key, which tells whose encoder the folder holds."""
    try:
        return key in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def trained_fingerprint(folder: Path) -> str:
    """SHA-256 over the files that decide an encoder's output. Raises OSError where one cannot be read."""
    words = [WORDS] if (folder / WORDS).exists() else []  # earlier encoders have none
    return digest((folder / f).read_bytes() for f in (CONFIG, TOKENIZER, WEIGHTS, *words))
