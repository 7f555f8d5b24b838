"""The processes of one training: starting them, and ending the others when one of them fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bustseg.errors import TrainingError, UserError
from bustseg.progress import print_error

if TYPE_CHECKING:
    from bustseg.experiment import Experiment

_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Variables with a process's rank; if they stayed set, Lightning would take this process for one of an old training."""

POLL, GRACE, FAREWELL = 0.5, 10.0, 60.0
"""Seconds between checks of the other processes, for this one to notice that one died, and for the others to end."""


class OtherProcesses(Callback):
    """Starts the other processes of this machine with the same experiment, and ends them.

    Lightning's own launcher repeats ``sys.argv``, but a training may be part of another command or of a notebook, and
    ``latest`` may mean another run by the time that the others start. It also kills this process when another fails,
    before the run can be closed. So this replaces the launcher in the way that Lightning documents
    (:class:`lightning.pytorch.plugins.environments.LightningEnvironment`): a process whose environment has
    ``LOCAL_RANK`` starts no others.

    As a callback, it reports which process died when a connection is lost.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._ended = threading.Event()
        self._waited = False

    @contextmanager
    def started(self, trainer: Trainer, verb: str, experiment: Experiment, checkpoint: Path | None) -> Iterator[None]:
        """While the context lasts, run the other processes, if the trainer needs several and nothing else starts them.

        Args:
            trainer: the trainer
            verb: ``fit``, ``validate`` or ``test``
            experiment: the experiment of all processes
            checkpoint: the checkpoint that the verb starts from

        Raises:
            TrainingError: another process failed
        """
        environment = _environment(trainer)
        forked = any(word in str(experiment["trainer.strategy"]) for word in ("spawn", "fork", "notebook"))
        if environment is None or environment.creates_processes_externally or forked:
            yield
            return
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / f"{experiment.name or 'experiment'}.yaml"
            experiment.save(config)
            place = {
                "MASTER_ADDR": environment.main_address,
                "MASTER_PORT": str(environment.main_port),
                "NODE_RANK": str(environment.node_rank()),
                "WORLD_SIZE": str(trainer.num_devices * trainer.num_nodes),
            }
            same = command(verb, config, checkpoint)
            with self.running(same, trainer.num_devices, place, lambda message: _close(trainer, message)):
                yield

    @contextmanager
    def running(
        self, command: Sequence[str], count: int, place: dict[str, str], on_death: Callable[[str], None]
    ) -> Iterator[None]:
        """While the context lasts, run ``command`` in each of the other ``count`` - 1 processes.

        Args:
            command: command line of one process
            count: number of processes on this machine, including this one
            place: environment variables for all of them
            on_death: called with one line when another process died and this one hangs waiting for it

        Raises:
            TrainingError: another process failed
        """
        before = {name: os.environ.get(name) for name in _VARIABLES}
        self._ended.clear()
        self._waited = False
        try:
            os.environ.update({**place, "LOCAL_RANK": "0"})
            self._start(command, count)
            threading.Thread(target=self._watch, args=(on_death,), daemon=True).start()
            yield
            self._wait(FAREWELL, lambda: all(process.poll() is not None for process in self.processes))
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            if (message := self.death()) is not None:
                raise TrainingError(message) from error
            raise
        finally:
            self._ended.set()
            for process in self.processes:
                process.kill()
                process.wait()
            self.processes = []
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _start(self, command: Sequence[str], count: int) -> None:
        # they must import the same code as this process, wherever it was started
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        with _ignoring_interrupts():
            for rank in range(1, count):
                environment = {**os.environ, "LOCAL_RANK": str(rank), "PYTHONPATH": path}
                self.processes.append(subprocess.Popen(command, env=environment))

    @property
    def failed(self) -> tuple[int, str] | None:
        """Exit code of the first process that was found to have failed, and a line about it."""
        for rank, process in enumerate(self.processes, start=1):
            if code := process.poll():
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return code, f"process {rank} of this machine's {len(self.processes) + 1} (counted from 0) {how}"
        return None

    def death(self) -> str | None:
        """The line about the process that failed, waiting for it a little; None if none has."""
        if self.processes and not self._waited:
            self._wait(GRACE, lambda: self.failed is not None)
            self._waited = True
        return None if self.failed is None else self.failed[1]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, UserError | KeyboardInterrupt | SystemExit | SIGTERMException):
            return
        # here a failure of another process shows only as a lost connection
        if (message := self.death()) is not None:
            _close(trainer, message, quiet=True)

    def _wait(self, seconds: float, done: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            time.sleep(POLL / 5)

    def _watch(self, on_death: Callable[[str], None]) -> None:
        while not self._ended.wait(POLL):
            if (failed := self.failed) is None:
                continue
            # gloo reports a lost connection at once, NCCL waits for minutes
            if self._ended.wait(GRACE):
                return
            code, message = failed
            on_death(message)
            for process in self.processes:
                process.kill()
            os._exit(code if code > 0 else 1)


def command(verb: str, config: Path, checkpoint: Path | None = None) -> list[str]:
    """The command line of another process of the same training."""
    line = [sys.executable, "-P", "-m", "bustseg.cli", verb, "--config", str(config)]
    line += ["--ckpt_path", str(checkpoint)] if checkpoint is not None else []
    return line + (["--debug"] if "--debug" in sys.argv else [])  # cli.main removes it before the verbs see it


def _environment(trainer: Trainer) -> LightningEnvironment | None:
    """The environment in which processes of a training find each other, if Lightning would start them."""
    strategy = trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    return environment if isinstance(environment, LightningEnvironment) else None


def _close(trainer: Trainer, message: str, quiet: bool = False) -> None:
    """End the training's run as failed, and say why."""
    from bustseg.runs.tracker import runs_logger

    logger = runs_logger(trainer)
    if logger is not None:
        logger.close_as_failed(message)
        logger.finalize("failed")  # this process ends without closing its run
    if not quiet:
        print_error(message)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let processes that start inside ignore Ctrl-C, which a terminal sends to all of them: the first one ends them."""
    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class OneProcessStops(Callback):
    """Only the first of several processes reacts to SIGINT and SIGTERM; the others follow it.

    Otherwise each could stop at a different point, and others would wait for it. Lightning's handler of SIGTERM, which
    communicates with the other processes at any point, can hang.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and not trainer.is_global_zero and _in_main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._heed(trainer)  # not in setup, since Lightning installs its own handler after it

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._heed(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._heed(trainer)

    def _heed(self, trainer: Trainer) -> None:
        if trainer.world_size > 1 and _in_main_thread():
            signal.signal(signal.SIGTERM, _stop if trainer.is_global_zero else signal.SIG_IGN)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SIGTERMException


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
