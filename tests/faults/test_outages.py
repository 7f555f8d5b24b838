"""A tracking server that goes away, hangs, breaks or is slow loses nothing, and holds up nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import harness

pytestmark = pytest.mark.faults

TIME_OUT = 2
"""Seconds that a request may take here; by default ten."""


class Server:
    """An MLflow server with a proxy before it.

    Attributes:
        uri: the proxy's address
        database: the server's
        artifacts: where the server keeps files
    """

    def __init__(self, folder: Path, template: Path) -> None:
        self.database, self.artifacts = folder / "server.db", folder / "artifacts"
        self.database.write_bytes(template.read_bytes())
        self._mode = folder / "mode"
        self.mode("pass")
        self._upstream = self._start_mlflow(folder)
        command = [sys.executable, Path(__file__).with_name("proxy.py"), str(self._upstream), self._mode]
        self._proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._proxy.stdout is not None
        self.uri = f"http://127.0.0.1:{self._proxy.stdout.readline().strip()}"

    def _start_mlflow(self, folder: Path) -> int:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.artifacts)]
        self._log = (folder / "server.log").open("w")
        self._mlflow = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self._mlflow.poll() is None, (folder / "server.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                return port
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the MLflow server did not start")

    def __getstate__(self) -> dict[str, Path]:
        """What a command's process gets of it: enough to let it fail."""
        return {"_mode": self._mode}

    def mode(self, mode: str) -> None:
        """Let the server be ``pass``, ``gone``, ``500``, ``hang``, ``slow SECONDS`` or ``lose``."""
        temporary = self._mode.with_suffix(".new")
        temporary.write_text(mode)
        temporary.replace(self._mode)

    def stop(self) -> None:
        """End both processes."""
        self._proxy.kill()
        self._proxy.wait()
        os.killpg(self._mlflow.pid, 9)
        self._mlflow.wait()
        self._log.close()

    def runs(self, experiment: str) -> dict[str, str]:
        """Status by run id of an experiment."""
        query = (
            "SELECT run_uuid, runs.status FROM runs JOIN experiments USING (experiment_id) "
            "WHERE experiments.name = ? ORDER BY runs.start_time"
        )
        return dict(harness.read(self.database, query, experiment))

    def files(self, run_id: str) -> set[str]:
        """Names of a run's files."""
        (folder,) = self.artifacts.glob(f"*/{run_id}/artifacts")
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"), template)
    yield made
    made.stop()


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    _server.mode("pass")
    yield _server
    _server.mode("pass")


@pytest.fixture
def env(server: Server) -> dict[str, str]:
    """Settings of a command that uses the server."""
    return {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIME_OUT)}


def at_epoch(epoch: int, do: Callable[[], None]) -> None:
    """Do something in this process when an epoch (from 0) begins."""
    from bustseg.callbacks import LastCheckpoint

    begin = LastCheckpoint.on_train_epoch_start

    def wrapper(self: Any, trainer: Any, task: Any) -> None:
        begin(self, trainer, task)
        if trainer.current_epoch == epoch:
            do()

    LastCheckpoint.on_train_epoch_start = wrapper


FILES = {"config.yaml", "split.csv", "checkpoints/best.ckpt", "model_card.md"}

OUTAGES = ["gone", "500", "hang", "slow 3", "lose"]
"""Slower than the time-out is another way to hang; a server that is only slow has its own test below."""


@pytest.mark.promise("A fit whose server is gone, broken or hangs ends well; all it measured arrives once, later")
@pytest.mark.parametrize("outage", OUTAGES if harness.LONG else ["hang"])
def test_a_fit_outlives_its_server(
    world: harness.World, server: Server, env: dict[str, str], undisturbed: harness.Undisturbed, outage: str
) -> None:
    experiment = f"fit-{outage}".replace(" ", "-")
    options = ("--tracking.experiment", experiment, "--trainer.max_epochs", 3)
    ended = world.fit(*options, env=env, patch=lambda: at_epoch(1, lambda: server.mode(outage)))
    assert ended.code == 0, ended.err
    assert ended.err.count("cannot be reached") == 1, ended.err
    assert "`bustseg sync` sends them" in ended.err
    assert ended.seconds < 3 * undisturbed.seconds + 4 * TIME_OUT, "it waited for the server again and again"
    (run_id,) = server.runs(experiment)

    server.mode("pass")
    ended = world.run("sync", env=env)
    assert ended.code == 0, ended.err
    assert server.runs(experiment) == {run_id: "FINISHED"}
    harness.compare_points(harness.points(server.database, run_id), undisturbed.points)
    assert server.files(run_id) >= FILES
    assert world.spooled() == []
    assert "nothing waits" in world.run("sync", env=env).out


