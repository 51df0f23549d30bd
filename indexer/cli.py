"""`sparsight index` builds both indexes; `add`, `remove` and `compact` change them in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from indexer.config import NEAR_SYNONYMS, READABLE, SAME, CoderConfig, IndexConfig
from indexer.milvus import Address, shown_place, store_option
from indexer.printing import list_items, print_added, print_built
from indexer.ray import RayOptions, ray_options
from indexer.shard_commands import index_as, like_option, split
from training.commands import Command, FilePath, Group, data_option, device_option, index_option, json_option
from training.errors import CallError, SparsightError
from training.files import shown_path
from training.terminal import printable

if TYPE_CHECKING:
    from indexer.build import Built
    from training.data.cifar10 import Pictures as Cifar10
    from training.encoders import Encoder


exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and folders of this name, or, with a slash, below the indexed folder at this path, as "
    "'*-small.jpg' or 'old/scans'; may be repeated. The index keeps it for `add`.",
)


@click.command(cls=Command)
@click.argument("path", required=False, type=FilePath())
@click.option("--labels", type=click.Choice(["folders"]), help="Take the names of PATH's folders as labels.")
@index_option
@store_option
@data_option
@click.option(
    "--encoder",
    help="`bundled`, a folder written by train, or a CLIP, SigLIP or SigLIP 2: a folder, or its name on the Hugging "
    "Face hub (openai/clip-vit-base-patch32; NAME@REVISION).  [default: for PATH a CLIP, which is downloaded once, or "
    "`bundled` where the hub cannot be reached; without PATH `bundled`]",
)
@click.option(
    "--dictionary",
    default=IndexConfig.dictionary,
    show_default=True,
    help="`terms` of the encoder's training, `nouns` (10,000 of WordNet's), `classes`, or a file, a word a line; "
    "`auto`: terms where the encoder holds some, else nouns.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    help='Prompt that holds a concept as {}, as "a photo of a {}."; may be repeated.  [default: the encoder\'s own]',
)
@click.option(
    "--l1",
    type=float,
    help="Penalty, as a fraction of each picture's λ_max: the smaller, the more concepts.  [default: "
    f"{CoderConfig.l1} where the encoder holds terms of its own, else what gives --concepts]",
)
@click.option(
    "--concepts",
    type=click.FloatRange(0, min_open=True),
    help="In place of --l1: how many concepts a picture is to have on average.  [default: "
    f"{READABLE:g} where the encoder holds no terms of its own]",
)
@click.option(
    "--merge",
    type=click.FloatRange(0, 1, min_open=True),
    help="Cosine from which two concepts of the dictionary become one, the later an alias.  [default: "
    f"{SAME}; {NEAR_SYNONYMS} where the encoder holds no terms of its own]",
)
@click.option("--absolute", is_flag=True, help="Take --l1 as λ itself.")
@click.option(
    "--refit/--no-refit",
    default=IndexConfig().coder.refit,
    show_default=True,
    help="Weigh the concepts that the penalty chose by least squares, without its shrinkage.",
)
@click.option("--dense", default=IndexConfig.dense, show_default=True, help="A FAISS index_factory description.")
@click.option(
    "--residual",
    default=IndexConfig.residual,
    metavar="FACTORY",
    help="Keep beside the concepts what they leave of an embedding, as a FAISS product quantiser: PQ16, or "
    "OPQ24_240,PQ24 (24 bytes a picture). Mode sparse then finds nearly what dense does.",
)
@click.option(
    "--no-vectors",
    is_flag=True,
    help="Keep no exact embeddings: a small index, which answers in mode sparse alone.",
)
@exclude_option
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=IndexConfig.recall,
    show_default=True,
    help="The share of the best hits that another --dense index than Flat is to find.",
)
@click.option("--bundled", is_flag=True, help="Index the bundled embeddings of the 10,000 test pictures.")
@like_option
@ray_options
@device_option
@click.pass_context
def index(
    ctx: click.Context,
    path: Path | None,
    labels: str | None,
    index_dir: Path | Address,
    data_dir: Path,
    encoder: str | None,
    dictionary: str,
    templates: tuple[str, ...],
    l1: float | None,
    concepts: float | None,
    merge: float | None,
    absolute: bool,
    refit: bool,
    dense: str,
    residual: str,
    no_vectors: bool,
    exclude: tuple[str, ...],
    recall: float,
    bundled: bool,
    like: Path | None,
    on_ray: RayOptions | None,
    device: str,
) -> None:
    """Encodes the pictures below the folder PATH (without it: CIFAR-10) and builds both indexes.

    An earlier index is replaced when the new one is whole; a stopped build goes on where it ended. Taken are JPEG, PNG,
    WebP, GIF, BMP, TIFF and AVIF files at any depth, and HEIC with the extra `heic`. Passed over are hidden ones, and
    the folders in which systems and photo programs keep thumbnails, caches and deleted files. What cannot be read, and
    what has the content of another, is skipped and listed.
    """
    _refuse_senseless(path, bundled, labels, exclude, l1, concepts, absolute, templates)
    if isinstance(index_dir, Address) and like:
        raise CallError("--like builds index folders: leave out --store")
    if like is not None:
        return print_added(index_dir, index_as(ctx, like), False, "added")
    if no_vectors and dense != IndexConfig.dense:
        raise CallError("--dense is an index of the embeddings, which --no-vectors leaves out: give one of them")
    from indexer.coding import concepts_of
    from indexer.pictures import check_patterns, max_pixels
    from training.device import pick_device
    from training.encoders import open_encoder, open_for_photographs

    patterns, chosen = check_patterns(exclude), pick_device(device)
    max_pixels()  # a fault in its variable is told before any work
    tell = partial(click.echo, err=True)
    loaded = open_for_photographs(chosen, tell) if path and not encoder else open_encoder(encoder or "bundled", chosen)
    coder = CoderConfig(l1=l1 or CoderConfig.l1, relative=not absolute, refit=refit)
    concepts = concepts or (None if l1 or loaded.concepts else READABLE)
    merge = merge or (SAME if loaded.concepts else NEAR_SYNONYMS)
    config = IndexConfig(dictionary, templates or None, patterns, dense, recall, concepts, merge, coder)
    config = replace(config, residual=residual, vectors=not no_vectors)
    tell(f"encoder {loaded.name} on {chosen}, index {shown_place(index_dir)}")
    concepts_of(dictionary, loaded, note=tell)  # faults before the work, not after
    if path is not None:
        built = _build_path(index_dir, path, loaded, config, on_ray, labels=labels is not None)
        return print_built(index_dir, built)
    print_built(index_dir, _build_cifar10(index_dir, None if bundled else data_dir, loaded, config))


def _build_cifar10(index_dir: Path | Address, data_dir: Path | None, encoder: Encoder, config: IndexConfig) -> Built:
    """data_dir: None for the bundled embeddings."""
    from indexer.build import index_bundled, index_pictures
    from training.encoders import load_test_embeddings

    pictures = None if data_dir is None else _cifar10(data_dir, encoder)
    if pictures is None:
        return index_bundled(index_dir, load_test_embeddings(encoder), encoder, config)
    return index_pictures(index_dir, pictures, encoder, config)


def _build_path(
    index_dir: Path | Address,
    path: Path,
    encoder: Encoder,
    config: IndexConfig,
    on_ray: RayOptions | None,
    *,
    labels: bool,
) -> Built:
    if on_ray is not None:
        from indexer.ray.run import index_on_ray

        return index_on_ray(index_dir, path, encoder, config, on_ray, labels=labels)
    from indexer.build import index_folder

    return index_folder(index_dir, path, encoder, config, labels=labels)


def _cifar10(data_dir: Path, encoder: Encoder) -> Cifar10 | None:
    """CIFAR-10's pictures; None, and a word of it, where they are not there but the encoder brings embeddings."""
    from training.data.cifar10 import MissingDataError, load_cifar10
    from training.encoders import has_test_embeddings

    try:
        return load_cifar10(data_dir)
    except MissingDataError as e:
        if not has_test_embeddings(encoder):
            raise
        click.echo(
            f"{e}.\nIndexing the bundled embeddings of the 10,000 test pictures instead (no thumbnails).", err=True
        )
        return None


