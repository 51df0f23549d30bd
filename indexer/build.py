"""The build: pictures → X → codes → both indexes, in one folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from indexer.coding import NOUNS, Dictionary, choose_l1, encode_sparse, make_dictionary, meaningful, merge_same
from indexer.config import IndexConfig
from indexer.encode import FilesRead, encode_files, encode_pixels
from indexer.milvus.address import Address
from indexer.milvus.held import work_folder
from indexer.milvus.measures import keep_measures
from indexer.milvus.reader import MilvusStore
from indexer.milvus.writer import refuse_in_milvus, write_milvus
from indexer.pictures import Excluded, Skipped, find_pictures, folder_labels, formats, summarised
from indexer.plan import plan_addition
from indexer.residual import make_residuals, read_description
from indexer.store import Classes, Contents, Described, IndexMeta, Journal, Pictures, Skip, Store, write_store, writing
from indexer.store.approximate import refuse_description
from indexer.store.dense import FLAT, open_dense
from indexer.store.held import measure_folder
from training.data.cifar10 import CLASSES
from training.data.cifar10 import Pictures as Cifar10
from training.encoders import Encoder, Means, SplitEmbeddings, centre, mean_of
from training.encoders.centring import CentredEncoder, CentredRows, Rows
from training.errors import SparsightError
from training.files import path_text
from training.terminal import printable, progress

Place = Path | Address  # of an index: a folder, or one in Milvus
BUNDLED, FROM_PICTURES = "bundled", "from the pictures"  # how an index's embeddings came about


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an index's pictures come from: see `IndexMeta`. classes: the names that its pictures are told apart by."""

    dataset: str
    root: str = ""
    embedded: str = FROM_PICTURES
    labels: str = ""
    exclude: tuple[str, ...] = ()
    classes: Sequence[str] = CLASSES


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What holds for every picture of an index, whatever its code: it follows from all pictures, or a sample of them,
    before the first is coded.

    meta: but for its counts and files · dictionary: D (m, d) · classes: those that its pictures are told apart by ·
    means: what is subtracted from the embeddings of each modality, if anything.
    """

    meta: IndexMeta
    dictionary: Dictionary
    classes: Classes
    means: Means | None


@dataclass(frozen=True)
class Built:
    """A finished build: the index's meta data, and the files that were not taken."""

    meta: IndexMeta
    skipped: Sequence[Skip] = ()


def work_at(place: Place) -> Path:
    """The folder of what is encoded for an index and is not in it yet, and of its lock."""
    return work_folder(place) if isinstance(place, Address) else place


def refuse_unfit(place: Place, config: IndexConfig, encoder: Encoder, n: int) -> None:
    """Raises `CallError` for a dense index or residuals that n pictures cannot have, before any is encoded."""
    if isinstance(place, Address):
        return refuse_in_milvus(place, config.dense, config.residual)
    if config.dense != FLAT:
        refuse_description(config.dense, encoder.dim, n)
    if config.residual:
        read_description(config.residual, encoder.dim, n)


def index_pictures(place: Place, pictures: Cifar10, encoder: Encoder, config: IndexConfig) -> Built:
    """Encodes CIFAR-10's pictures and writes both indexes to a place."""
    refuse_unfit(place, config, encoder, len(pictures.pixels))
    hashes = [hashlib.sha256(p.tobytes()).hexdigest() for p in pictures.pixels]
    with writing(work := work_at(place), "index"):
        journal = Journal(work, encoder)
        encode_pixels(pictures.pixels, hashes, encoder, journal, config.batch_size)
        described = Described(
            paths=[f"cifar10/{s}/{name}" for s, name in zip(pictures.splits, pictures.names, strict=True)],
            splits=list(pictures.splits),
            labels=[CLASSES[y] for y in pictures.labels],
            terms=list(pictures.terms),
            hashes=hashes,
            thumbnails=journal.thumbnails(hashes),
        )
        built = write_index(place, journal.vectors(hashes), described, encoder, config, Source(dataset="CIFAR-10"))
        journal.clear()
    return built