@pytest.mark.promise("A server that was restarted meanwhile has everything at the end of the fit")
def test_a_restarted_server_has_everything_at_the_end(
    world: harness.World, server: Server, env: dict[str, str], undisturbed: harness.Undisturbed
) -> None:
    def outage() -> None:
        at_epoch(1, lambda: server.mode("gone"))
        at_epoch(2, lambda: server.mode("pass"))

    options = ("--tracking.experiment", "restarted", "--trainer.max_epochs", 3)
    ended = world.fit(*options, env=env, patch=outage)
    assert ended.code == 0, ended.err
    ((run_id, status),) = server.runs("restarted").items()
    assert status == "FINISHED"
    harness.compare_points(harness.points(server.database, run_id), undisturbed.points)
    assert world.spooled() == []


@pytest.mark.long_form
@pytest.mark.promise("A server that is slow (2 s for each answer) or hangs holds up less than 5 % of a fit's time")
@pytest.mark.parametrize("outage", ["slow 2", "hang"])
def test_a_server_does_not_hold_up_a_fit(
    world: harness.World,
    server: Server,
    env: dict[str, str],
    record_property: Callable[[str, object], None],
    outage: str,
) -> None:
    def measure() -> None:
        from bustseg.runs.run import Run

        at_epoch(0, lambda: server.mode(outage))
        close = Run.close

        def wrapper(self: Run, *args: Any, **kwargs: Any) -> None:
            if outage != "hang":  # all is sent at the end, which is no part of what a training waits for
                server.mode("pass")
            begun = time.monotonic()
            close(self, *args, **kwargs)
            print(f"blocked {self.blocked:.3f} closing {time.monotonic() - begun:.3f}", flush=True)

        Run.close = wrapper  # type: ignore[method-assign]

    options = ("--tracking.experiment", outage.split(maxsplit=1)[0], "--trainer.max_epochs", 20)
    patient = {**env, "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # as it is by default
    ended = world.fit(*options, env=patient, patch=measure)
    assert ended.code == 0, ended.err
    found = re.search(r"blocked ([\d.]+) closing ([\d.]+)", ended.out)
    assert found
    blocked, closing = float(found[1]), float(found[2])
    assert blocked < 0.05 * ended.seconds, f"{blocked} s of {ended.seconds:.1f} s"
    if outage == "hang":
        assert closing < 12, f"the end waited {closing} s, more than for one request"
    figure = f"{blocked:.2f} s of {ended.seconds:.0f} s ({blocked / ended.seconds:.1%}), {closing:.1f} s at the end"
    record_property("figure", figure)


def break_it(server: Server, outage: str) -> None:
    """Let the server fail from now on; one that is restarted is back after three seconds."""
    server.mode("gone" if outage == "restarted" else outage)
    if outage == "restarted":
        timer = threading.Timer(3, server.mode, ["pass"])
        timer.daemon = True
        timer.start()


EVERY_OUTAGE = ["gone", "500", "hang", "slow 0.5", "restarted"]


@pytest.mark.long_form
@pytest.mark.promise("A test whose server fails leaves its scores, tables and pictures, and they arrive once, later")
@pytest.mark.parametrize("outage", EVERY_OUTAGE)
def test_a_test_outlives_its_server(world: harness.World, server: Server, env: dict[str, str], outage: str) -> None:
    experiment = f"test-{outage}".replace(" ", "-")
    options = ("--tracking.experiment", experiment, "--trainer.max_epochs", 1)
    assert world.fit(*options, env=env).code == 0
    ((run_id, _),) = server.runs(experiment).items()

    def fail() -> None:
        from bustseg.callbacks import TestPasses

        begin = TestPasses.on_test_start

        def wrapper(self: Any, *args: Any) -> None:
            break_it(server, outage)
            begin(self, *args)

        TestPasses.on_test_start = wrapper

    ended = world.run("test", "--ckpt_path", run_id, "--explain.enabled", "false", env=env, patch=fail)
    assert ended.code == 0, ended.err
    server.mode("pass")
    assert world.run("sync", env=env).code == 0
    found = harness.points(server.database, run_id)
    assert {len(points) for name, points in found.items() if name.startswith("test/")} == {1}
    assert found["test/dice_lesion"]
    assert server.files(run_id) >= {*FILES, "tables/test.csv", "curves/roc.png", "panels/test.png"}
    assert server.runs(experiment) == {run_id: "FINISHED"}


SWEEP = """
config: {config}
space:
  model.optimizer.init_args.lr: [1.0e-4, 1.0e-3]
objective: val/loss
direction: minimize
"""


@pytest.mark.long_form
@pytest.mark.promise("A cross-validation and a sweep go on when their server fails; their runs are made there later")
@pytest.mark.parametrize("outage", EVERY_OUTAGE)
@pytest.mark.parametrize("verb", ["cv", "sweep"])
def test_a_command_of_several_runs_goes_on_without_its_server(
    world: harness.World, server: Server, env: dict[str, str], verb: str, outage: str
) -> None:
    experiment = f"{verb}-{outage}".replace(" ", "-")
    options = ["--tracking.experiment", experiment, "--trainer.max_epochs", "1", *world.options[2:]]
    if verb == "cv":  # of a config and options beside it the later wins
        options = ["--config", str(harness.TINY), *options, "--data.split", "kfold", "--folds", "2"]
        options += ["--explain.enabled", "false"]
    else:
        (world.folder / "two.yaml").write_text(SWEEP.format(config=harness.TINY))
        options = ["--config", "two.yaml", *options]

    def fail() -> None:
        from bustseg.callbacks import LastCheckpoint

        broken = []

        def in_the_first_fit(*args: object) -> None:
            if not broken:
                broken.append(outage)
                break_it(server, outage)

        LastCheckpoint.on_train_epoch_start = in_the_first_fit

    ended = world.run(verb, *options, env=env, patch=fail)
    assert ended.code == 0, ended.err
    assert ended.err.count("no MLflow server answers") <= 1
    server.mode("pass")
    ended = world.run("sync", env=env)
    assert ended.code == 0, ended.err
    runs = server.runs(experiment)
    assert list(runs.values()) == ["FINISHED"] * 3, "the parent and its two"
    parents = "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?"
    parent = next(iter(runs))
    assert harness.read(server.database, parents, parent) == [(2,)]
    for run_id in runs:
        found = harness.points(server.database, run_id)
        assert {len(points) for points in found.values()} == {1}
        assert run_id == parent or found["val/loss"]
    assert world.spooled() == []
    again = [word for word in options if word] + ["--resume"]
    ended = world.run(verb, *again, env=env)
    assert ended.code == 0, ended.err
    assert len(server.runs(experiment)) == 3, "and nothing of it is repeated"


SECRET = "s3cret"


def leaks(*folders: Path) -> list[str]:
    """Files, by content or name, in which the password stands."""
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if SECRET in path.name or (path.is_file() and SECRET.encode() in path.read_bytes())
    ]


