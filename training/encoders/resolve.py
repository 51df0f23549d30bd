"""From a name to an encoder: `bundled`, a folder, or a model of the Hugging Face hub (org/name, org/name@revision).

The kinds of encoder are told apart here and nowhere else. Torch and transformers are imported once they are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.encoders import files, hub_files
from training.encoders.centring import CentredEncoder, CentredTextEncoder, Means

if TYPE_CHECKING:
    import torch

    from training.encoders.protocol import Encoder, TextEncoder


def open_encoder(name: str = "bundled", device: torch.device | str = "cpu", *, means: Means | None = None) -> Encoder:
    """Opens an encoder by its name; means: what an index centred its embeddings on, if it did.

    Raises `SparsightError` with the path and the reason.
    """
    from training.device import pick_device

    device = pick_device(device) if isinstance(device, str) else device
    encoder: Encoder
    folder = files.folder_of(name)
    is_remote = hub_files.is_hub_name(name) and not folder.exists()
    if is_remote or hub_files.is_hub_folder(folder):
        from training.encoders.hub import open_hub_encoder

        where = hub_files.fetch(name) if is_remote else folder
        shown, source = (name, name) if is_remote else (folder.name, str(folder))
        encoder = open_hub_encoder(where, device, name=shown, source=source)
    else:
        from training.encoders.trained import open_trained_encoder

        encoder = open_trained_encoder(folder, device)
    return encoder if means is None else CentredEncoder(encoder, means)


def open_text_encoder(
    name: str = "bundled", device: torch.device | str = "cpu", *, means: Means | None = None
) -> TextEncoder:
    """Opens what reads texts alone: in plain numpy, and so at once, where `sparsight train` wrote the encoder.

    Raises `SparsightError` as `open_encoder` does.
    """
    folder = files.folder_of(name)
    if not files.is_trained_folder(folder):
        return open_encoder(name, device, means=means)
    from training.encoders.numpy_text import NumpyTextEncoder

    encoder = NumpyTextEncoder(folder)
    return encoder if means is None else CentredTextEncoder(encoder, means)


def fingerprint_of(name: str) -> str | None:
    """The fingerprint of an encoder by its name, from its files alone; None for a hub's model without a local folder.

    Raises OSError where its files cannot be read.
    """
    folder: Path = files.folder_of(name)
    if hub_files.is_hub_name(name) and not folder.exists():
        return None
    return hub_files.fingerprint_of(folder) if hub_files.is_hub_folder(folder) else files.fingerprint_of(folder)
