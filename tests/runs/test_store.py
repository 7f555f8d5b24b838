"""A store is asked through MLflow's own client, and one that cannot be used is refused in one line."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from bustseg.errors import TrackingError
from bustseg.runs.opening import open_store
from bustseg.runs.store import local_path, tracking_uri
from tests.runs import servers

Bustseg = pytest.FixtureRequest


def refusal(uri: str, write: bool = True) -> str:
    """What is said of a store that cannot be used: one line, without credentials."""
    with pytest.raises(TrackingError) as error:
        open_store(uri, write)
    message = str(error.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


def with_login(address: str, login: str) -> str:
    return address.replace("://", f"://{login}@")


# ------------------------------------------------------------------------------------------------------------ servers


def test_a_server_without_health_is_used() -> None:
    with servers.server(servers.healthy) as address:
        open_store(address)


def test_a_server_behind_a_path_is_used_at_that_path_only() -> None:
    with servers.server(functools.partial(servers.healthy, prefix="/mlflow")) as address:
        open_store(f"{address}/mlflow")
        assert "lack a path" in refusal(address)


def test_a_login_comes_from_the_uri_or_from_mlflows_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    login = functools.partial(servers.healthy, login=servers.basic("me", "secret"))
    with servers.server(login) as address:
        open_store(with_login(address, "me:secret"))
        assert "refuses this login (401): set MLFLOW_TRACKING_USERNAME" in refusal(address)
        assert "//me:***@127.0.0.1" in refusal(with_login(address, "me:secret2"))
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        open_store(address)


def test_a_token_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    with servers.server(functools.partial(servers.healthy, login="Bearer abc")) as address:
        open_store(address)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that no authority has signed, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_self_signed_certificate_is_refused_until_it_is_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.server(servers.healthy, certificate) as address:
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in refusal(address)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        open_store(address)


def test_databricks_is_no_file_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/nowhere")
    for uri in ("databricks", "databricks://profile"):
        assert "no login for Databricks" in refusal(uri)


def test_a_server_that_hangs_costs_one_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with servers.server(servers.hanging) as address:
        start = time.monotonic()
        assert "no answer within 2 s" in refusal(address)
        assert time.monotonic() - start < 2 * 2, "the request was repeated"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, "Internal Server Error"), "500"),
        ((503, ""), "503"),
        ((200, "<html>Welcome to nginx!</html>"), "is not an MLflow server"),
    ],
)
def test_a_broken_server_is_refused_in_one_line(answer: tuple[int, str], message: str) -> None:
    with servers.server(lambda request: answer) as address:
        assert message in refusal(address)


def test_the_ui_gets_the_uri_where_other_users_do_not_see_it(monkeypatch: pytest.MonkeyPatch, bustseg: Bustseg) -> None:
    uri = f"sqlite:///{Path('mlruns/mlflow.db').resolve()}"
    called: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, args, environment: called.append((args, environment)))
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = bustseg("ui", "--port", port)
        assert (code, called) == (2, [])
        assert f"cannot listen on 127.0.0.1:{port}" in err
    bustseg("ui", "--port", port)
    ((args, environment),) = called
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false", "a dozen processes that nothing here uses"
    assert uri not in " ".join(args)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri


# ---------------------------------------------------------------------------------------------------------- databases


@pytest.fixture
def database() -> Path:
    """The database of a new local store."""
    open_store(tracking_uri(), write=True)
    return Path("mlruns/mlflow.db").resolve()


def set_revision(database: Path, revision: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def copied(database: Path, folder: str) -> Path:
    """A copy of the database in a folder of its own, which MLflow has not opened yet."""
    Path(folder).mkdir()
    return Path(shutil.copy(database, Path(folder).resolve()))


def test_an_older_database_is_refused_with_the_command_that_upgrades_it(database: Path) -> None:
    older = copied(database, "older")
    set_revision(older, "451aebb31d03")  # MLflow 1.0
    assert f"belongs to an older MLflow: make a copy of it, then run `mlflow db upgrade sqlite:///{older}`" in refusal(
        f"sqlite:///{older}"
    )


def test_a_newer_database_is_refused_and_not_called_old(database: Path) -> None:
    newer = copied(database, "newer")
    set_revision(newer, "fedcba987654")
    assert "belongs to a newer MLflow: pip install --upgrade mlflow" in refusal(f"sqlite:///{newer}")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database at all " * 100)
    assert "not an MLflow database" in refusal(f"sqlite:///{tmp_path / 'notes.db'}")


KILLED_WRITER = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")  # pages go to the disk before the transaction ends
connection.execute("BEGIN")
numbers = "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 20000) SELECT value FROM n"
connection.execute(f"CREATE TABLE half AS {numbers}")
os._exit(9)
"""


