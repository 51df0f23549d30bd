"""The command line's common parts, and `sparsight train`.

Heavy libraries are imported inside the commands: `--help` must answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from training.config import DistilConfig, EncoderConfig, TrainConfig
from training.errors import CallError, SparsightError
from training.terminal import printable

index_option = click.option(
    "--index",
    "index_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="index",
    envvar="SPARSIGHT_INDEX",
    show_default=True,
    show_envvar=True,
    help="Folder of the index.",
)
data_option = click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="data",
    envvar="SPARSIGHT_DATA",
    show_default=True,
    show_envvar=True,
    help="Folder that holds (or will hold) cifar-10-batches-py.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where torch computes.",
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
k_option = click.option("-k", type=int, default=10, show_default=True, help="How many to return.")


@contextmanager
def noted_signals() -> Iterator[list[signal.Signals]]:
    """The signals that have asked this process to end, in their order; each also raises `KeyboardInterrupt`.

    SIGTERM is taken like Ctrl-C, so that it, too, leaves nothing half done. Libraries turn an interrupt into faults of
    their own, so a command that ends by any fault after a signal was interrupted.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: object) -> NoReturn:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    ending = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, note) for s in ending}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(number: signal.Signals) -> tuple[str, int]:
    """What is said of a command that a signal ended, and its exit code: as a shell gives it, 130 for Ctrl-C."""
    return "interrupted" if number == signal.SIGINT else "terminated", 128 + number


class _OneLineErrors(click.Command):
    """Every fault is one line on stderr, with its exit code: 1, 2, or 130 when interrupted; never a traceback."""

    def main(self, args=None, prog_name=None, complete_var=None, standalone_mode=True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        with noted_signals() as received:
            try:
                code = super().main(args, prog_name, complete_var, False, **extra)
                sys.stdout.flush()
                sys.exit(code if isinstance(code, int) else 0)
            except BrokenPipeError:  # the reader, `head` say, has what it wanted
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(0)
            except (Exception, KeyboardInterrupt) as e:
                if received:  # whatever a library has made of it
                    self._fail(*_interrupted(received[0]))
                self._tell(e)

    def _tell(self, e: BaseException) -> NoReturn:
        """One line for a fault that a person can mend; a bug is raised again."""
        if isinstance(e, SparsightError):
            self._fail(str(e), e.exit_code)
        if isinstance(e, click.UsageError):
            command = e.ctx.command_path if e.ctx else "sparsight"
            self._fail(f"{e.format_message()} (see {command} --help)", 2)
        if isinstance(e, click.ClickException):
            self._fail(e.format_message(), e.exit_code)
        if isinstance(e, click.Abort | KeyboardInterrupt):
            self._fail(*_interrupted(signal.SIGINT))
        if isinstance(e, OSError):  # of a path that no command had reason to look at closer
            self._fail(f"{e.strerror or e}: {e.filename}" if e.filename else str(e), 1)
        if isinstance(e, MemoryError):
            self._fail("out of memory", 1)
        raise e

    def _fail(self, message: str, code: int) -> NoReturn:
        click.echo("Error: " + printable(" ".join(message.split())), err=True)
        sys.exit(code)


class Command(_OneLineErrors):
    """A click command with one-line errors."""


class Group(_OneLineErrors, click.Group):
    """A click group with one-line errors."""

    command_class = Command


@click.command(cls=Command)
@data_option
@click.option("--out", type=click.Path(path_type=Path), default="runs/encoder", show_default=True, help="Run folder.")
@click.option("--image-tower", default=EncoderConfig.image_tower, show_default=True, help="Any timm model name.")
@click.option("--pretrained", is_flag=True, help="Start the image tower from timm's weights.")
@click.option(
    "--sizes",
    default=",".join(f"{side}x{epochs}" for side, epochs in TrainConfig.sizes),
    show_default=True,
    help="Pixels a side and epochs, one stage after another; 0 epochs leave an encoder of --from as it is.",
)
@click.option("--batch-size", type=click.IntRange(2), default=TrainConfig.batch_size, show_default=True)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=TrainConfig.lr,
    show_default=True,
    help="Peak rate of Muon, for the convolutions.",
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
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Encoder folder of an earlier stage, to begin with its weights.",
)
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto", show_default=True)
@click.option(
    "--teacher",
    default=None,
    help="A sentence encoder (hub id or folder), to teach the text tower a broad vocabulary once both are trained.",
)
@click.option(
    "--teacher-epochs",
    type=click.IntRange(1),
    default=DistilConfig.epochs,
    show_default=True,
    help="Epochs of what the teacher teaches; a tower that was taught before goes on.",
)
@click.option("--limit", type=click.IntRange(2), default=None, help="Train on the first N pictures only.")
@device_option
@seed_option
def train(
    data_dir: Path,
    out: Path,
    image_tower: str,
    pretrained: bool,
    sizes: str,
    batch_size: int,
    lr: float,
    shift: int,
    cutout: int,
    degrade: float,
    start: Path | None,
    precision: str,
    teacher: str | None,
    teacher_epochs: int,
    limit: int | None,
    device: str,
    seed: int,
) -> None:
    """Trains an encoder on CIFAR-10's captions; a stopped run goes on where it ended."""
    from training.data.cifar10 import load_cifar10
    from training.device import pick_device
    from training.loop import train as run_training

    shifted = image_tower.startswith(
        "conv32"
    )  # a pixel is much to its pooling, and nothing to towers for large pictures
    encoder = EncoderConfig(name=f"{image_tower}-cifar10", image_tower=image_tower, shift_average=shifted)
    config = TrainConfig(
        encoder=encoder,
        pretrained=pretrained,
        seed=seed,
        batch_size=batch_size,
        lr=lr,
        shift=shift,
        cutout=cutout,
        degrade=degrade,
        sizes=parse_sizes(sizes),
    )
    if not config.epochs and start is None:
        raise CallError(f"--sizes {sizes}: no epochs, and no encoder to leave as it is; name one by --from")
    chosen = pick_device(device)
    pictures = load_cifar10(data_dir, ("train",))
    if limit:
        pictures = pictures.first(limit)
    bf16 = {"auto": None, "bf16": True, "fp32": False}[precision]
    click.echo(f"training {image_tower} on {len(pictures)} pictures, on {chosen}, into {out}", err=True)
    held_out = load_cifar10(data_dir, ("test",))
    run_training(
        pictures,
        config,
        out,
        device=chosen,
        bf16=bf16,
        held_out=held_out,
        teacher=teacher,
        distil=DistilConfig(seed=seed, epochs=teacher_epochs),
        start=start,
    )
    click.echo(str(out))


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "24x5,32x4" → ((24, 5), (32, 4)): pixels a side, epochs."""
    try:
        sizes = tuple((int(a), int(b)) for a, b in (part.split("x") for part in text.split(",")))
    except ValueError as e:
        raise CallError(f'--sizes {text!r}: expected pixels and epochs, as "24x5,32x4"') from e
    if any(side < 8 or epochs < 0 for side, epochs in sizes):
        raise CallError(f"--sizes {text!r}: at least 8 pixels a side and 0 epochs")
    return sizes
