"""What every request must pass, and what every answer carries, before any of our pages is reached.

- The `Host` header names this server: a page elsewhere whose name is made to point here is refused (DNS rebinding).
- A request that another site's page makes is refused; following a link to one of our pages is not.
- Where a token is set, a request carries it, in its cookie or as `Authorization: Bearer`.
- A body is no larger than it may be.
- Pages load nothing but what this server itself gives.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from search.serve.uploads import MOST_BYTES

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
BODY_BYTES = 1_000_000
UPLOAD = "/api/pictures"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Door:
    """Where the server listens, and the token that it asks for, if any."""

    host: str
    port: int
    token: str | None = None

    @property
    def hosts(self) -> set[str] | None:
        """What the `Host` header may hold; None: anything, since on every address the token alone decides."""
        if self.host in EVERYWHERE:
            return None
        names = {self.host, *LOOPBACK} if self.host in LOOPBACK else {self.host}
        spelled = {f"[{name}]" if ":" in name else name for name in names}
        return {f"{name}:{self.port}" for name in spelled} | (spelled if self.port == 80 else set())

    @property
    def cookie(self) -> str:
        return f"sparsight-{self.port}"  # cookies do not tell ports apart

    @property
    def address(self) -> str:
        """The address of the page, with the token."""
        host = "localhost" if self.host in EVERYWHERE else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?{urlencode({'token': self.token})}" if self.token else "")


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, door: Door):
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # of the answer the server sends the headers alone
        headers = Headers(scope=scope)
        send = _with_headers(send)
        if reason := self._refused(scope, headers):
            await _tell(send, *reason)
        elif self._door.token and (token := _token_of_address(scope)) is not None:
            await self._let_in(scope, send, token)
        elif self._door.token and not self._known(headers):
            await _tell(send, 401, "this page asks for a token: open the address that `sparsight serve` printed")
        else:
            most = MOST_BYTES if scope["path"] == UPLOAD else BODY_BYTES
            if _length(headers) > most:
                await _tell(send, 413, f"the request is too large: at most {most} bytes are taken")
            else:
                await self._app(scope, _bounded(receive, most), send)

    def _refused(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        hosts, named = self._door.hosts, headers.getlist("host")
        if len(named) != 1 or (hosts is not None and named[0].lower() not in hosts):
            return 400, f"the Host header does not name this server, {self._door.host} port {self._door.port}"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.lower() != f"http://{named[0].lower()}":
            return 403, "requests from pages of other sites are refused"
        followed = (
            scope["method"] == "GET"
            and not scope["path"].startswith("/api/")
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if site not in (None, "same-origin", "none") and not followed:
            return 403, "requests from pages of other sites are refused"
        return None

    def _known(self, headers: Headers) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer ")]
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if self._door.cookie in cookies:
            given.append(cookies[self._door.cookie].value)
        return any(self._is_token(text) for text in given)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self._door.token or "").encode())

    async def _let_in(self, scope: Scope, send: Send, token: str) -> None:
        """Keeps the token of an address in a cookie and leads to the same address without it."""
        if not self._is_token(token):
            await _tell(send, 401, "that is not the token of this server")
            return
        rest = [pair for pair in _parameters(scope) if pair[0] != "token"]
        path = "/" + quote(scope["path"].lstrip("/\\"))  # `//name` would be another site
        target = path + (f"?{urlencode(rest)}" if rest else "")
        cookie = f"{self._door.cookie}={token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", target.encode()), (b"set-cookie", cookie.encode())]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _parameters(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _token_of_address(scope: Scope) -> str | None:
    return dict(_parameters(scope)).get("token") if scope["method"] == "GET" else None


def _length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _bounded(receive: Receive, most: int) -> Receive:
    """Stops a body that says no length, or a false one, where it passes the limit."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise HTTPException(413, f"the request is too large: at most {most} bytes are taken")
        return message

    return bounded


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent


async def _tell(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
