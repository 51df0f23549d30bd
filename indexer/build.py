"""The build: pictures → X → codes → both indexes, in one folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from indexer.coder import encode_sparse
from indexer.config import IndexConfig
from indexer.dense import build_dense, dense_key, save_dense
from indexer.dictionary import Dictionary, make_dictionary, merge_same
from indexer.folder import Picture, Skipped, Spool, find_pictures, folder_labels, read_pictures
from indexer.pictures import FORMATS, quiet_pillow, thumbnail
from indexer.store import Contents, write_store
from training.centring import Means, centre, mean_of
from training.cifar10 import CLASSES, Pictures
from training.encoder import AnyEncoder, SplitEmbeddings
from training.errors import SparsightError
from training.files import path_text
from training.hub import HubEncoder


def index_pictures(folder: Path, pictures: Pictures, encoder: AnyEncoder, config: IndexConfig) -> dict[str, object]:
    """Encodes CIFAR-10 pictures and writes both indexes to `folder`; returns the index's meta data."""
    X = encode_pictures(pictures.pixels, encoder, config.batch_size)
    with _bar("thumbnails", len(pictures)) as step:
        thumbnails = [_counted(thumbnail(p), step) for p in pictures.pixels]
    described = Described(
        paths=[f"cifar10/{s}/{name}" for s, name in zip(pictures.splits, pictures.names, strict=True)],
        splits=list(pictures.splits),
        labels=[CLASSES[y] for y in pictures.labels],
        terms=list(pictures.terms),
        hashes=[hashlib.sha256(p.tobytes()).hexdigest() for p in pictures.pixels],
        thumbnails=thumbnails,
    )
    return write_index(folder, X, described, encoder, config, dataset="CIFAR-10", embedded="from the pictures")


def index_bundled(
    folder: Path, embeddings: SplitEmbeddings, encoder: AnyEncoder, config: IndexConfig
) -> dict[str, object]:
    """Indexes the embeddings of CIFAR-10's test pictures that ship with the encoder."""
    n = len(embeddings.X)
    names = list(encoder.concepts)
    described = Described(
        paths=[f"cifar10/test/{i:05d}" for i in range(n)],
        splits=["test"] * n,
        labels=[CLASSES[y] for y in embeddings.labels],
        terms=[names[t] if t >= 0 else None for t in embeddings.terms],
        hashes=[None] * n,
        thumbnails=[],
    )
    return write_index(folder, embeddings.X, described, encoder, config, dataset="CIFAR-10", embedded="bundled")


def index_folder(
    folder: Path, root: Path, encoder: AnyEncoder, config: IndexConfig, *, labels: bool = False
) -> dict[str, object]:
    """Encodes the pictures below `root` and writes both indexes to `folder`.

    labels: the folders' names are the pictures' labels, and the index's classes. What cannot be read is skipped,
    with its reason in the index's table `skipped`; its number is in the meta data that is returned. Of the
    pictures' own data no more than two batches are in memory, beside the embeddings.
    Raises `SparsightError` where there is no picture to index, or no label where they are asked for.
    """
    found, skipped = find_pictures(root)
    if not found:
        raise SparsightError(f"no pictures in {path_text(root)}: none of its files is named as {', '.join(FORMATS)}")
    if labels and not any(folder_labels(found, root)[1]):
        raise SparsightError(f"no class folders in {path_text(root)}: with --labels folders, pictures lie in one each")
    taken: list[str] = []
    hashes: list[str | None] = []
    parts: list[np.ndarray] = []
    with _spool(folder) as thumbnails:
        with _bar("encode", len(found)) as step, quiet_pillow():
            read = read_pictures(found, encoder.image_size, ahead=config.batch_size)
            while batch := list(islice(read, config.batch_size)):
                pictures = [p for p in batch if isinstance(p, Picture)]
                skipped += [p for p in batch if isinstance(p, Skipped)]
                if pictures:
                    parts.append(encoder.encode_images(np.stack([p.pixels for p in pictures])))
                    taken += [p.path for p in pictures]
                    hashes += [p.content_hash for p in pictures]
                    for p in pictures:
                        thumbnails.append(p.thumbnail)
                step(len(batch))
        skipped = [Skipped(path_text(s.path), s.reason) for s in sorted(skipped)]
        if not taken:
            raise SparsightError(
                f"none of the {len(found)} picture files in {path_text(root)} can be read; {skipped[0].path}: "
                f"{skipped[0].reason}"
            )
        unknown: list[str | None] = [None] * len(taken)
        splits, given = folder_labels(taken, root) if labels else (unknown, unknown)
        described = Described(
            paths=[path_text(p) for p in taken],
            splits=splits,
            labels=given,
            terms=[None] * len(taken),
            hashes=hashes,
            thumbnails=thumbnails,
        )
        classes = sorted({label for label in given if label is not None})
        meta = write_index(
            folder,
            np.concatenate(parts),
            described,
            encoder,
            config,
            dataset=path_text(root.absolute()),
            embedded="from the pictures",
            classes=classes,
            skipped=skipped,
        )
    return {**meta, "skipped": skipped}