def index_bundled(place: Place, embeddings: SplitEmbeddings, encoder: Encoder, config: IndexConfig) -> Built:
    """Indexes the embeddings of CIFAR-10's test pictures that ship with the encoder."""
    n = len(embeddings.X)
    refuse_unfit(place, config, encoder, n)
    names = list(encoder.concepts)
    described = Described(
        paths=[f"cifar10/test/{i:05d}" for i in range(n)],
        splits=["test"] * n,
        labels=[CLASSES[y] for y in embeddings.labels],
        terms=[names[t] if t >= 0 else None for t in embeddings.terms],
    )
    with writing(work_at(place), "index"):
        source = Source(dataset="CIFAR-10", embedded=BUNDLED)
        return write_index(place, embeddings.X, described, encoder, config, source)


def index_folder(place: Place, root: Path, encoder: Encoder, config: IndexConfig, *, labels: bool = False) -> Built:
    """Encodes the pictures below `root` and writes both indexes to a place.

    labels: the folders' names are the pictures' labels, and the index's classes. What cannot be read, and what has
    the content of a picture before it, is skipped, with its reason. Raises `SparsightError` where there is no picture
    to index, or no label where they are asked for.
    """
    found, left = pictures_below(root, config, labels=labels)
    refuse_unfit(place, config, encoder, len(found))
    with writing(work := work_at(place), "index"):
        journal = Journal(work, encoder)
        read = encode_files(found, encoder, journal, config.batch_size)
        added, skipped = taken_of(read, left, root)
        source = folder_source(root, config, labels=labels)
        described = describe_files(added, read, journal, source.root if labels else None)
        source = replace(source, classes=classes_of(described.labels))
        X = journal.vectors([read.seen[path].content_hash for path in added])
        built = write_index(place, X, described, encoder, config, source, skipped)
        journal.clear()
    return built


def pictures_below(root: Path, config: IndexConfig, *, labels: bool) -> tuple[list[str], list[Skipped]]:
    """The picture files below a folder, and what is passed over. Raises `SparsightError` as `index_folder` does."""
    excluded = Excluded(path_text(os.path.realpath(root)), config.exclude)
    found, left = find_pictures(root, excluded)
    for pattern in excluded.idle(left):
        print(f"note: --exclude {printable(pattern)} leaves nothing out", file=sys.stderr)
    if not found:
        why = "".join(f"; {line}" for line in summarised(left)[0])
        names = ", ".join(formats())
        raise SparsightError(f"no pictures in {path_text(root)}: none of its files is named as {names}{why}")
    if labels and not any(folder_labels(found, root)[1]):
        raise SparsightError(f"no class folders in {path_text(root)}: with --labels folders, pictures lie in one each")
    return found, left


def taken_of(read: FilesRead, left: Sequence[Skipped], root: Path) -> tuple[list[str], list[Skip]]:
    """Of the pictures that were read, the paths that an index takes: each content once; and all that it does not take.

    Raises `SparsightError` where none could be read.
    """
    if not read.seen:
        first = min(read.skipped)
        raise SparsightError(
            f"none of the {len(read.skipped)} picture files in {path_text(root)} can be read; "
            f"{first.path}: {first.reason}"
        )
    files = plan_addition({}, {path: s.content_hash for path, s in read.seen.items()})
    skipped = [Skip(path_text(s.path), s.reason) for s in left] + read.skipped
    skipped += [Skip(path, f"it is a duplicate of {of}") for path, of in files.duplicates]
    return [path for path, _ in files.added], sorted(skipped)


def folder_source(root: Path, config: IndexConfig, *, labels: bool) -> Source:
    """A folder as where pictures come from, its classes not yet known."""
    top = path_text(os.path.realpath(root))
    return Source(
        dataset=Path(top).name or top,
        root=top,
        labels="folders" if labels else "",
        exclude=config.exclude,
        classes=(),
    )


def classes_of(labels: Iterable[str | None]) -> list[str]:
    """The names that pictures with these labels are told apart by."""
    return sorted({label for label in labels if label is not None})


def describe_files(paths: Sequence[str], read: FilesRead, journal: Journal, labelled: str | None) -> Described:
    """What is known of picture files that were read; labelled: the folder below which folders are labels, or None."""
    splits, labels = folder_labels(paths, labelled) if labelled else ([], [])
    seen = [read.seen[path] for path in paths]
    hashes = [s.content_hash for s in seen]
    return Described(
        paths=paths,
        splits=splits,
        labels=labels,
        hashes=hashes,
        sizes=[s.size for s in seen],
        changed=[s.changed for s in seen],
        thumbnails=journal.thumbnails(hashes),
    )


