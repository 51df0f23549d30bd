"""The build on Ray: slices are encoded, what holds for all pictures is settled, shards are coded, and then imported.

What is finished is kept after every step, by name, so that a build that was stopped goes on.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from indexer.build import Built, Place, Settled, classes_of, complete, refuse_unfit, settle, taken_of, work_at
from indexer.coding import encode_sparse
from indexer.config import IndexConfig
from indexer.exchange.importing import take_over
from indexer.pictures import folder_labels
from indexer.ray.cluster import Machines, Stage, cluster, need_ray, run_stages
from indexer.ray.encoded import FOLDER as ENCODED
from indexer.ray.encoded import Encoded, EncodedRows, encoded_path, read_encoded
from indexer.ray.options import RayOptions
from indexer.ray.shards import SHARD, Shard, ShardMaker, read_receipt, shared_contents, write_manifest
from indexer.ray.sources import Inputs, find_inputs
from indexer.ray.stages import Code, Encode, Named, Read
from indexer.ray.tables import PARQUET
from indexer.ray.tries import forget
from indexer.residual import Quantiser, learn_quantiser, learnt_from
from indexer.store import Skip, writing
from training.encoders import Encoder, centre
from training.errors import SparsightError
from training.files import full_path, path_text, shown_path
from training.terminal import printable

FOLDER = ".shards"  # in an index's folder, while it is built
TRIES = 3  # of a slice or a shard that fails

T = TypeVar("T")


def index_on_ray(
    place: Place, root: Path, encoder: Encoder, config: IndexConfig, options: RayOptions, *, labels: bool = False
) -> Built:
    """Encodes and codes the pictures of `root` on Ray, and writes both indexes to a place.

    The index is that of `index_folder` for the same pictures: the same ids, and codes as good. Raises as that does,
    and `SparsightError` for a shard that cannot be read or made, which it names.
    """
    need_ray()
    inputs = find_inputs(root, config, options, min(config.batch_size, encoder.batch), labels=labels)
    refuse_unfit(place, config, encoder, inputs.pictures)
    _tell(f"{path_text(root)}: {inputs.told}, {inputs.pictures:,} pictures")
    work = work_at(place)
    shards = full_path(options.shards or work / FOLDER)
    with writing(work, "index"):
        _prepare(shards)
        with writing(shards, "index"):
            with cluster(options.address, gpus=options.gpus) as machines:
                encoded = _encode(shards, inputs, encoder, machines)
                added, skipped = taken_of(encoded.read, inputs.left, root)
                space = _code(shards, inputs, encoded, added, skipped, encoder, config, machines)
            _tell("writing the index ...")
            meta = take_over(place, shards)
            complete(place, space)
        if options.shards is None:
            shutil.rmtree(shards, ignore_errors=True)
    return Built(meta, skipped)


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _prepare(shards: Path) -> None:
    """Makes the folder of the shards; clears what a build that died has left half done. Raises `SparsightError` for a
    folder of other things, which a build might replace."""
    if shards.exists() and not (shards / ENCODED).is_dir() and (not shards.is_dir() or any(shards.iterdir())):
        raise SparsightError(f"{shown_path(shards)} holds other things than shards: name a new folder with --shards")
    try:
        (shards / ENCODED).mkdir(parents=True, exist_ok=True)
        for left in shards.glob(".*.part"):
            shutil.rmtree(left, ignore_errors=True)
        forget(shards)
    except OSError as e:
        raise SparsightError(f"cannot write shards to {shown_path(shards)}: {e.strerror}; name another folder") from e


def _encode(shards: Path, inputs: Inputs, encoder: Encoder, machines: Machines) -> Encoded:
    """Encodes the slices that are not encoded yet."""
    slices = [Named(part, encoded_path(shards, part, encoder)) for part in inputs.slices]
    opened = (encoder.source, encoder.fingerprint)
    stages = [Stage(Read, opened), Stage(Encode, (*opened, machines.device), machines.gpus > 0)]

    def is_made(named: Named) -> bool:
        return named.path.exists()  # they appear whole, and are read with their checksums afterwards

    for named in slices:
        if is_made(named) and read_encoded(named.path) is None:
            _tell(f"the shard {shown_path(named.path)} is damaged: it is made anew")
            named.path.unlink()

    def bundled(some: Sequence[Named]) -> list[Any]:
        """Slices of one group of rows go to one worker, which reads it once; the others go each by itself."""
        grouped = groupby(enumerate(some), lambda e: (e[1].part.file, e[1].part.group) if _is_table(e[1]) else e[0])
        return [[named for _, named in group] for _, group in grouped]

    _until_made("encode", slices, is_made, bundled, lambda named: len(named.part.paths), stages, machines)
    return Encoded.gathered([named.path for named in slices])


def _is_table(named: Named) -> bool:
    return named.part.kind == PARQUET


def _until_made(
    what: str,
    things: Sequence[T],
    is_made: Callable[[T], bool],
    bundled: Callable[[Sequence[T]], list[Any]],
    size: Callable[[T], int],
    stages: Sequence[Stage],
    machines: Machines,
) -> None:
    """Runs what is not made yet through the stages, again where some of it failed, a few times at most. Raises
    `SparsightError` with the first fault where something fails each time, and at once where nothing is made."""
    total = sum(size(thing) for thing in things)
    for attempt in range(TRIES):
        left = [thing for thing in things if not is_made(thing)]
        if not left:
            return
        faults, made = [], 0
        done = total - sum(size(thing) for thing in left)
        for told in run_stages(what, bundled(left), stages, machines, total, done):
            made += not told.fault
            if told.fault:
                faults.append(told.fault)
            if told.note:
                _tell(told.note)
        if faults and (attempt + 1 == TRIES or not made):
            raise SparsightError(faults[0])
    if any(not is_made(thing) for thing in things):
        raise SparsightError(f"some shards could not be made in {TRIES} tries: run it again, what is finished is kept")


def _code(
    shards: Path,
    inputs: Inputs,
    encoded: Encoded,
    added: Sequence[str],
    skipped: list[Skip],
    encoder: Encoder,
    config: IndexConfig,
    machines: Machines,
) -> Encoder:
    """Settles what holds for all pictures, codes them by shards, and writes the manifest; returns the encoder of the
    index's space."""
    if inputs.source.labels:
        splits, labels = folder_labels(added, inputs.source.root)
    else:
        splits, labels = [None] * len(added), [encoded.labels.get(name) for name in added]
    X = encoded.rows(added)
    source = replace(inputs.source, classes=classes_of(labels))
    settled, space = settle(X, encoder, config, source)
    shared = shared_contents(settled, _quantiser(X, settled), skipped)
    maker = ShardMaker(shards, shared, machines.device)
    parts = [
        Shard(
            number,
            start,
            X.pieces(start, start + SHARD),
            tuple(splits[start : start + SHARD]),
            tuple(labels[start : start + SHARD]),
        )
        for number, start in enumerate(range(0, len(X), SHARD))
    ]
    (shards / "meta.parquet").unlink(missing_ok=True)  # no manifest stands while shards are made

    def is_made(part: Shard) -> bool:
        held = read_receipt(shards, part.number)
        return held is not None and held.key == maker.key_of(part)

    # All go through the stage once, since a worker is to compare what is finished with its checksums.
    stage = Stage(Code, (maker,), machines.gpus > 0)
    seen: set[int] = set()

    def is_seen(part: Shard) -> bool:
        return part.number in seen and is_made(part)

    def asked(some: Sequence[Shard]) -> list[Any]:
        seen.update(part.number for part in some)
        return list(some)

    _until_made("code", parts, is_seen, asked, lambda part: part.pictures, [stage], machines)
    write_manifest(shards, shared, len(X), len(parts))
    return space


def _quantiser(X: EncodedRows, settled: Settled) -> Quantiser | None:
    """What the residuals of all pictures are coded by, learnt from the pictures that a build in one process takes."""
    meta, D = settled.meta, settled.dictionary.D
    if not meta.residual:
        return None
    sample = X.take(learnt_from(len(X)))
    if settled.means is not None:
        sample = centre(sample, settled.means.image)
    return learn_quantiser(sample, encode_sparse(sample, D, meta.coder).W, D, meta.residual)
