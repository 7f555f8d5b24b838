"""`bustseg serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def serve(
    *,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    corrections: Annotated[Path | None, Option(metavar="DIR")] = None,
    threshold: float | None = None,
    allowed_hosts: Annotated[list[str] | None, Option(metavar="NAME")] = None,
    max_mb: int = 256,
    max_requests: int = 64,
    batch_size: int = 8,
) -> int:
    """Serve a web page to view and correct outlines, and an HTTP interface for programs.

    Example:
        bustseg serve --corrections corrections

    Args:
        model: as for predict (default: the model in the box)
        host: address to listen on (default 127.0.0.1; others need BUSTSEG_TOKEN)
        port: port (default 8080; 0 takes a free one)
        corrections: folder to save corrections in (default: none are saved)
        threshold: probability above which a pixel is lesion (default: the model's)
        allowed_hosts: names by which clients may reach the server
        max_mb: largest request in MiB
        max_requests: most concurrent requests; more get 429
        batch_size: images per step of the network
    """
    from bustseg.serve.command import serve as run_server

    return run_server(
        model=model,
        host=host,
        port=port,
        corrections=corrections,
        threshold=threshold,
        allowed_hosts=tuple(allowed_hosts or ()),
        max_bytes=max_mb * 1024**2,
        max_requests=max_requests,
        batch_size=batch_size,
    )
