"""The settings of ``bustseg serve``; the default limits suit a laptop."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from bustseg.bounds import check_port, max_pixels
from bustseg.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Limits and addresses of the server.

    Attributes:
        host: address that it listens on
        port: its port
        token: what a client must send as ``Authorization: Bearer TOKEN``; None for no token, which is allowed only on
            the loopback address
        allowed_hosts: names by which clients may reach the server, in addition to ``localhost`` and numeric addresses
        corrections: folder for corrections; None to disable saving
        max_bytes: largest body of a request
        max_json_bytes: largest body of a request that sends no file
        max_files: most files per request
        max_pixels: largest height times width of an image; by default the limit of :mod:`bustseg.bounds`
        max_frames: most images (pages, frames) per file
        max_requests: most concurrent requests for predictions; further ones get 429
        batch_size: most images per batch of the network
        workers: number of threads that decode and encode
        body_seconds: longest time for the arrival of a request's body
        answer_seconds: time after which a request is aborted, with 429
        keep_seconds: time for which the page's files are kept after their last use
        keep_bytes: largest total size of the page's files on disk, over all clients
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    corrections: Path | None = None
    max_bytes: int = 256 * 1024**2
    max_json_bytes: int = 16 * 1024**2
    max_files: int = 256
    max_pixels: int = field(default_factory=max_pixels)
    max_frames: int = 2000
    max_requests: int = 64
    batch_size: int = 8
    workers: int = 2
    body_seconds: float = 60.0
    answer_seconds: float = 120.0
    keep_seconds: float = 3600.0
    keep_bytes: int = 4 * 1024**3
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        check_port(self.port)
        positive = (
            "max_bytes",
            "max_json_bytes",
            "max_files",
            "max_pixels",
            "max_frames",
            "max_requests",
            "batch_size",
            "workers",
        )
        for name in (*positive, "body_seconds", "answer_seconds", "keep_seconds", "keep_bytes"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} is {getattr(self, name)}: give more than 0")
        if self.token is None and not is_loopback(self.host):
            raise UserError(f"{self.host} can be reached from other machines, so a token is needed: set BUSTSEG_TOKEN")
        if self.token is not None and len(self.token) < 16:
            raise UserError(
                "the token is shorter than 16 characters: use a longer one, or leave it out to have one generated"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UserError("the token has characters that a header cannot carry: use letters and digits")
        if self.token is not None and self.token != self.token.strip():
            raise UserError("the token begins or ends with a blank, which a header does not keep: leave it out")
        given = (name.casefold() for name in (*self.allowed_hosts, self.host))
        object.__setattr__(self, "names", frozenset({"localhost", *given}))


def is_loopback(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost"
