"""`sparsight train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from training.commands import Command, FilePath, data_option, device_option, seed_option
from training.config import SURE_FROM, DistilConfig, EncoderConfig, Teaching, TrainConfig
from training.errors import CallError
from training.files import shown_path


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Reads the stages of image sizes: "24x5,32x4" → ((24, 5), (32, 4)), pixels a side and epochs.

    Raises `CallError` for anything else, for fewer than 8 pixels and for a negative number of epochs.
    """
    try:
        sizes = tuple((int(side), int(epochs)) for side, epochs in (part.split("x") for part in text.split(",")))
    except ValueError as e:
        raise CallError(f'--sizes {text!r}: expected pixels and epochs, as "24x5,32x4"') from e
    if any(side < 8 or epochs < 0 for side, epochs in sizes):
        raise CallError(f"--sizes {text!r}: at least 8 pixels a side and 0 epochs")
    return sizes


# Options that have the name of a setting of `TrainConfig` go into it as they are.
@click.command(cls=Command)
@data_option
@click.option("--out", type=FilePath(), default="runs/encoder", show_default=True, help="Run folder.")
@click.option("--image-tower", default=EncoderConfig.image_tower, show_default=True, help="Any timm model name.")
@click.option("--pretrained", is_flag=True, help="Start the image tower from timm's weights.")
@click.option(
    "--sizes",
    default=",".join(f"{side}x{epochs}" for side, epochs in TrainConfig.sizes),
    show_default=True,
    callback=lambda context, option, text: parse_sizes(text),
    help="Pixels a side and epochs, one size after another; 0 epochs leave an encoder of --from as it is.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(2),
    default=TrainConfig.batch_size,
    show_default=True,
    help="Pictures in one step.",
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=TrainConfig.lr,
    show_default=True,
    help="Peak learning rate of Muon, for the convolutions.",
)
@click.option(
    "--shift", type=click.IntRange(0, 16), default=TrainConfig.shift, show_default=True, help="Largest shift, pixels."
)
@click.option(
    "--cutout",
    type=click.IntRange(0, 31),
    default=TrainConfig.cutout,
    show_default=True,
    help="Side of the square hidden in each picture, pixels.",
)
@click.option(
    "--degrade",
    type=click.FloatRange(0, 1),
    default=TrainConfig.degrade,
    show_default=True,
    help="Share of the pictures made noisy, blurred or faint.",
)
@click.option(
    "--from",
    "start",
    type=FilePath(file_okay=False),
    default=None,
    help="Encoder folder of an earlier stage, to begin with its weights.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="Of the towers' arithmetic; auto takes bfloat16 where the hardware has it.",
)
@click.option(
    "--teacher",
    default=None,
    help="A sentence encoder (hub id or folder), to teach the text tower a broad vocabulary once both are trained.",
)
@click.option(
    "--teacher-epochs",
    type=click.IntRange(0),
    default=DistilConfig.epochs,
    show_default=True,
    help="Epochs of what the teacher teaches; a tower that was taught before goes on, and stays as it is with 0.",
)
@click.option(
    "--wordnet",
    type=FilePath(file_okay=False),
    default=None,
    help="WordNet's files, as /usr/share/wordnet: the words that a taught tower misplaces become tokens of their own.",
)
@click.option("--limit", type=click.IntRange(2), default=None, help="Train on the first N pictures only.")
@device_option
@seed_option
def train(
    data_dir: Path,
    out: Path,
    image_tower: str,
    start: Path | None,
    precision: str,
    teacher: str | None,
    teacher_epochs: int,
    wordnet: Path | None,
    limit: int | None,
    device: str,
    **settings: Any,
) -> None:
    """Trains an encoder on CIFAR-10's captions; a stopped run goes on where it ended."""
    from training.data.cifar10 import load_cifar10
    from training.device import pick_device
    from training.loop import train as run_training

    # The mean over shifted views helps a tower for small pictures; towers for large ones hardly see a pixel's shift.
    shifts = image_tower.startswith("conv32")
    encoder = EncoderConfig(
        name=f"{image_tower}-cifar10",
        image_tower=image_tower,
        shift_average=shifts,
        sure_from=SURE_FROM if shifts else 0.0,
    )
    config = TrainConfig(encoder=encoder, **settings)
    if not config.epochs and start is None:
        raise CallError("--sizes: no epochs, and no encoder to leave as it is; name one by --from")
    if wordnet is not None and teacher is None:
        raise CallError("--wordnet needs a --teacher, who knows what the tree does not")
    chosen = pick_device(device)
    pictures = load_cifar10(data_dir, ("train",))
    if limit:
        pictures = pictures.first(limit)
    click.echo(f"training {image_tower} on {len(pictures)} pictures, on {chosen}, into {shown_path(out)}", err=True)
    run_training(
        pictures,
        config,
        out,
        device=chosen,
        bf16={"auto": None, "bf16": True, "fp32": False}[precision],
        start=start,
        teaching=Teaching(teacher, DistilConfig(seed=config.seed, epochs=teacher_epochs), wordnet) if teacher else None,
        held_out=load_cifar10(data_dir, ("test",)),
    )
    click.echo(str(out))
