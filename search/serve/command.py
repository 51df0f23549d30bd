"""`sparsight serve`."""

from __future__ import annotations

import re
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from indexer.milvus import Address, store_option
from training.commands import Command, FilePath, device_option, shards_option
from training.errors import CallError, SparsightError
from training.signals import handle

if TYPE_CHECKING:
    from search.serve.guard import App, Door

PORT = 8321
TOKEN = re.compile(r"[A-Za-z0-9_-]{8,}")


@click.command(cls=Command)
@shards_option
@store_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Port to listen at; 0: a free one."
)
@click.option("--open/--no-open", "opens", default=False, show_default=True, help="Open the page in a browser.")
@click.option(
    "--token",
    envvar="SPARSIGHT_TOKEN",
    show_envvar=True,
    help="Ask every visitor for this token.  [default: none on this machine's own address; elsewhere one is made]",
)
@click.option(
    "--report",
    type=FilePath(file_okay=False),
    default="report",
    show_default=True,
    help="Folder of the report of `sparsight eval`, which the page shows.",
)
@click.option("--encoder", help="Encoder: folder or hub name.  [default: the index's own]")
@device_option
def serve(
    index_dirs: tuple[Path, ...] | Address,
    host: str,
    port: int,
    opens: bool,
    token: str | None,
    report: Path,
    encoder: str | None,
    device: str,
) -> None:
    """Serves a page to search and look at an index, and a REST interface below it."""
    from search.serve.guard import LOOPBACK, Door

    if token is not None and not TOKEN.fullmatch(token):
        raise CallError("--token: give at least 8 letters, digits, - or _")
    if token is None and host not in LOOPBACK:
        token = secrets.token_urlsafe(16)
    from search.serve.app import application
    from search.serve.asking import Serving
    from search.serve.holder import Holder, Opening

    holder = Holder(Opening(index_dirs, encoder, device))
    try:
        with _listening(host, port) as listener:
            door = Door(host, listener.getsockname()[1], token)
            _run(application(Serving(holder, report), door), listener, door, holder.warm, opens)
    finally:
        holder.close()
    click.echo("stopped", err=True)
    holder.leave()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; raises `SparsightError` where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=256)
    except (OSError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise SparsightError(f"cannot listen at {host} port {port}: {reason}; choose another --host or --port") from e
    with listener:
        yield listener


def _run(app: App, listener: socket.socket, door: Door, warm: object, opens: bool) -> None:
    """Serves until a signal asks to end; what is being answered then is answered still."""
    import uvicorn

    from indexer.pictures.files import quiet_pillow

    class Server(uvicorn.Server):
        """Ends at a signal as this program does: uvicorn would raise it again, as an interruption."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = handle(self.handle_exit)
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.should_exit = True  # a second signal changes nothing: the end takes three seconds at the most

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            click.echo(f"sparsight is at {door.address} (Ctrl-C stops it)", err=True)
            if callable(warm):
                warm()
            if opens:
                import webbrowser

                webbrowser.open(door.address)

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=3,
    )
    with quiet_pillow():
        Server(config).run([listener])
