"""The processes of one training: how they start, and what becomes of the others when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bustseg.errors import TrainingError, UserError
from bustseg.progress import error_console

_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What tells a process its place; Lightning would take a process where it stays set for one of a finished training."""

POLL, GRACE, FAREWELL = 0.5, 10.0, 60.0
"""Seconds: between looks at the other processes, for this one to see that one died, for the others to end."""


class ProcessLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine with the arguments of one verb, and ends what they leave.

    Lightning's own repeats ``sys.argv``: a verb may be part of another command, and ``latest`` may mean another run by
    the time that the others look. It also kills this process when another fails, before the run can be closed.

    Args:
        original: the strategy's own launcher
        args: arguments of the command line, with the verb first
        on_death: called with one line when another process died and this one hangs waiting for it
    """

    def __init__(
        self, original: _SubprocessScriptLauncher, args: Sequence[str], on_death: Callable[[str], None]
    ) -> None:
        super().__init__(original.cluster_environment, original.num_processes, original.num_nodes)
        debug = ["--debug"] if "--debug" in sys.argv else []  # cli.main keeps it from the verbs
        self.command = [sys.executable, "-P", "-m", "bustseg.cli", *args, *debug]
        self.on_death = on_death
        self._ended = threading.Event()

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Run ``function`` here while the other processes run theirs.

        Raises:
            TrainingError: another process failed
        """
        if self.cluster_environment.creates_processes_externally:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        before = {name: os.environ.get(name) for name in _VARIABLES}
        self._ended.clear()
        try:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            self._call_children_scripts()
            _set_num_threads_if_needed(num_processes=self.num_processes)
            threading.Thread(target=self._watch, daemon=True).start()
            result = function(*args, **kwargs)
            self._wait(FAREWELL, lambda: all(process.poll() is not None for process in self.procs))
            return result
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            # a lost connection is all that is seen here of a failure there
            self._wait(GRACE, lambda: self.failed is not None)
            if self.failed is not None:
                raise TrainingError(self.failed[1]) from error
            raise
        finally:
            self._ended.set()
            self.kill(signal.SIGKILL)
            for process in self.procs:
                process.wait()
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _call_children_scripts(self) -> None:
        """What Lightning's launcher does, with another command."""
        self.procs = []
        os.environ["MASTER_ADDR"] = self.cluster_environment.main_address
        os.environ["MASTER_PORT"] = str(self.cluster_environment.main_port)
        os.environ["NODE_RANK"] = str(self.cluster_environment.node_rank())
        os.environ["LOCAL_RANK"] = "0"
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        # they import what this process imports, wherever it was started from
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        with _ignoring_interrupts():
            for rank in range(1, self.num_processes):
                environment = {**os.environ, "LOCAL_RANK": str(rank), "PYTHONPATH": path}
                self.procs.append(subprocess.Popen(self.command, env=environment))

    @property
    def failed(self) -> tuple[int, str] | None:
        """Exit code of the first process found to have failed, and a line that says so."""
        for rank, process in enumerate(self.procs, start=1):
            if code := process.poll():
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return code, f"process {rank} of this machine's {self.num_processes} (counted from 0) {how}"
        return None

    def _wait(self, seconds: float, done: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            time.sleep(POLL / 5)

    def _watch(self) -> None:
        while not self._ended.wait(POLL):
            if (failed := self.failed) is None:
                continue
            # gloo reports a lost connection at once, NCCL waits for minutes
            if self._ended.wait(GRACE):
                return
            code, message = failed
            self.on_death(message)
            self.kill(signal.SIGKILL)
            os._exit(code if code > 0 else 1)


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


def start_processes_with(trainer: Trainer, args: Sequence[str]) -> None:
    """Let a trainer of several processes start them with ``args`` (the verb first) instead of ``sys.argv``."""

    def close(message: str) -> None:
        from bustseg.tracking import Tracker

        if isinstance(trainer.logger, Tracker):
            trainer.logger.close_as_failed(message)
        error_console.print(f"[bold red]error:[/] {message}", highlight=False)

    strategy = trainer.strategy
    if isinstance(strategy.launcher, _SubprocessScriptLauncher):
        strategy._launcher = ProcessLauncher(strategy.launcher, args, close)


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