@pytest.mark.parametrize("write", [False, True])
def test_what_a_killed_process_was_writing_is_rolled_back(database: Path, write: bool) -> None:
    subprocess.run([sys.executable, "-c", KILLED_WRITER, database], check=False)
    assert database.with_name(f"{database.name}-journal").stat().st_size, "sqlite's journal is there"
    open_store(f"sqlite:///{database}", write)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)


def test_a_locked_database_is_refused_and_a_reader_let_in(database: Path) -> None:
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        assert "locked by another process" in refusal(f"sqlite:///{database}")
        open_store(f"sqlite:///{database}")
    finally:
        holder.close()


@pytest.fixture
def read_only(database: Path) -> Iterator[Path]:
    """A store on a file system that is mounted read-only."""
    folder = str(database.parent)
    mounted = (
        subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode == 0
        and subprocess.run(["mount", "-o", "remount,ro,bind", folder], capture_output=True).returncode == 0
    )
    if not mounted:  # without root, permissions do the same
        database.chmod(0o444)
        database.parent.chmod(0o555)
    yield database
    if mounted:
        subprocess.run(["umount", folder], check=True)
    else:
        database.parent.chmod(0o755)
        database.chmod(0o644)


def test_a_read_only_store_is_refused_for_writing_and_can_be_read(read_only: Path) -> None:
    assert "is read-only: make its folder" in refusal(f"sqlite:///{read_only}")
    store = open_store(f"sqlite:///{read_only}")
    assert [experiment.name for experiment in store.client().search_experiments()] == ["Default"]


# -------------------------------------------------------------------------------------------------------- moved stores


def fake_run(project: Path) -> str:
    """A run with one file in the store of a project; its id."""
    store = open_store(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}", write=True)
    client = store.client()
    experiment = client.get_experiment_by_name("e")
    number = experiment.experiment_id if experiment else client.create_experiment("e", store.artifact_location)
    run = client.create_run(number)
    folder = store.artifact_folder(run)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "note.txt").write_text(project.name)
    return run.info.run_id


def note(project: Path, run_id: str, write: bool) -> Path:
    """The file of `fake_run`, as a store that was opened finds it."""
    store = open_store(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}", write)
    folder = store.artifact_folder(store.client().get_run(run_id))
    assert folder is not None
    return folder / "note.txt"


def recorded(project: Path, run_id: str) -> Path | None:
    """Where MLflow itself, and so its UI, looks for the run's files."""
    run = mlflow.MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}").get_run(run_id)
    return local_path(run.info.artifact_uri)


@pytest.mark.parametrize("write", [False, True])
def test_a_moved_project_finds_its_files(tmp_path: Path, write: bool) -> None:
    run_id = fake_run(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b with spaces")
    assert note(tmp_path / "b with spaces", run_id, write).read_text() == "a"


def test_a_moved_project_keeps_new_files_to_itself(tmp_path: Path) -> None:
    first = fake_run(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    second = fake_run(tmp_path / "b")
    assert not (tmp_path / "a").exists()
    artifacts = tmp_path / "b" / "mlruns" / "artifacts"
    assert recorded(tmp_path / "b", first) == artifacts / first / "artifacts"
    assert recorded(tmp_path / "b", second) == artifacts / second / "artifacts"


def test_a_copied_project_does_not_write_into_the_original(tmp_path: Path) -> None:
    first = fake_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    second = fake_run(tmp_path / "b")
    assert note(tmp_path / "b", second, True).is_relative_to(tmp_path / "b")
    assert note(tmp_path / "b", first, True).is_relative_to(tmp_path / "b")
    assert note(tmp_path / "a", first, True).is_relative_to(tmp_path / "a")


def test_a_moved_project_whose_next_run_went_to_the_old_place_loses_neither(tmp_path: Path) -> None:
    first = fake_run(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    # what versions without this mending did
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'b' / 'mlruns' / 'mlflow.db'}")
    stray = client.create_run(client.get_experiment_by_name("e").experiment_id)
    folder = local_path(stray.info.artifact_uri)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "note.txt").write_text("stray")
    third = fake_run(tmp_path / "b")
    assert note(tmp_path / "b", first, True).read_text() == "a"
    assert note(tmp_path / "b", stray.info.run_id, True).read_text() == "stray"
    assert note(tmp_path / "b", third, True).is_relative_to(tmp_path / "b")


def test_files_that_were_put_elsewhere_on_purpose_stay_there(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}", write=True)
    client = store.client()
    (tmp_path / "big" / "artifacts").mkdir(parents=True)
    client.create_experiment("big", (tmp_path / "big" / "artifacts").as_uri())
    client.create_experiment("bucket", "s3://bucket/artifacts")
    open_store(store.uri, write=True)
    locations = {experiment.name: experiment.artifact_location for experiment in client.search_experiments()}
    assert locations["big"] == (tmp_path / "big" / "artifacts").as_uri()
    assert locations["bucket"] == "s3://bucket/artifacts"
