"""``bustseg live``: start reading frames, serve the page, and print a line per second."""

from __future__ import annotations

import os
import secrets
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bustseg.box import boxed_model
from bustseg.deploy.predict import check_threshold
from bustseg.disclaimer import NOTICE
from bustseg.errors import UserError
from bustseg.progress import console
from bustseg.serve.command import TOKEN, address_of, listen
from bustseg.serve.settings import Settings, is_loopback

if TYPE_CHECKING:
    import socket

    import uvicorn

    from bustseg.live.stream import Live


def live(
    *,
    device: str,
    model: str | None,
    host: str,
    port: int,
    smooth: float,
    threshold: float | None,
    mirror: bool,
    repeat: bool,
    page: bool,
    pace: bool,
    seconds: float | None,
) -> int:
    """Show a camera or a video with outlines until Ctrl-C or the end.

    Args:
        device: number of a camera, or path of a video file
        model: a checkpoint, a run or an exported folder; the model in the box when not given
        host: address of the page; for any address other than this machine's own a token is required
        port: port of the page; 0 takes a free one
        smooth: seconds over which logits are averaged; 0 for none
        threshold: probability above which a pixel belongs to a lesion; the model's when not given
        mirror: also predict each frame's mirror image, if the model does so
        repeat: start a file again at its end
        page: serve a page; otherwise only print a line per second
        pace: play a file at its own rate; otherwise as fast as it can be read
        seconds: stop after this time

    Returns:
        exit code 0, or 1 when the frames ended with an error

    Raises:
        UserError: the camera, the model or an option cannot be used
    """
    if not 0 <= smooth <= 60:
        raise UserError(f"--smooth is {smooth}: give seconds from 0 to 60")
    check_threshold(threshold)
    token = os.environ.get(TOKEN) or (None if is_loopback(host) else secrets.token_urlsafe(24))
    from bustseg.live.stream import Frames, Live, predictors_of

    frames = Frames(device, repeat, pace)
    listening = listen(host, port) if page else None
    shown = Live(frames, predictors_of(model if model is not None else str(boxed_model()), threshold, mirror), smooth)
    server = None
    if listening is not None:
        called = "the model in the box" if model is None else Path(model).name
        server = _serve_page(shown, Settings(host, port, token), called, listening)
        where = address_of(host, listening.getsockname()[1], token)
        console.print(f"bustseg live: {where} (Ctrl-C stops it)", highlight=False)
    console.print(NOTICE, highlight=False)
    shown.start()
    start = time.monotonic()
    try:
        _report(shown, seconds)
    finally:
        took = time.monotonic() - start
        shown.stop()
        if server is not None:
            server.should_exit = True
    console.print(
        f"{shown.drawn} frames shown in {took:.1f} s ({shown.drawn / max(took, 1e-9):.1f} a second), "
        f"{shown.dropped} of {shown.read} dropped",
        highlight=False,
    )
    if shown.error:
        raise UserError(shown.error)
    return 0


def _serve_page(shown: Live, settings: Settings, called: str, listening: socket.socket) -> uvicorn.Server:
    """Serve the page of the stream in a separate thread, until ``should_exit`` of the returned server is set."""
    import uvicorn

    from bustseg.live.app import create_app

    app = create_app(shown, settings, called)
    # without uvicorn's log configuration, which would close the log handlers of all libraries in the process
    config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, server_header=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    return server


def _report(shown: Live, seconds: float | None) -> None:
    """Print the frame rate once a second, until the frames end or ``seconds`` have passed."""
    start = reported = time.monotonic()
    while not shown.shown.ended and (seconds is None or time.monotonic() - start < seconds):
        time.sleep(0.1)
        if time.monotonic() - reported >= 1:
            reported = time.monotonic()
            console.print(_line(shown), highlight=False)


def _line(shown: Live) -> str:
    newest = shown.shown.after(0, timeout=0)
    delay = f", {newest[1].milliseconds:.0f} ms from frame to outline" if newest else ""
    return f"{shown.rate:.1f} frames/s, {shown.dropped} of {shown.read} dropped{delay}"