def write_index(
    place: Place,
    X: np.ndarray,
    described: Described,
    encoder: Encoder,
    config: IndexConfig,
    source: Source,
    skipped: Sequence[Skip] = (),
) -> Built:
    """Codes X (n, d) and writes both indexes; the earlier index stands until the new one is whole."""
    settled, encoder = settle(X, encoder, config, source)
    if settled.means is not None:
        X = centre(X, settled.means.image)
    D, meta = settled.dictionary.D, settled.meta
    with progress("code", len(X)) as step:
        codes = encode_sparse(X, D, meta.coder, device=encoder.device, progress=step)
    quantiser, residuals = make_residuals(X, codes.W, D, meta.residual)
    contents = Contents(
        meta=meta,
        pictures=Pictures(X=X, W=codes.W, l1=codes.l1, gap=codes.gap, described=described, residuals=residuals),
        dictionary=settled.dictionary,
        quantiser=quantiser,
        classes=settled.classes,
        means=settled.means,
        skipped=skipped,
    )
    print("writing the index ...", file=sys.stderr)
    meta = write_milvus(place, contents) if isinstance(place, Address) else write_store(place, contents)
    complete(place, encoder)
    return Built(meta, skipped)


def settle(X: Rows, encoder: Encoder, config: IndexConfig, source: Source) -> tuple[Settled, Encoder]:
    """What holds for all pictures of an index with the embeddings X (n, d), and the encoder of its space, which is
    centred where the encoder's own has a gap between pictures and texts. X is read by slices."""
    templates = tuple(config.templates or encoder.templates)
    dictionary = make_dictionary(config.dictionary, encoder, source.classes, templates)
    if dictionary.source == NOUNS:
        nouns = len(dictionary.names)
        dictionary = meaningful(dictionary, encoder)
        if left_out := nouns - len(dictionary.names):
            print(f"left out {left_out} of {nouns} nouns: they mean nothing to the encoder", file=sys.stderr)
    means = None
    if encoder.has_modality_gap:
        means = Means(image=mean_of(X), text=mean_of(dictionary.D))
        dictionary = replace(dictionary, D=centre(dictionary.D, means.text))
        encoder, X = CentredEncoder(encoder, means), CentredRows(X, means.image)
    dictionary = merge_same(dictionary, config.merge)
    config = fitted(config, X, dictionary.D)
    meta = index_meta(encoder, dictionary, source, config, templates)
    classes = Classes(list(source.classes), encoder.encode_concepts(source.classes, templates))
    return Settled(meta=meta, dictionary=dictionary, classes=classes, means=means), encoder


def complete(place: Place, encoder: Encoder) -> None:
    """Makes what an index that was just written keeps beside its database: another dense index than the flat one, and
    what its scores mean."""
    if isinstance(place, Address):
        with MilvusStore(place) as stored:
            return keep_measures(stored, encoder.encode_texts)
    with Store(place) as store:
        if store.meta.dense_factory != FLAT:
            open_dense(store)
    measure_folder(place, encoder.encode_texts)


def fitted(config: IndexConfig, X: Rows, D: np.ndarray) -> IndexConfig:
    """The settings with the penalty at which a sample of X has as many concepts a picture as are asked for.

    Of a small dictionary a picture is given a quarter at the most, or one: more would describe nothing.
    """
    if config.concepts is None:
        return config
    wanted = min(config.concepts, max(1.0, len(D) / 4))
    l1 = choose_l1(X, D, wanted, config.coder)
    measure = "λ_max" if config.coder.relative else "in λ"
    print(f"about {wanted:.3g} concepts a picture: --l1 {l1:.3g} ({measure})", file=sys.stderr)
    return replace(config, coder=replace(config.coder, l1=l1))


def index_meta(
    encoder: Encoder, dictionary: Dictionary, source: Source, config: IndexConfig, templates: tuple[str, ...]
) -> IndexMeta:
    """What an index is to say of itself, but for its counts and files."""
    return IndexMeta(
        d=dictionary.D.shape[1],
        dataset=source.dataset,
        root=source.root,
        embedded=source.embedded,
        labels=source.labels,
        exclude=source.exclude,
        encoder_name=encoder.name,
        encoder_source=encoder.source,
        encoder_fingerprint=encoder.fingerprint,
        trained_on=encoder.trained_on,
        dictionary=dictionary.source,
        dictionary_fingerprint=dictionary.fingerprint,
        templates=templates,
        coder=config.coder,
        dense_factory=config.dense,
        dense_recall=config.recall,
        residual=config.residual,
        keeps_vectors=config.vectors,
    )
