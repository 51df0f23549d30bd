"""From a name to an encoder: `bundled`, a folder, or a model of the Hugging Face hub (org/name, org/name@revision).

The kinds of encoder are told apart here and nowhere else. Torch and transformers are imported only where they are
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from training.encoders import files, hub_files
from training.encoders.centring import CentredEncoder, CentredTextEncoder, Means

if TYPE_CHECKING:
    import torch

    from training.encoders.protocol import Encoder, TextEncoder


def open_encoder(name: str = "bundled", device: torch.device | str = "cpu", *, means: Means | None = None) -> Encoder:
    """Opens an encoder by its name.

    name: `bundled`, a folder, org/name or org/name@revision; a folder of that name goes before the hub. device: where
    to compute; "auto" picks one. means: what an index centred its embeddings on, if it did; the encoder does the same.

    Raises `SparsightError` with the path and the reason where there is no such encoder, where it is damaged, and where
    there is no such device.
    """
    from training.device import pick_device

    device = pick_device(device) if isinstance(device, str) else device
    encoder = _open_hub(name, device) if _is_hub(name) else _open_trained(name, device)
    return encoder if means is None else CentredEncoder(encoder, means)


def open_for_photographs(device: torch.device | str, tell: Callable[[str], object]) -> Encoder:
    """Opens the encoder for a person's own pictures: a CLIP, which is downloaded once; where the hub cannot be asked
    for it, the bundled encoder. tell: takes a line about either.

    Raises `SparsightError` where the download breaks off.
    """
    offered = hub_files.FOR_PHOTOGRAPHS
    if hub_files.cached(offered.name) is None:
        tell(
            f"your own pictures are encoded by {offered.name} ({offered.licence} licence), of which "
            f"{offered.megabytes} MB are downloaded, once; --encoder bundled does without"
        )
    try:
        return open_encoder(offered.name, device)
    except hub_files.NoHub as e:
        tell(
            f"note: {offered.name} cannot be had ({e.reason}); the bundled encoder is taken. It was trained on "
            "CIFAR-10 alone: ten kinds of things at 32 × 32 pixels. Whatever else your pictures show it takes for one "
            "of these; index them again where there is a network"
        )
        return open_encoder("bundled", device)


def open_text_encoder(
    name: str = "bundled", device: torch.device | str = "cpu", *, means: Means | None = None
) -> TextEncoder:
    """Opens what reads texts alone: numpy computes the text tower, without torch's long import.

    A hub's model that numpy cannot read is opened whole. Takes and raises what `open_encoder` does.
    """
    encoder = _open_text_tower(name)
    if encoder is None:
        return open_encoder(name, device, means=means)
    return encoder if means is None else CentredTextEncoder(encoder, means)


def fingerprint_of(name: str) -> str | None:
    """The fingerprint of an encoder by its name, from its files alone; None for a model that only the hub holds.

    Raises OSError where a file cannot be read.
    """
    if _is_remote(name):
        return None
    folder = files.folder_of(name)
    return hub_files.hub_fingerprint(folder) if _is_hub(name) else files.trained_fingerprint(folder)


def _is_remote(name: str) -> bool:
    return hub_files.is_hub_name(name) and not files.folder_of(name).exists()


def _is_hub(name: str) -> bool:
    return _is_remote(name) or hub_files.is_hub_folder(files.folder_of(name))


def _open_hub(name: str, device: torch.device) -> Encoder:
    from training.encoders.hub import open_hub_encoder

    folder, name, source = _hub_place(name)
    return open_hub_encoder(folder, device, name=name, source=source)


def _hub_place(name: str) -> tuple[Path, str, str]:
    """The folder of a hub's model, which is downloaded if need be, its name, and the name that opens it again."""
    if _is_remote(name):
        return hub_files.fetch(name), name, name
    folder = files.folder_of(name)
    return folder, folder.name, str(folder)


def _open_text_tower(name: str) -> TextEncoder | None:
    """The text tower of an encoder in numpy; None where numpy cannot read it."""
    if _is_hub(name):
        from training.encoders.hub_text import Unreadable, open_hub_text_encoder

        folder, name, source = _hub_place(name)
        with suppress(Unreadable):
            return open_hub_text_encoder(folder, name=name, source=source)
    elif files.is_trained_folder(folder := files.folder_of(name)):
        from training.encoders.numpy_text import NumpyTextEncoder

        return NumpyTextEncoder(folder)
    return None


def _open_trained(name: str, device: torch.device) -> Encoder:
    from training.encoders.trained import open_trained_encoder

    return open_trained_encoder(files.folder_of(name), device)
