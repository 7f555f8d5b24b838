"""`bustseg node`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bustseg.command_line import Option


def node(
    *,
    port: int = 11112,
    ae: Annotated[str, Option(metavar="AE")] = "BUSTSEG",
    send_to: Annotated[str | None, Option(metavar="AE@HOST:PORT")] = None,
    host: str = "127.0.0.1",
    spool: Annotated[Path | None, Option(metavar="DIR")] = None,
    model: str | None = None,
    threshold: float | None = None,
    allow: Annotated[list[str] | None, Option(metavar="AE")] = None,
    capture: bool = True,
    max_waiting: int = 10_000,
    seconds: float | None = None,
) -> int:
    """Run a DICOM node that receives ultrasound images and sends DICOM SEG and secondary captures on.

    Example:
        bustseg node --send_to PACS@pacs.example:104

    Args:
        port: port to listen on (default 11112; 0 takes a free one)
        ae: its AE title
        send_to: receiver of the results (default: they stay in the queue)
        host: address to listen on (default 127.0.0.1; 0.0.0.0 for all)
        spool: folder of the queue (default: in the user's state folder)
        model: as for predict (default: the model in the box)
        threshold: probability above which a pixel is lesion (default: the model's)
        allow: AE titles that may send (default: all)
        capture: send secondary captures
        max_waiting: most images in the queue
        seconds: stop after this time (default: on Ctrl-C)
    """
    from bustseg.node.command import node as run_node

    return run_node(
        port=port,
        ae=ae,
        send_to=send_to,
        host=host,
        spool=spool,
        model=model,
        threshold=threshold,
        allow=tuple(allow or ()),
        capture=capture,
        max_waiting=max_waiting,
        seconds=seconds,
    )
