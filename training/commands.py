"""What all commands of the command line share: their options, their signals, and faults told in one line.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from training.errors import SparsightError, TextWarning
from training.files import full_path
from training.signals import end_by_signal, noted_signals
from training.streams import ReaderGone
from training.terminal import printable

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path option or argument, as `training.files.full_path` makes it: a Path, absolute, `~` expanded."""

    def __init__(self, **kwargs: Any):
        super().__init__(path_type=Path, **kwargs)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)  # else it would be the working folder
        return super().convert(full_path(value), param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """A variable names one path, whatever characters it has."""
        return [rv]


LONGEST = 1000  # characters of an error's line


def _only(ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]) -> Path:
    """The one index; click itself would take the last of several without a word."""
    if len(value) > 1:
        raise click.BadParameter(f"{ctx.info_name} takes one index: name the shard that it is for", ctx, param)
    return value[0]


def _index_option(
    name: str, said: str, callback: Callable[[click.Context, click.Parameter, Any], Any] | None = None
) -> Callable[[Decorated], Decorated]:
    return click.option(
        "--index",
        name,
        type=FilePath(file_okay=False),
        multiple=True,
        default=["index"],
        envvar="SPARSIGHT_INDEX",
        show_default=True,
        show_envvar=True,
        callback=callback,
        help=said,
    )


index_option = _index_option("index_dir", "Folder of the index.", _only)
shards_option = _index_option(
    "index_dirs", "Folder of the index, or of its shards; may be repeated: several are searched as one."
)
data_option = click.option(
    "--data",
    "data_dir",
    type=FilePath(file_okay=False),
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
def _without_empty_line() -> Iterator[None]:
    """Click itself prints an empty line at an interrupt."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise click.Abort from e


class _OneLineErrors(click.Command):
    """A command whose errors are one line on stderr each, with exit code 1, 2, 130 or 143; never a traceback."""

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        with _without_empty_line():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _without_empty_line():
            return super().invoke(ctx)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        received: list[signal.Signals] = []
        try:
            with noted_signals(received), told_warnings():
                code = super().main(args, prog_name, complete_var, False, **extra)
                sys.stdout.flush()
                sys.exit(code if isinstance(code, int) else 0)
        except ReaderGone:
            sys.exit(0)
        except (Exception, KeyboardInterrupt) as e:
            if received:  # whatever error a library made of it
                end_by_signal(received[0])
            _tell(e)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Tells how a text tower reads a text otherwise than its writer may think, as a note of one line on stderr."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, TextWarning):
                click.echo(f"note: {printable(str(message))}", err=True)
            else:
                show(message, category, *where, **more)

        warnings.simplefilter("always", TextWarning)
        warnings.showwarning = tell
        yield


def _tell(e: BaseException) -> NoReturn:
    """Ends the command with one line for an error that a person can mend; a bug is raised again."""
    if isinstance(e, SparsightError):
        _fail(str(e), e.exit_code)
    if isinstance(e, click.UsageError):
        command = e.ctx.command_path if e.ctx else "sparsight"
        _fail(f"{e.format_message()} (see {command} --help)", 2)
    if isinstance(e, click.ClickException):
        _fail(e.format_message(), e.exit_code)
    if isinstance(e, click.Abort | KeyboardInterrupt):
        end_by_signal(signal.SIGINT)
    if isinstance(e, OSError):  # about a path that the command did not check itself
        _fail(f"{e.strerror or e}: {e.filename}" if e.filename else str(e), 1)
    if isinstance(e, MemoryError):
        _fail("out of memory", 1)
    raise e


def _fail(message: str, code: int) -> NoReturn:
    line = printable(" ".join(message.split()))
    if len(line) > LONGEST:  # as of a whole file that was pasted for a name
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    click.echo("Error: " + line, err=True)
    sys.exit(code)


class Command(_OneLineErrors):
    """A click command with one-line errors."""


class Group(_OneLineErrors, click.Group):
    """A click group with one-line errors."""

    command_class = Command


class LazyGroup(Group):
    """A group that imports a command when it is called or asked for its own help, not to list it.

    lazy: by name, the module and the attribute that is the command, and what the list of commands says of it.
    """

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str, str]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return None
        module, attribute, _ = self.lazy[name]
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, _, said) in self.lazy.items()])
