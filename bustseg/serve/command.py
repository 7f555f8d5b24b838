"""``bustseg serve``: start the server and print its address."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from bustseg.box import boxed_model
from bustseg.deploy.predict import check_threshold
from bustseg.disclaimer import NOTICE
from bustseg.errors import UserError
from bustseg.progress import console
from bustseg.serve.settings import Settings, is_loopback

TOKEN = "BUSTSEG_TOKEN"
"""Environment variable with the token: on the command line every user of the machine would see it."""


def serve(
    *,
    model: str | None,
    host: str,
    port: int,
    corrections: Path | None,
    threshold: float | None,
    allowed_hosts: tuple[str, ...],
    **limits: Any,
) -> int:
    """Serve a page and an HTTP interface until Ctrl-C.

    Args:
        model: a checkpoint, a run or an exported folder; the model in the box when not given
        host: address to listen on; for any address other than this machine's own a token is required
        port: port to listen on; 0 takes a free one
        corrections: folder for corrections; nothing is saved when not given
        threshold: probability above which a pixel belongs to a lesion; the model's when not given
        allowed_hosts: names by which clients may call the server
        limits: further fields of :class:`bustseg.serve.settings.Settings`

    Returns:
        exit code 0

    Raises:
        UserError: a setting, the model or the address cannot be used, or the extra is not installed
    """
    check_threshold(threshold)
    token = os.environ.get(TOKEN) or (None if is_loopback(host) else secrets.token_urlsafe(24))
    folder = corrections.expanduser() if corrections else None
    settings = Settings(host, port, token, allowed_hosts, folder, **limits)
    try:
        import uvicorn

        from bustseg.serve.app import create_app
    except ImportError as error:
        raise UserError(f"bustseg serve needs {error.name}: pip install 'bustseg[serve]'") from error
    listening = listen(host, port)
    name = model if model is not None else str(boxed_model())
    from bustseg.deploy.predictor import Predictor

    predictor = Predictor(name, threshold=threshold)
    blank = np.zeros(predictor.image_size, np.uint8)
    predictor.logits([blank])  # so that neither the first client nor the first batch waits for one-time work
    threading.Thread(target=predictor.logits, args=([blank, blank],)).start()
    called = "the model in the box" if model is None else Path(name).name
    app = create_app(predictor, settings, called)
    where = address_of(host, listening.getsockname()[1], token)
    console.print(f"bustseg serve: {where} (Ctrl-C stops it)", highlight=False)
    console.print(f"model: {called}, digest {predictor.digest[:12]}", highlight=False, markup=False)
    if token:
        console.print("programs must send the header Authorization: Bearer TOKEN", highlight=False)
    saved = (
        f"corrections are saved in {folder}"
        if folder
        else "corrections are not saved: give --corrections DIR to save them"
    )
    console.print(saved, highlight=False, markup=False)
    console.print(NOTICE, highlight=False)
    config = uvicorn.Config(
        app,
        log_config=None,  # uvicorn's configuration would close the log handlers of all libraries in the process
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        lifespan="on",
    )
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def address_of(host: str, port: int, token: str | None) -> str:
    """Address to open in a browser; the token comes after the #, which browsers do not send."""
    fragment = f"#token={quote(token, safe='')}" if token else ""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{fragment}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address is in use or does not belong to this machine
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror or error}): name another --port") from error
    return listening
