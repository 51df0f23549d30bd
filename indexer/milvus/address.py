"""Where an index lies that is no folder: `milvus:URI`, or `milvus:URI#NAME` for one of several at a server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard
from urllib.parse import urlsplit

from training.errors import CallError
from training.files import full_path, shown_path

SCHEME = "milvus:"
NAME = "sparsight"
NAMES = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)
LIKE_SERVER = re.compile(r"https?:.*|[\w.-]+:\d+", re.IGNORECASE)  # a folder of such a name is ./NAME


@dataclass(frozen=True)
class Address:
    """A Milvus server, or a folder of milvus-lite, and the name of the index in it.

    uri: http(s)://host:port, "" for a folder; folder: None for a server.
    """

    uri: str
    folder: Path | None
    name: str = NAME

    def __str__(self) -> str:
        named = "" if self.name == NAME else f"#{self.name}"
        return f"{SCHEME}{self.server}{named}"

    @property
    def server(self) -> str:
        """The server as messages call it."""
        return self.uri or shown_path(self.folder or Path())

    @property
    def key(self) -> str:
        """What tells it from every other address."""
        return f"{self.uri or self.folder}#{self.name}"


def is_address(place: object) -> TypeGuard[str]:
    """Whether a place is named as one of Milvus's."""
    return isinstance(place, str) and place.startswith(SCHEME)


def parse_address(text: str) -> Address:
    """The address that a text is; raises `CallError` where it is none."""
    if not is_address(text):
        raise CallError(f"--store {text!r}: give milvus: and a server (http://host:19530) or a folder of milvus-lite")
    uri, _, name = text.removeprefix(SCHEME).partition("#")
    name = name or NAME
    if not NAMES.fullmatch(name) or "__" in name:
        raise CallError(f"--store: {name!r} is no name of an index: letters, digits and single _, a letter first")
    if "://" not in uri:
        if not uri:
            raise CallError("--store milvus: names no server and no folder")
        if LIKE_SERVER.fullmatch(uri):
            raise CallError(f"--store {text!r}: a server is named as http://host:19530 or https://host")
        return Address("", full_path(uri), name)
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise CallError(f"--store {text!r}: a server is named as http://host:19530 or https://host")
    if parts.username or parts.password:
        raise CallError("--store: the token stands in SPARSIGHT_MILVUS_TOKEN, not in the address")
    usual = ":19530" if port is None and parts.scheme == "http" else ""
    return Address(f"{parts.scheme}://{parts.netloc}{usual}", None, name)


def shown_place(place: Path | Address) -> str:
    """Where an index lies, as messages name it."""
    return str(place) if isinstance(place, Address) else shown_path(place)
