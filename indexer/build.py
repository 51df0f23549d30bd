"""The build: pictures → X → codes → both indexes, in one folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from indexer.coding.coder import encode_sparse
from indexer.coding.dictionary import Dictionary, make_dictionary, merge_same
from indexer.config import IndexConfig
from indexer.pictures.files import FORMATS, quiet_pillow, thumbnail
from indexer.pictures.folders import Picture, Skipped, find_pictures, folder_labels, read_pictures
from indexer.plan import plan_addition
from indexer.store.dense import build_dense, save_dense
from indexer.store.journal import Journal
from indexer.store.lock import writing
from indexer.store.store import Contents, vectors_key, write_store
from training.data.cifar10 import CLASSES, Pictures
from training.encoders import Encoder, Means, SplitEmbeddings, centre, mean_of
from training.encoders.centring import CentredEncoder
from training.errors import SparsightError
from training.files import path_text


def index_pictures(folder: Path, pictures: Pictures, encoder: Encoder, config: IndexConfig) -> dict[str, object]:
    """Encodes CIFAR-10 pictures and writes both indexes to `folder`; returns the index's meta data."""
    hashes = [hashlib.sha256(p.tobytes()).hexdigest() for p in pictures.pixels]
    with writing(folder, "index"):
        journal = Journal(folder, encoder)
        with bar("encode", len(pictures)) as step:
            for start in range(0, len(pictures), config.batch_size):
                rows = range(start, min(start + config.batch_size, len(pictures)))
                new = {hashes[i]: i for i in rows if hashes[i] not in journal}
                if new:
                    pixels = pictures.pixels[list(new.values())]
                    journal.add(list(new), encoder.encode_images(pixels), [thumbnail(p) for p in pixels])
                step(len(rows))
        described = Described(
            paths=[f"cifar10/{s}/{name}" for s, name in zip(pictures.splits, pictures.names, strict=True)],
            splits=list(pictures.splits),
            labels=[CLASSES[y] for y in pictures.labels],
            terms=list(pictures.terms),
            hashes=hashes,
            thumbnails=journal.thumbnails(hashes),
        )
        X = journal.vectors(hashes)
        meta = write_index(folder, X, described, encoder, config, dataset="CIFAR-10", embedded="from the pictures")
        journal.clear()
    return meta


