"""Several workers on one machine: the same command is started for each, with its share of the cores and one GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bustseg.progress import error_console
from bustseg.sweep.study import OWNER, SharedStudy

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

STOP_SECONDS = 60
"""Time that a stopped worker has to close its run."""


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """Threads per worker: its share of the cores, at least one, and at most what the user allows."""
    share = max(1, cores() // workers)
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(allowed)) if allowed.isdigit() and int(allowed) else share


def gpus() -> list[str]:
    """The GPUs that this process may use, as in ``CUDA_VISIBLE_DEVICES``."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def environment(index: int, workers: int, devices: list[str]) -> dict[str, str]:
    """Environment of worker ``index``: its threads, and its GPU if there is one."""
    own = dict(os.environ)
    own |= dict.fromkeys(THREAD_VARIABLES, str(threads_each(workers)))
    if devices:
        own["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    return own


def follow_supervisor() -> None:
    """End this worker when its supervisor has ended, which closes standard input."""

    def wait() -> None:
        # not through sys.stdin, whose lock this thread would still hold at interpreter exit
        os.read(stdin, 1)
        os._exit(130)

    stdin = sys.stdin.fileno()

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def termination_is_interrupt() -> Iterator[None]:
    """Make SIGTERM (sent by containers and SLURM) act like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Workers:
    """Worker processes that run the trials of one study.

    Args:
        args: the sweep's own arguments, without ``--workers`` and ``--resume``
        count: number of workers
        study: their study
        use_gpus: assign GPUs to the workers
    """

    def __init__(self, args: list[str], count: int, study: SharedStudy, use_gpus: bool) -> None:
        self.command = [sys.executable, "-m", "bustseg.cli", "sweep", *args, "--resume"]
        self.count, self.study = count, study
        self.devices = gpus() if use_gpus else []
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, index: int) -> None:
        """Start worker ``index``."""
        self.running[index] = subprocess.Popen(
            [*self.command, "--worker_of", str(os.getpid())],
            # when it closes, the worker knows that its supervisor has ended
            stdin=subprocess.PIPE,
            env=environment(index, self.count, self.devices),
            # Ctrl-C reaches the workers only through this process
            start_new_session=True,
        )

    def run(self) -> int:
        """Wait until all workers have ended; returns how many ended with an error.

        A worker that was killed during a trial is restarted. An error of one does not stop the others.
        """
        failed = 0
        for index in range(self.count):
            self.start(index)
        try:
            while self.running:
                for index, worker in list(self.running.items()):
                    if (code := worker.poll()) is None:
                        continue
                    del self.running[index]
                    if code == 0:
                        continue
                    if code < 0:
                        name = signal.Signals(-code).name
                        error_console.print(f"[yellow]warning:[/] worker {index} was killed ({name})", highlight=False)
                        if self._had_a_trial(worker.pid) and self.study.open_trials():
                            self.start(index)
                            continue
                    failed += 1
                time.sleep(0.2)
        except BaseException:
            self.stop()
            raise
        return failed

    def _had_a_trial(self, pid: int) -> bool:
        return any(trial.user_attrs.get(OWNER, {}).get("pid") == pid for trial in self.study.trials())

    def stop(self) -> None:
        """Stop the workers as Ctrl-C does, and kill those that do not respond."""
        for worker in self.running.values():
            # not SIGINT, which processes started in the background by a shell ignore
            worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.running.values():
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.running.clear()
