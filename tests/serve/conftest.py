"""A server in a thread, with a model that calls dark pixels lesion and needs no torch."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from dark_model import write_dark_model

from bustseg.deploy.predictor import Predictor
from bustseg.serve.settings import Settings


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSTSEG_SALT", "of this test")
    monkeypatch.delenv("BUSTSEG_TOKEN", raising=False)


@pytest.fixture(scope="session")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dark"
    return write_dark_model(folder, calibration={"temperature": 1.5})


@pytest.fixture(scope="session")
def predictor(dark: Path) -> Predictor:
    return Predictor(dark, threads=1)


def scene(height: int = 96, width: int = 128, top: int = 24, left: int = 32, side: int = 48) -> np.ndarray:
    """Bright grey with a dark square, which by default lies on whole pixels of the network's grid of 64 x 64."""
    image = np.full((height, width), 180, np.uint8)
    image[top : top + side, left : left + side] = 20
    return image


def as_png(image: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class Running:
    """A server that listens.

    Attributes:
        url: where
        port: its port
        app: the application
    """

    url: str
    port: int
    app: Any


@pytest.fixture
def start(predictor: Predictor) -> Iterator[Callable[..., Running]]:
    """Start servers with settings of one's own; they end with the test."""
    import uvicorn

    from bustseg.serve.app import create_app
    from bustseg.serve.command import listen

    servers: list[tuple[Any, threading.Thread]] = []

    def run(model: Predictor | None = None, name: str = "dark", **settings: Any) -> Running:
        app = create_app(model or predictor, Settings(**settings), name)
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        servers.append((server, thread))
        until = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.01)
        return Running(f"http://127.0.0.1:{port}", port, app)

    yield run
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=20)
