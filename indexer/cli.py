"""`sparsight index`: builds both indexes."""

from __future__ import annotations

from pathlib import Path

import click

from indexer.config import CoderConfig, IndexConfig
from training.cli import Command, data_option, device_option, index_option
from training.errors import CallError


@click.command(cls=Command)
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
    help="`terms`, `classes`, or a file, a word a line; `auto`: terms where the encoder holds some, else classes.",
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
    """Encodes CIFAR-10 and builds both indexes; an earlier index is replaced when the new one is whole."""
    if not 0 < l1 < (float("inf") if absolute else 1):
        raise CallError(f"--l1 {l1}: it must be above 0" + ("" if absolute else " and below 1, or give --absolute"))
    for template in templates:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise CallError(f"--template {template!r}: it must hold the concept's place, {{}}, once")
    from indexer.build import index_bundled, index_pictures
    from training.cifar10 import MissingDataError, load_cifar10
    from training.device import pick_device
    from training.encoder import load_encoder, load_test_embeddings
    from training.hub import HubEncoder

    chosen = pick_device(device)
    loaded = load_encoder(encoder, chosen)
    coder = CoderConfig(l1=l1, relative=not absolute)
    config = IndexConfig(dictionary=dictionary, templates=templates or None, dense=dense, coder=coder)
    click.echo(f"encoder {loaded.name} on {chosen}, index {index_dir}", err=True)
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
    click.echo(
        f"{index_dir}: {meta['n']} pictures, {meta['m']} concepts, {meta['nnz_mean']:.2f} concepts a picture "
        f"({meta['embedded']})"
    )