def index_bundled(
    folder: Path, embeddings: SplitEmbeddings, encoder: Encoder, config: IndexConfig
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
    with writing(folder, "index"):
        return write_index(folder, embeddings.X, described, encoder, config, dataset="CIFAR-10", embedded="bundled")


def index_folder(
    folder: Path, root: Path, encoder: Encoder, config: IndexConfig, *, labels: bool = False
) -> dict[str, object]:
    """Encodes the pictures below `root` and writes both indexes to `folder`.

    labels: the folders' names are the pictures' labels, and the index's classes. What cannot be read, and what has
    the content of a picture before it, is skipped, with its reason in the index's table `skipped` and in the meta
    data that is returned. Of the pictures' own data no more than two batches are in memory, beside the embeddings.
    Raises `SparsightError` where there is no picture to index, or no label where they are asked for.
    """
    found, skipped = find_pictures(root)
    if not found:
        raise SparsightError(f"no pictures in {path_text(root)}: none of its files is named as {', '.join(FORMATS)}")
    if labels and not any(folder_labels(found, root)[1]):
        raise SparsightError(f"no class folders in {path_text(root)}: with --labels folders, pictures lie in one each")
    with writing(folder, "index"):
        journal = Journal(folder, encoder)
        seen, more = encode_files(found, encoder, journal, config.batch_size)
        skipped = [Skipped(path_text(path), reason) for path, reason in skipped] + more
        if not seen:
            raise SparsightError(
                f"none of the {len(found)} picture files in {path_text(root)} can be read; {min(more).path}: "
                f"{min(more).reason}"
            )
        files = plan_addition({}, seen)
        skipped += [Skipped(path, f"it is a duplicate of {of}") for path, of in files.duplicates]
        skipped.sort()
        taken, hashes = [path for path, _ in files.added], [h for _, h in files.added]
        unknown: list[str | None] = [None] * len(taken)
        splits, given = folder_labels(taken, path_text(root.absolute())) if labels else (unknown, unknown)
        described = Described(
            paths=taken,
            splits=splits,
            labels=given,
            terms=[None] * len(taken),
            hashes=hashes,
            thumbnails=journal.thumbnails(hashes),
        )
        meta = write_index(
            folder,
            journal.vectors(hashes),
            described,
            encoder,
            config,
            dataset=path_text(root.absolute()),
            embedded="from the pictures",
            classes=sorted({label for label in given if label is not None}),
            skipped=skipped,
            labels="folders" if labels else "",
        )
        journal.clear()
    return {**meta, "skipped": skipped}


def encode_files(
    paths: Sequence[str],
    encoder: Encoder,
    journal: Journal,
    batch_size: int,
    indexed: Container[str | None] = frozenset(),
) -> tuple[dict[str, str], list[Skipped]]:
    """Reads picture files and puts what neither the journal nor the index (its content hashes) holds into the journal.

    Returns the content hash of each path (as text) that holds a picture, in their order, and what was skipped.
    """
    seen: dict[str, str] = {}
    skipped: list[Skipped] = []
    with bar("encode", len(paths)) as step, quiet_pillow():
        held = lambda content_hash: content_hash in journal or content_hash in indexed  # noqa: E731
        read = read_pictures(paths, encoder.image_size, ahead=batch_size, known=held)
        while batch := list(islice(read, batch_size)):
            new: dict[str, Picture] = {}
            for p in batch:
                path = path_text(p.path)
                if isinstance(p, Skipped):
                    skipped.append(Skipped(path, p.reason))
                elif path in seen:  # a name that is no UTF-8 beside one that spells it out as \xNN
                    skipped.append(Skipped(path, "another picture's path reads the same"))
                else:
                    seen[path] = p.content_hash
                    if p.pixels is not None and p.content_hash not in journal:
                        new[p.content_hash] = p
            if new:
                X = encoder.encode_images(np.stack([p.pixels for p in new.values() if p.pixels is not None]))
                journal.add(list(new), X, [p.thumbnail for p in new.values()])
            step(len(batch))
    return seen, skipped


@dataclass(frozen=True)
class Described:
    """What is known of each picture beside its embedding; the lists are as long as X, thumbnails perhaps empty."""

    paths: Sequence[str]
    splits: Sequence[str | None]
    labels: Sequence[str | None]
    terms: Sequence[str | None]
    hashes: Sequence[str | None]
    thumbnails: Sequence[bytes]


def write_index(
    folder: Path,
    X: np.ndarray,
    described: Described,
    encoder: Encoder,
    config: IndexConfig,
    *,
    dataset: str,
    embedded: str,
    classes: Sequence[str] = CLASSES,
    skipped: Sequence[tuple[str, str]] = (),
    labels: str = "",
) -> dict[str, object]:
    """Codes X (n, d) and writes both indexes; the earlier index stands until the new one is whole."""
    templates = config.templates or encoder.templates
    dictionary = make_dictionary(config.dictionary, encoder, classes, templates)
    X, dictionary, encoder, means = centre_modalities(X, dictionary, encoder)
    dictionary = merge_same(dictionary)
    T = encoder.encode_concepts(classes, templates)
    with bar("code", len(X)) as step:
        codes = encode_sparse(X, dictionary.D, config.coder, device=encoder.device, progress=step)
    index = build_dense(X, config.dense)
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
        "labels": labels,
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
    save_dense(folder, index, vectors_key(X, config.dense))
    return {**meta, "n": len(X), "m": len(dictionary.D), "nnz_mean": codes.W.nnz / max(1, len(X))}


def centre_modalities(
    X: np.ndarray, dictionary: Dictionary, encoder: Encoder
) -> tuple[np.ndarray, Dictionary, Encoder, Means | None]:
    """Centres X (n, d), the atoms and the encoder on their modality's mean, where the encoder's space has the gap.

    One that `sparsight train` wrote has none: its pictures are taught to lie among their own concepts.
    """
    if not encoder.has_modality_gap:
        return X, dictionary, encoder, None
    means = Means(image=mean_of(X), text=mean_of(dictionary.D))
    atoms = centre(dictionary.D, means.text)
    return centre(X, means.image), replace(dictionary, D=atoms), CentredEncoder(encoder, means), means


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=f"{what:<10}", unit="pic", file=sys.stderr, mininterval=0.5) as bar:
        yield bar.update
