"""`bustseg live`."""

from __future__ import annotations

from typing import Annotated

from bustseg.command_line import Option


def live(
    *,
    device: str = "0",
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8081,
    smooth: Annotated[float, Option(metavar="SECONDS")] = 0.0,
    threshold: float | None = None,
    mirror: bool = True,
    repeat: bool = False,
    page: bool = True,
    pace: bool = True,
    seconds: float | None = None,
) -> int:
    """Show outlines on a camera or a video in real time; frames that cannot be processed are dropped and counted.

    Example:
        bustseg live --device 0

    Args:
        device: number of a camera, or a video file (default 0)
        model: as for predict (default: the model in the box)
        host: address of the page
        port: port of the page (default 8081; 0 takes a free one)
        smooth: seconds to average over (default 0)
        threshold: probability above which a pixel is lesion (default: the model's)
        mirror: also predict each frame's mirror image, as predict does (halves the frame rate)
        repeat: start a file again at its end
        page: serve a page, in addition to the line per second
        pace: play a file at its recorded rate, not as fast as it can be read
        seconds: stop after this time (default: at the end, or on Ctrl-C)
    """
    from bustseg.live.command import live as run_live

    return run_live(
        device=device,
        model=model,
        host=host,
        port=port,
        smooth=smooth,
        threshold=threshold,
        mirror=mirror,
        repeat=repeat,
        page=page,
        pace=pace,
        seconds=seconds,
    )