def _refuse_senseless(
    path: Path | None,
    bundled: bool,
    labels: str | None,
    exclude: Sequence[str],
    l1: float | None,
    concepts: float | None,
    absolute: bool,
    templates: Sequence[str],
) -> None:
    """Raises `CallError` for options that make no sense together."""
    if path is None and exclude:
        raise CallError("--exclude needs a PATH, a folder of pictures")
    if path is None and labels:
        raise CallError("--labels needs a PATH, a folder of pictures")
    if path is not None and bundled:
        raise CallError("index a PATH or the --bundled embeddings, not both")
    if l1 is not None and concepts is not None:
        raise CallError("--l1 and --concepts both set the penalty: give one of them")
    if absolute and l1 is None and concepts is None:
        raise CallError("--absolute needs --l1 or --concepts")
    if l1 is not None and not 0 < l1 < (float("inf") if absolute else 1):
        raise CallError(f"--l1 {l1}: it must be above 0" + ("" if absolute else " and below 1, or give --absolute"))
    for template in templates:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise CallError(f"--template {template!r}: it must hold the concept's place, {{}}, once")


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True, type=FilePath())
@click.option("--dry-run", is_flag=True, help="Say what would be added, and change nothing.")
@click.option("--verify", is_flag=True, help="Read every file, also those of the size and time that the index knows.")
@exclude_option
@index_option
@store_option
@click.option("--encoder", default=None, help="The index's encoder, where it lies elsewhere now.")
@json_option
@device_option
def add(
    paths: tuple[Path, ...],
    dry_run: bool,
    verify: bool,
    exclude: tuple[str, ...],
    index_dir: Path | Address,
    encoder: str | None,
    as_json: bool,
    device: str,
) -> None:
    """Adds new and changed pictures to an index: files, and those below folders.

    Pictures are told apart by their content: one that the index holds is not taken twice, a changed file's picture is
    replaced, a moved file's keeps its id. --json prints a line for each path that is not unchanged. A stopped
    addition goes on where it ended.
    """
    from indexer.pictures import check_patterns
    from indexer.update import add_pictures, opened, plan_add

    patterns = check_patterns(exclude)
    if dry_run:
        print_added(index_dir, plan_add(index_dir, paths, verify=verify, exclude=patterns), as_json, "would be added")
        return
    from training.encoders import open_encoder

    with opened(index_dir) as held:
        source = encoder or held.meta.encoder_source
    done = add_pictures(index_dir, paths, open_encoder(source, device), verify=verify, exclude=patterns)
    print_added(index_dir, done, as_json, "added")


