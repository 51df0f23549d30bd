"""`sparsight index`: builds both indexes."""

from __future__ import annotations

from pathlib import Path

import click

from indexer.config import CoderConfig, IndexConfig
from training.cli import Command, data_option, device_option, index_option
from training.errors import CallError
from training.files import printable


@click.command(cls=Command)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--labels", type=click.Choice(["folders"]), help="Take the names of PATH's folders as labels.")
@index_option
@data_option
@click.option(
    "--encoder",
    default="bundled",
    show_default=True,
    help="`bundled`, a folder written by train, or a CLIP, SigLIP or SigLIP 2: a folder, or its name on the Hugging "
    "Face hub (openai/clip-vit-base-patch32; NAME@REVISION).",
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
    default=CoderConfig.l1,
    show_default=True,
    help="Penalty, as a fraction of each picture's λ_max: the smaller, the more concepts.",
)
@click.option("--absolute", is_flag=True, help="Take --l1 as λ itself.")
@click.option("--dense", default=IndexConfig.dense, show_default=True, help="A FAISS index_factory description.")
@click.option("--bundled", is_flag=True, help="Index the bundled embeddings of the 10,000 test pictures.")
@device_option
def index(
    path: Path | None,
    labels: str | None,
    index_dir: Path,
    data_dir: Path,
    encoder: str,
    dictionary: str,
    templates: tuple[str, ...],
    l1: float,
    absolute: bool,
    dense: str,
    bundled: bool,
    device: str,
) -> None:
    """Encodes the pictures below the folder PATH (without it: CIFAR-10) and builds both indexes.

    An earlier index is replaced when the new one is whole. Taken are JPEG, PNG, WebP, GIF and BMP files at any
    depth; hidden ones are passed over, those that cannot be read are skipped and listed.
    """
    if path is None and labels:
        raise CallError("--labels needs a PATH, a folder of pictures")
    if path is not None and bundled:
        raise CallError("index a PATH or the --bundled embeddings, not both")
    if not 0 < l1 < (float("inf") if absolute else 1):
        raise CallError(f"--l1 {l1}: it must be above 0" + ("" if absolute else " and below 1, or give --absolute"))
    for template in templates:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise CallError(f"--template {template!r}: it must hold the concept's place, {{}}, once")
    from indexer.build import index_bundled, index_folder, index_pictures
    from indexer.dictionary import concepts_of
    from training.cifar10 import MissingDataError, load_cifar10
    from training.device import pick_device
    from training.encoder import load_encoder, load_test_embeddings
    from training.hub import HubEncoder

    chosen = pick_device(device)
    loaded = load_encoder(encoder, chosen)
    coder = CoderConfig(l1=l1, relative=not absolute)
    config = IndexConfig(dictionary=dictionary, templates=templates or None, dense=dense, coder=coder)
    click.echo(f"encoder {loaded.name} on {chosen}, index {index_dir}", err=True)
    concepts_of(dictionary, loaded, note=lambda text: click.echo(text, err=True))  # faults before the work, not after
    if path is not None:
        _report(index_dir, index_folder(index_dir, path, loaded, config, labels=labels is not None))
        return
    try:
        pictures = None if bundled else load_cifar10(data_dir)
    except MissingDataError as e:
        if isinstance(loaded, HubEncoder):  # no embeddings of pictures come with it
            raise
        click.echo(
            f"{e}.\nIndexing the bundled embeddings of the 10,000 test pictures instead (no thumbnails).", err=True
        )
        pictures = None
    if pictures is None:
        meta = index_bundled(index_dir, load_test_embeddings(loaded), loaded, config)
    else:
        meta = index_pictures(index_dir, pictures, loaded, config)
    _report(index_dir, meta)


def _report(index_dir: Path, meta: dict, shown: int = 5) -> None:
    from indexer.store import DATABASE

    skipped = meta.get("skipped", [])
    if skipped:
        click.echo(f"skipped {len(skipped)}, listed in table `skipped` of {index_dir / DATABASE}:", err=True)
        for path, reason in skipped[:shown]:
            click.echo(f"  {printable(path)}: {printable(reason)}", err=True)
        if len(skipped) > shown:
            click.echo(f"  ... and {len(skipped) - shown} more", err=True)
    click.echo(
        f"{index_dir}: {meta['n']} pictures, {meta['m']} concepts, {meta['nnz_mean']:.2f} concepts a picture "
        f"({meta['embedded']})"
    )
