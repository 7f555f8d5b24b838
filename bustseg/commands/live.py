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
    """A camera or a video with the outline on it, as it comes: frames that are too many are dropped and counted.

    Example:
        bustseg live --device 0

    Args:
        device: number of a camera, or a video file (default 0)
        model: as for predict (default: the model in the box)
        host: address of the page
        port: port of the page (default 8081; 0 takes a free one)
        smooth: average over so long (default 0)
        threshold: probability above which a pixel is lesion (default: model's)
        mirror: look at each frame's mirror image, too, as predict does (half the frames a second)
        repeat: begin a file anew at its end
        page: show a page beside the line a second
        pace: play a file as fast as it was recorded, not as fast as it can be read
        seconds: end after so many (default: at the end, or with Ctrl-C)
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
