"""Access control, applied before anything else is done with a request.

* **DNS rebinding**: a foreign page whose host name suddenly resolves to 127.0.0.1 would have the same origin as this
  server. Its requests have the foreign name in ``Host``, so only numeric addresses and known names are accepted.
* **Cross-site requests**: browsers state where a request comes from (``Origin``, ``Sec-Fetch-Site``); any source but
  this server's own page is refused.
* **Authentication**: if a token is set, everything except the page's own files and ``/health`` requires it. It is sent
  in a header and not in a cookie, so other sites cannot make a browser send it.
* **Size and time**: a body that is too large, or arrives too slowly, ends the request.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import HTTPException

from bustseg.disclaimer import NOTICE
from bustseg.serve.settings import Settings

Scope = dict[str, Any]

_DRAIN_SECONDS = 2.0
_SAFE = ("GET", "HEAD")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "X-Notice": NOTICE,
}
"""Headers of every response: nothing is available to other sites, and each has the notice."""


class Refusal(Exception):
    """Refuses a request with an immediate response.

    Attributes:
        status: HTTP status
        message: the reason, in one line
        headers: further headers
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


def host_name(header: str) -> str | None:
    """Host without its port, as in a ``Host`` header; None if it is malformed."""
    if header.startswith("["):
        inside, bracket, port = header[1:].partition("]")
        name, port = (inside, port.removeprefix(":")) if bracket and (not port or port[0] == ":") else ("", "x")
    else:
        name, _, port = header.partition(":")
    return name.casefold().rstrip(".") if name and (not port or port.isdigit()) else None


class Guard:
    """ASGI middleware with the rules above.

    Args:
        app: the guarded application
        settings: names, token and limits
        public: paths that need no token
        refused: called with the status of each refusal
    """

    def __init__(
        self, app: Any, settings: Settings, public: Iterable[str], refused: Callable[[int], None] = lambda status: None
    ) -> None:
        self.app, self.settings, self.public, self.refused = app, settings, frozenset(public), refused

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check(scope["method"], scope["path"], headers, scope["headers"])
        except Refusal as refusal:
            self.refused(refusal.status)
            if "expect" not in headers:
                # otherwise a client that is still sending would see a connection reset and not the response
                await _drain(receive)
            await self._answer(send, refusal)
            return
        body = _Body(receive, self._limit(headers), self.settings.body_seconds)
        await self.app(scope, body, _with_headers(send))

    def check(self, method: str, path: str, headers: dict[str, str], raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Check a request.

        Args:
            method, path: method and path of the request
            headers: headers by lower-case name
            raw: all headers, to detect repeated ones

        Raises:
            Refusal: it is not allowed
        """
        names = [name.lower() for name, _ in raw]
        for once in ("Host", "Origin", "Authorization"):
            if names.count(once.lower().encode()) > 1:
                raise Refusal(400, f"the request has several {once} headers")
        host = host_name(headers.get("host", ""))
        if host is None or not (host in self.settings.names or _is_address(host)):
            raise Refusal(421, "this server does not have that name: use localhost, its address, or --allowed_hosts")
        own = {f"http://{headers['host'].casefold()}", f"https://{headers['host'].casefold()}"}
        origin = headers.get("origin")
        if origin is not None and origin.casefold() not in own:
            raise Refusal(403, "requests of other sites are refused")
        opens_page = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not opens_page:
            raise Refusal(403, "requests of other sites are refused")
        if self.settings.token is not None and path not in self.public:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.settings.token}".encode()):
                raise Refusal(
                    401, "this server requires a token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
                )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > (limit := self._limit(headers)):
            raise Refusal(413, f"the request is larger than {limit // 1024**2} MiB")

    def _limit(self, headers: Mapping[str, str]) -> int:
        """Most bytes of a request's body: only forms contain files; JSON takes many times its size in memory."""
        form = headers.get("content-type", "").casefold().startswith("multipart/form-data")
        return self.settings.max_bytes if form else min(self.settings.max_bytes, self.settings.max_json_bytes)

    @staticmethod
    async def _answer(send: Any, refusal: Refusal) -> None:
        content = json.dumps({"error": refusal.message, "notice": NOTICE}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **refusal.headers}
        start = {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        send = _with_headers(send)
        await send(start)
        await send({"type": "http.response.body", "body": content})


def _is_address(host: str) -> bool:
    """Whether a host is numeric, and so cannot be rebound to another address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _with_headers(send: Any) -> Any:
    async def sender(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", [])}
            extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message = {
                **message,
                "headers": [*message.get("headers", []), *((n, v) for n, v in extra if n not in there)],
            }
        await send(message)

    return sender


async def _drain(receive: Any) -> None:
    """Discard the body, for a short time only."""

    async def read() -> None:
        while True:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    with suppress(TimeoutError):
        await asyncio.wait_for(read(), _DRAIN_SECONDS)


class _Body:
    """``receive`` of a request, with limits on the size of the body and its time."""

    def __init__(self, receive: Any, max_bytes: int, seconds: float) -> None:
        self._receive, self._left, self._max = receive, max_bytes, max_bytes
        self._until = time.monotonic() + seconds
        self._whole = False

    async def __call__(self) -> dict[str, Any]:
        if self._whole:  # after this, only the end of the connection can follow
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time") from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._whole = not message.get("more_body")
            if self._left < 0:
                raise HTTPException(413, f"the request is larger than {self._max // 1024**2} MiB")
        return message