@pytest.mark.long_form
@pytest.mark.promise("No command prints the password of a store, or writes it anywhere")
@pytest.mark.timeout(1800)
def test_a_password_stays_where_the_user_wrote_it(world: harness.World, server: Server, tmp_path: Path) -> None:
    uri = server.uri.replace("//", f"//user:{SECRET}@")
    nowhere, database = f"http://user:{SECRET}@127.0.0.1:9", f"postgresql://user:{SECRET}@127.0.0.1:9/x"
    own = tmp_path / "own"  # what the user has written
    own.mkdir()
    (own / "tracked.yaml").write_text(f"tracking: {{uri: '{uri}', experiment: credentials}}\n")
    (own / "sweep.yaml").write_text(SWEEP.format(config=harness.TINY))
    (own / "stored.yaml").write_text(SWEEP.format(config=harness.TINY) + f"storage: {database}\n")
    options = [*world.options, "--config", own / "tracked.yaml", "--explain.enabled", "false"]
    ends: dict[str, tuple[int, harness.Ended]] = {}

    def run(name: str, code: int, *args: object, **more: Any) -> harness.Ended:
        ended = world.run(*args, **more)
        ends[name] = code, ended
        print(f"{name}: {ended.code} after {ended.seconds:.0f} s, {ended.err[-300:]}", flush=True)
        return ended

    run("fit", 0, "fit", *options, "--trainer.max_epochs", 1)
    checkpoint = world.last_checkpoint()
    env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    run("test", 0, "test", "--ckpt_path", checkpoint, "--explain.enabled", "false", env=env)
    run("test without the password", 2, "test", "--ckpt_path", checkpoint)
    run("print", 0, "fit", *options, "--print_config")
    lost = ("--trainer.max_epochs", 2, "--tracking.tags", "{from: '" + uri + "'}")
    run("lost server", 0, "fit", *options, *lost, patch=lambda: at_epoch(1, lambda: server.mode("gone")))
    run("sync", 2, "sync", env=env)
    run("doctor", 1, "doctor", env=env)
    run("compare", 2, "compare", "0" * 32, "1" * 32, env=env)
    server.mode("pass")
    run("sync again", 0, "sync", env=env)
    run("ui", 0, "ui", env=env)
    swept = ("--data.root", world.options[3], "--trainer.max_epochs", 1, "--tracking.uri", uri)
    run("sweep", 0, "sweep", "--config", own / "sweep.yaml", *swept)
    run("sweep on a database", 2, "sweep", "--config", own / "sweep.yaml", "--storage", database)
    run("sweep whose file has the password", 2, "sweep", "--config", own / "stored.yaml", *swept)
    for number, bad in enumerate((nowhere, database)):
        run(f"bad store {number}", 2, "fit", *options, "--tracking.uri", bad, "--debug")
        run(f"ui {number}", 0 if bad is nowhere else 2, "ui", "--uri", bad)
    run("download", 2, "data", "fetch", "fetched", "--url", f"{nowhere}/busi.zip?token={SECRET}")

    for name, (code, ended) in ends.items():
        assert ended.code == code, f"{name}: {ended.out}{ended.err}"
        assert SECRET not in ended.out + ended.err, f"{name}: {ended.out}{ended.err}"
    assert leaks(world.folder, server.artifacts) == []
    assert SECRET.encode() not in server.database.read_bytes()
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    assert content["bustseg"]["config"]["tracking"]["uri"] == uri.replace(SECRET, "***")