@dataclass(frozen=True)
class Described:
    """What is known of each picture beside its embedding; the lists are as long as X, thumbnails perhaps empty."""

    paths: list[str]
    splits: list[str | None]
    labels: list[str | None]
    terms: list[str | None]
    hashes: list[str | None]
    thumbnails: Sequence[bytes]


def write_index(
    folder: Path,
    X: np.ndarray,
    described: Described,
    encoder: AnyEncoder,
    config: IndexConfig,
    *,
    dataset: str,
    embedded: str,
    classes: Sequence[str] = CLASSES,
    skipped: Sequence[tuple[str, str]] = (),
) -> dict[str, object]:
    """Codes X (n, d) and writes both indexes; the earlier index stands until the new one is whole."""
    templates = config.templates or encoder.templates
    dictionary = make_dictionary(config.dictionary, encoder, classes, templates)
    X, dictionary, encoder, means = close_gap(X, dictionary, encoder)
    dictionary = merge_same(dictionary)
    T = encoder.encode_concepts(classes, templates)
    with _bar("code", len(X)) as step:
        codes = encode_sparse(X, dictionary.D, config.coder, device=encoder.device, progress=step)
    index, key = build_dense(X, config.dense), dense_key(X, config.dense)
    meta: dict[str, object] = {
        "dataset": dataset,
        "embedded": embedded,
        "encoder_name": encoder.name,
        "encoder_source": encoder.source,
        "encoder_fingerprint": encoder.fingerprint,
        "trained_on": encoder.trained_on,
        "dictionary": dictionary.source,
        "dictionary_fingerprint": dictionary.fingerprint,
        "templates": list(templates),
        "l1": config.coder.l1,
        "coder": asdict(config.coder),
        "dense_factory": config.dense,
        "dense_key": key,
    }
    contents = Contents(
        X=X,
        W=codes.W,
        D=dictionary.D,
        T=T,
        classes=list(classes),
        names=dictionary.names,
        aliases=dictionary.aliases,
        parents=dictionary.parents,
        source=dictionary.source,
        paths=described.paths,
        splits=described.splits,
        labels=described.labels,
        terms=described.terms,
        hashes=described.hashes,
        l1=codes.l1,
        gap=codes.gap,
        thumbnails=described.thumbnails,
        skipped=skipped,
        meta=meta,
        means=means,
    )
    print("writing the index ...", file=sys.stderr)
    write_store(folder, contents)
    save_dense(folder, index, key)
    return {**meta, "n": len(X), "m": len(dictionary.D), "nnz_mean": codes.W.nnz / max(1, len(X))}


def close_gap(
    X: np.ndarray, dictionary: Dictionary, encoder: AnyEncoder
) -> tuple[np.ndarray, Dictionary, AnyEncoder, Means | None]:
    """Centres X (n, d), the atoms and the encoder on their modality's mean, where the encoder's space has the gap.

    One that `sparsight train` wrote has none: its pictures are taught to lie among their own concepts.
    """
    if not isinstance(encoder, HubEncoder):
        return X, dictionary, encoder, None
    means = Means(image=mean_of(X), text=mean_of(dictionary.D))
    atoms = centre(dictionary.D, means.text)
    return centre(X, means.image), replace(dictionary, D=atoms), encoder.centred(means), means


def encode_pictures(pixels: np.ndarray, encoder: AnyEncoder, batch_size: int) -> np.ndarray:
    """uint8 pictures (n, s, s, 3) → X (n, d), with a progress bar."""
    parts = [np.zeros((0, encoder.dim), np.float32)]
    with _bar("encode", len(pixels)) as step:
        for i in range(0, len(pixels), batch_size):
            parts.append(encoder.encode_images(pixels[i : i + batch_size]))
            step(len(parts[-1]))
    return np.concatenate(parts)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=f"{what:<10}", unit="pic", file=sys.stderr, mininterval=0.5) as bar:
        yield bar.update


def _counted(value: bytes, step: Callable[[int], object]) -> bytes:
    step(1)
    return value


@contextmanager
def _spool(folder: Path) -> Iterator[Spool]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Spool(folder) as spool:
            yield spool
    except OSError as e:
        raise SparsightError(f"cannot write an index to {folder}: {e.strerror}; choose another --index") from e
