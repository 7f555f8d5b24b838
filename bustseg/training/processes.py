"""The processes of one training: how they start, and what becomes of the others when one of them ends."""

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
from bustseg.progress import error_console

if TYPE_CHECKING:
    from bustseg.experiment import Experiment

_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What tells a process its place; Lightning would take a process where it stays set for one of a finished training."""

POLL, GRACE, FAREWELL = 0.5, 10.0, 60.0
"""Seconds: between looks at the other processes, for this one to see that one died, for the others to end."""


class OtherProcesses(Callback):
    """Starts the other processes of this machine with the same experiment, and ends what they leave.

    Lightning's own launcher repeats ``sys.argv``, but a training may be part of another command or of a notebook, and
    ``latest`` may mean another run by the time that the others look. It also kills this process when another fails,
    before the run can be closed. So this takes the launcher's place in the way that Lightning documents for it
    (:class:`lightning.pytorch.plugins.environments.LightningEnvironment`): a process whose environment has
    ``LOCAL_RANK`` starts no others.

    As a callback it says of a lost connection which process died.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._ended = threading.Event()
        self._waited = False

    @contextmanager
    def started(self, trainer: Trainer, verb: str, experiment: Experiment, checkpoint: Path | None) -> Iterator[None]:
        """While a trainer works, run the others, if it wants several processes and nobody else starts them.

        Args:
            trainer: the trainer
            verb: ``fit``, ``validate`` or ``test``
            experiment: what all processes run
            checkpoint: what the verb begins with

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
        """While this process works, run ``command`` once for each of the other ``count`` - 1.

        Args:
            command: of one process
            count: processes of this machine, this one among them
            place: environment variables that tell a process about all of them
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
        # they import what this process imports, wherever it was started from
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        with _ignoring_interrupts():
            for rank in range(1, count):
                environment = {**os.environ, "LOCAL_RANK": str(rank), "PYTHONPATH": path}
                self.processes.append(subprocess.Popen(command, env=environment))

    @property
    def failed(self) -> tuple[int, str] | None:
        """Exit code of the first process found to have failed, and a line that says so."""
        for rank, process in enumerate(self.processes, start=1):
            if code := process.poll():
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return code, f"process {rank} of this machine's {len(self.processes) + 1} (counted from 0) {how}"
        return None

    def death(self) -> str | None:
        """The line on the process that failed, for which an error here waits a little; None if none has."""
        if self.processes and not self._waited:
            self._wait(GRACE, lambda: self.failed is not None)
            self._waited = True
        return None if self.failed is None else self.failed[1]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, UserError | KeyboardInterrupt | SystemExit | SIGTERMException):
            return
        # a lost connection is all that is seen here of a failure there
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
    return line + (["--debug"] if "--debug" in sys.argv else [])  # cli.main keeps it from the verbs


def _environment(trainer: Trainer) -> LightningEnvironment | None:
    """Where processes of one training find each other, if it is Lightning's to start them."""
    strategy = trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    return environment if isinstance(environment, LightningEnvironment) else None


def _close(trainer: Trainer, message: str, quiet: bool = False) -> None:
    """End the training's run as failed, and say why."""
    from bustseg.runs.tracker import runs_logger

    logger = runs_logger(trainer)
    if logger is not None:
        logger.close_as_failed(message)
        logger.finalize("failed")  # this process ends without its own farewell
    if not quiet:
        error_console.print(f"[bold red]error:[/] {message}", highlight=False)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let processes that start here ignore Ctrl-C, which a terminal sends to all of them: the first one ends them."""
    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class OneProcessStops(Callback):
    """Of several processes only the first heeds SIGINT and SIGTERM, wherever the signal went; the others follow it.

    Otherwise each would stop at another place, where the next one waits for it. Lightning's handler of SIGTERM, which
    talks to the other processes in the middle of whatever they do, can hang.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and not trainer.is_global_zero and _in_main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._heed(trainer)  # here and not in setup: Lightning sets its own handler in between

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
