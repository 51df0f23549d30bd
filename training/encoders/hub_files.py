"""The files of a CLIP-like model of transformers, in a local folder or in the cache of the Hugging Face hub.

The configuration, tokenizer, image processor and weights are downloaded, and the fingerprint is taken over the same
files. The hub is not asked again for a model that the cache holds. An index therefore goes on answering without a
network, and with the very model that it was built with. Nothing here needs torch, so this is light to import.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from training.digests import sha256_of
from training.encoders.files import CONFIG, has_setting
from training.errors import SparsightError
from training.files import digest

FAMILIES = ("clip", "siglip", "siglip2")  # known values of model_type; most SigLIP 2 models have siglip there
IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")  # a folder needs one of them
VOCABULARY = ("tokenizer.json", "merges.txt", "spiece.model", "tokenizer.model")  # and one of these
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
FILES = (
    CONFIG,
    *IMAGE_PROCESSOR,
    *VOCABULARY,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *WEIGHTS,
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Models whose main branch holds a pickle alone: the commit of the hub's own conversion to safetensors.
CONVERTED = {"openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef"}


class Offered(NamedTuple):
    """A model that is taken where none is named. megabytes: what is downloaded, once."""

    name: str
    licence: str
    megabytes: int


# For a person's own pictures: the smallest of the CLIPs that are openly licensed and widely used.
FOR_PHOTOGRAPHS = Offered("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "MIT", 605)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # org/name or org/name@revision


def is_hub_name(name: str) -> bool:
    """True for org/name and org/name@revision."""
    return HUB_NAME.fullmatch(name) is not None


def is_hub_folder(folder: Path) -> bool:
    """True where a folder's configuration is that of a transformers model."""
    return has_setting(folder, "model_type")


class NoHub(SparsightError):
    """The hub cannot be asked for a model, or does not have it. reason: why."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def fetch(name: str) -> Path:
    """The folder of a hub's model in the local cache; the model is downloaded where the cache does not hold it.

    name: org/name or org/name@revision. A connection that breaks is taken up where it ended; of a download that
    ends nevertheless the whole files are kept.
    Raises `NoHub` where the hub cannot be asked, or has no such model, else `SparsightError`; both name the model, the
    cache and what can be done.
    """
    from huggingface_hub import HfApi, constants, errors

    if (folder := cached(name)) is not None:
        return folder
    repo, revision = _place(name)
    try:
        # Without a network this fails at once, where the download would try again and again.
        HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision, timeout=10)
    except Exception as e:  # of huggingface_hub or its HTTP client
        closed = isinstance(e, errors.RepositoryNotFoundError)
        reason = "it has no such model, or none that is open to you" if closed else reason_of(e)
        raise NoHub(
            f"no encoder {name}: there is no such folder, the cache {constants.HF_HUB_CACHE} does not hold the whole "
            f"of that model, and it cannot be had from {constants.ENDPOINT} ({reason}); name a folder, or download the "
            "model where there is a network (the variable HF_HOME names the cache)",
            reason,
        ) from e
    try:
        return _snapshot(name, local=False)
    except Exception as e:  # or the disk
        raise SparsightError(
            f"the download of {name} from {constants.ENDPOINT} broke off ({reason_of(e)}); the files that came whole "
            f"are kept in {constants.HF_HUB_CACHE}: call again to go on"
        ) from e


def cached(name: str) -> Path | None:
    """The folder of a hub's model in the local cache; None where that does not hold the whole of it."""
    with suppress(Exception):  # whatever is wrong with the cache, the hub can be asked
        folder = _snapshot(name, local=True)
        if lacking_files(folder) is None:
            return folder
    return None


def _place(name: str) -> tuple[str, str]:
    repo, _, revision = name.partition("@")
    return repo, revision or CONVERTED.get(repo, "main")


def _snapshot(name: str, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    repo, revision = _place(name)
    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES), local_files_only=local))


def hub_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that decide a model's output.

    Raises OSError where one cannot be read.
    """
    files = sorted({f for pattern in FILES for f in folder.glob(pattern)})
    return digest(part for f in files for part in (f.name.encode(), sha256_of(f)))


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: one, or where that is missing all parts that an index names, there or not.

    Raises OSError, or ValueError, KeyError or AttributeError for an index that is none.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():  # transformers, too, reads the one file where there are both
        return [whole]
    return [folder / part for part in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def _has_weights(folder: Path) -> bool:
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
        return all(f.is_file() for f in weight_files(folder))
    return False


def lacking_files(folder: Path) -> str | None:
    """Says which of its files a model's folder lacks; None where it lacks none.

    A vocabulary is asked for because transformers loads a tokenizer without one, which then knows no word.
    """
    if not _has_weights(folder):
        pickles = sorted(f.name for pattern in PICKLES for f in folder.glob(pattern))
        held = f"{pickles[0]} is a pickle, which could run any code" if pickles else "there are none"
        return (
            f"its weights must be whole safetensors, and {held}; name a revision that has them (ORG/NAME@REVISION), "
            "or convert it"
        )
    for files in (IMAGE_PROCESSOR, VOCABULARY):
        if not any((folder / f).is_file() for f in files):
            return f"{' or '.join(files)} is missing"
    return None


def in_words(folder: Path, source: str) -> str:
    """Where a model is, for a message. source: the hub's name for it, or its folder's path."""
    return source if source == str(folder) else f"{source} ({folder})"


def check_folder(folder: Path, where: str) -> str:
    """The family of the model in a folder. where: the folder, in words.

    Raises `SparsightError` where it holds no model that can be read as an encoder.
    """
    if not is_hub_folder(folder):
        raise SparsightError(f"no encoder in {where}: its {CONFIG} names no model_type of transformers")
    family = str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"])
    if family not in FAMILIES:
        raise SparsightError(f"{where} holds a model of type {family}; encoders are of type {', '.join(FAMILIES)}")
    if lacking := lacking_files(folder):
        raise SparsightError(f"no encoder in {where}: {lacking}")
    return family


@contextmanager
def named_damage(where: str) -> Iterator[None]:
    """Turns what transformers, tokenizers and safetensors raise over a folder's contents into a `SparsightError`."""
    try:
        yield
    except SparsightError:
        raise
    except Exception as e:
        raise SparsightError(f"damaged encoder in {where}: {reason_of(e)}") from e


def reason_of(e: BaseException) -> str:
    """An error's text on one line of at most 300 characters, or its type where it has no text."""
    return textwrap.shorten(str(e), 300) or type(e).__name__