@click.command(cls=Command)
@click.argument("targets", nargs=-1)
@click.option("--missing", is_flag=True, help="Remove the pictures whose files are gone.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and change nothing.")
@click.option("--yes", is_flag=True, help="With --missing: also where a whole folder, or more than a tenth, is gone.")
@index_option
@store_option
@json_option
def remove(
    targets: tuple[str, ...], missing: bool, dry_run: bool, yes: bool, index_dir: Path | Address, as_json: bool
) -> None:
    """Removes pictures from an index (never their files): by id, by path, or all below a folder."""
    if not targets and not missing:
        raise CallError("name what is to be removed: ids, paths, folders, or --missing")
    from indexer.update import plan_removal, remove_pictures

    if dry_run:
        removed = plan_removal(index_dir, targets, missing=missing)
    else:
        removed = remove_pictures(index_dir, targets, missing=missing, sure=yes)
    verb = "would be removed" if dry_run else "removed"
    if as_json:
        for image_id, path in removed:
            click.echo(json.dumps({"path": path, "status": verb, "id": image_id}))
        return
    list_items(verb, [(path, f"id {image_id}") for image_id, path in removed])
    click.echo(f"{shown_place(index_dir)}: {len(removed)} {verb}")


@click.command(cls=Command)
@index_option
def compact(index_dir: Path) -> None:
    """Gives back the room that removed pictures take; `add` and `remove` do it themselves where it pays."""
    from indexer.update import compact

    before, now = compact(index_dir)
    click.echo(f"{shown_path(index_dir)}: {before:,} bytes before, {now:,} now")


@click.command(cls=Command)
@click.option("--repair", is_flag=True, help="Make good what can be derived from the vectors and the dictionary.")
@index_option
@json_option
def doctor(repair: bool, index_dir: Path, as_json: bool) -> None:
    """Checks all of an index: its files, tables, counts, vectors, postings and codes; exits 1 where there is a fault.

    --repair builds the dense index, the postings and the counts anew, and removes what is half or of no picture. The
    database that it replaces is kept beside the new one.
    """
    from indexer.store.database import refuse_unreadable_path
    from indexer.store.doctor import examine
    from indexer.store.repair import repair as mend

    refuse_unreadable_path(index_dir)
    if repair:
        for line in mend(index_dir):
            click.echo(line, err=True)
    findings = examine(index_dir)
    for f in findings:
        if as_json:
            click.echo(json.dumps({"check": f.check, "status": f.status, "message": f.message, "hint": f.hint}))
        else:
            hint = f"; {f.hint}" if f.hint else ""
            click.echo(f"{f.status:<6} {f.check:<11} {printable(f.message)}{hint}")
    if faults := [f for f in findings if f.status == "fault"]:
        checks = ", ".join(dict.fromkeys(f.check for f in faults))
        raise SparsightError(f"{shown_path(index_dir)}: {len(faults)} faults ({checks}); {faults[0].hint}")


@click.group(cls=Group)
def builds() -> None:
    """Builds an index, and changes it in place."""


for command in (index, add, remove, compact, doctor, split):
    builds.add_command(command)
