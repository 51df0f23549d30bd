"""A connection to a Milvus server, or to a folder through milvus-lite, whose faults are told in one line.

Every call goes through `Server.ask`. A server that does not answer is asked again a few times, each time after a longer
pause; everything that is written is written under ids of our own, so to ask twice does no harm. A server that answers
with a fault is not asked again.
"""

from __future__ import annotations

import logging
import os
import time
from threading import Lock
from typing import Any

from indexer.milvus.address import Address
from training.errors import SparsightError
from training.files import shown_path

TOKEN = "SPARSIGHT_MILVUS_TOKEN"
PAUSES = (0.5, 1.0, 2.0)  # seconds before a server that does not answer is asked again
TIMEOUT = 60.0  # seconds that one call may take
GONE = (2, 14, 1009)  # codes of pymilvus and gRPC where nobody answers
MARKS = {"LOCK", "collections", "databases"}  # what milvus-lite makes in its folder; it would do so in any
INSTALL = "milvus needs an extra that is not installed: pip install 'sparsight[milvus]'"

_open: dict[str, int] = {}  # folders that this process has open with milvus-lite, and how often
_lock = Lock()


class Server:
    """An open connection. new: whether a folder may be made. Raises `SparsightError` where nobody answers, where the
    extra is missing, and where another process has the folder open."""

    def __init__(self, address: Address, *, new: bool = False):
        self.address = address
        self._folder: str | None = None
        try:
            import pymilvus
        except ImportError as e:
            raise SparsightError(INSTALL) from e
        _quiet("pymilvus")
        uri = address.uri if address.folder is None else self._lite(new)
        connect = lambda: pymilvus.MilvusClient(uri, token=os.environ.get(TOKEN, ""), timeout=10)  # noqa: E731
        try:
            self.client = self._asked("connect", connect)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the connection; the last one of a folder gives it back to other processes."""
        if (client := self.__dict__.pop("client", None)) is not None:
            client.close()
        if self._folder is None:
            return
        from milvus_lite.server_manager import server_manager_instance

        with _lock:
            _open[self._folder] -= 1
            if not _open[self._folder]:
                server_manager_instance.release_server(self._folder)
        self._folder = None

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What the server answers to a call of pymilvus's client."""
        call = getattr(self.client, method)
        return self._asked(method, lambda: call(*arguments, timeout=TIMEOUT, **options))

    def _asked(self, what: str, call: Any) -> Any:
        import grpc
        from pymilvus.exceptions import MilvusException

        for pause in (*PAUSES, None):
            try:
                return call()
            except (MilvusException, grpc.RpcError, ValueError) as e:
                code = getattr(e, "code", None)
                code = code() if callable(code) else code
                is_gone = code in GONE or isinstance(code, grpc.StatusCode) or "closed channel" in str(e)
                if not is_gone:
                    if isinstance(e, ValueError):
                        raise
                    raise SparsightError(f"{self.address.server} refuses to {what}: {_reason(e)}") from e
                if pause is None:
                    raise SparsightError(
                        f"the Milvus server {self.address.server} does not answer (asked {len(PAUSES) + 1} times): "
                        "start it, and run the same command again, which completes what was begun"
                    ) from e
                time.sleep(pause)
        raise AssertionError

    def _lite(self, new: bool) -> str:
        """Opens the folder with milvus-lite in this process; returns where that answers."""
        try:
            from milvus_lite.server_manager import server_manager_instance
        except ImportError as e:
            raise SparsightError(INSTALL) from e
        assert self.address.folder is not None
        folder, shown = str(self.address.folder), shown_path(self.address.folder)
        if not new and not self.address.folder.exists():
            raise SparsightError(
                f"{shown} does not exist: `sparsight index --store {self.address}` builds an index there"
            )
        if self.address.folder.exists() and not self.address.folder.is_dir():
            raise SparsightError(f"{shown} is a file: milvus-lite 3 keeps its data in a folder")
        if self.address.folder.exists() and not MARKS & (held := set(os.listdir(folder))) and held:
            raise SparsightError(f"{shown} holds other things than milvus-lite does: name a new folder")
        for name in ("milvus_lite", "grpc"):  # its server runs here as well
            _quiet(name)
        with _lock:
            uri = server_manager_instance.start_and_get_uri(folder)
            if uri is None:
                raise SparsightError(
                    f"milvus-lite cannot open {shown}: another process has it open, or it is no folder of milvus-lite; "
                    "for several processes start a server (`milvus-lite server`) and name that"
                )
            _open[folder] = _open.get(folder, 0) + 1
            self._folder = folder
        return uri


def _reason(e: BaseException) -> str:
    return " ".join(str(getattr(e, "message", "") or e).split())[:300]


def _quiet(name: str) -> None:
    """A library's own words about a fault are tracebacks: the fault that is raised says it."""
    logger = logging.getLogger(name)
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
