"""CIFAR-10 through torchvision, with the search term that each picture was found under.

CIFAR-10 holds the file name that each picture had (`fire_engine_s_000148.png`), which torchvision leaves out. Without
its number the name is a second and finer caption, the term: the training split has 389 different ones. The data files
are pickles, which can run any code. They are therefore opened only once their MD5 agrees with torchvision's table.
"""

from __future__ import annotations

import pickle
import re
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.errors import SparsightError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CONNECT_TIMEOUT = 10.0  # seconds, so that a machine without a network is told soon


@dataclass(frozen=True)
class Pictures:
    """n labelled pictures, held in memory.

    pixels: (n, 32, 32, 3) uint8 RGB. labels: (n,) int64 class ids. names: their n file names. splits: n of "train" and
    "test".
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: list[str]
    splits: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> Pictures:
        """The first n pictures, or all where there are fewer."""
        return self.take(np.arange(min(n, len(self))))

    def take(self, rows: np.ndarray) -> Pictures:
        """The pictures of some rows (k,) int, in their order."""
        names, splits = ([values[i] for i in rows] for values in (self.names, self.splits))
        return Pictures(self.pixels[rows], self.labels[rows], names, splits)

    @property
    def terms(self) -> list[str]:
        """The search term of each picture."""
        return [term_of(name) for name in self.names]


class MissingDataError(SparsightError):
    """CIFAR-10 is not on disk, and it cannot be downloaded."""


def term_of(name: str) -> str:
    """The search term in the file name of a CIFAR-10 picture: `tabby_cat_s_000091.png` → `tabby cat`."""
    return re.sub(r"_s_\d+\.\w+$", "", name).replace("_", " ").strip().lower()


def load_cifar10(root: Path, splits: tuple[str, ...] = ("train", "test"), *, download: bool = True) -> Pictures:
    """Loads splits of CIFAR-10 from the folder `root`; it is downloaded into it where it is missing.

    splits: of "train" (50,000 pictures) and "test" (10,000), in the order wanted. Raises `MissingDataError` where there
    is neither the data nor a network (or `download` is False), and `SparsightError`, which names the file, where a data
    file is damaged.
    """
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    parts = {"train": CIFAR10.train_list, "test": CIFAR10.test_list}
    if not folder.is_dir():
        if not download:
            raise MissingDataError(f"no CIFAR-10 in {root}; set --data or SPARSIGHT_DATA to a folder that holds it")
        _download(root)
    pixels, labels, names, of_split = [], [], [], []
    for split in splits:
        for name, md5 in parts[split]:
            batch = _read_batch(folder / name, md5)
            pixels.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.extend(batch["labels"])
            names.extend(batch["filenames"])
            of_split.extend([split] * len(batch["labels"]))
    return Pictures(np.ascontiguousarray(np.concatenate(pixels)), np.asarray(labels, np.int64), names, of_split)


def _read_batch(path: Path, md5: str) -> dict:
    from torchvision.datasets.utils import check_md5

    hint = f"delete {path.parent} to have it downloaded anew"
    try:
        if not check_md5(path, md5):
            raise SparsightError(f"damaged CIFAR-10 batch {path}: its MD5 is not {md5}; {hint}")
        with path.open("rb") as f:
            return pickle.load(f, encoding="latin1")
    except OSError as e:
        raise SparsightError(f"cannot read CIFAR-10 batch {path}: {e.strerror}; {hint}") from e


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR10

    with _connect_timeout(CONNECT_TIMEOUT):
        try:
            CIFAR10(root, download=True)
        except (OSError, RuntimeError, EOFError, tarfile.TarError) as e:
            reason = getattr(e, "reason", None) or e
            raise MissingDataError(
                f"no CIFAR-10 in {root}, and it cannot be downloaded ({reason}); "
                "set --data or SPARSIGHT_DATA to a folder that holds cifar-10-batches-py"
            ) from e


@contextmanager
def _connect_timeout(seconds: float) -> Iterator[None]:
    """Gives urllib a time-out; torchvision downloads by it and sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
