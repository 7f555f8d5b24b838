"""What ``bustseg serve`` may be told, in one place; every limit has a default that a laptop can bear."""

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
        token: what a client must send as ``Authorization: Bearer TOKEN``; None asks for nothing, which is allowed on
            the loopback address only
        allowed_hosts: names by which clients may call the server, beside ``localhost`` and numeric addresses
        corrections: folder that corrections are saved in; None where saving is switched off
        max_bytes: size of one request's body
        max_files: files of one request
        max_pixels: height times width of one image; what :mod:`bustseg.bounds` allows for any input
        max_frames: images of one file (pages, frames)
        max_requests: requests for predictions at the same time; one more is answered with 429
        batch_size: images that pass the network at once
        workers: threads that decode and encode
        body_seconds: time in which a request's body must have arrived
        answer_seconds: time after which a request is given up, with 429
        keep_seconds: time for which the page's files are kept after their last use
        keep_bytes: size of the page's files on disk, of all clients together
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    corrections: Path | None = None
    max_bytes: int = 256 * 1024**2
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
        positive = ("max_bytes", "max_files", "max_pixels", "max_frames", "max_requests", "batch_size", "workers")
        for name in (*positive, "body_seconds", "answer_seconds", "keep_seconds", "keep_bytes"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} is {getattr(self, name)}: give more than 0")
        if self.token is None and not is_loopback(self.host):
            raise UserError(f"{self.host} can be reached from outside, so that a token is needed: set BUSTSEG_TOKEN")
        if self.token is not None and len(self.token) < 16:
            raise UserError("the token is shorter than 16 characters: leave it out, and one is made")
        given = (name.casefold() for name in (*self.allowed_hosts, self.host))
        object.__setattr__(self, "names", frozenset({"localhost", *given}))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost"
