"""Runs commands in forks of a process that has everything imported, so that no command pays for its imports.

That process is not the tests' own: torch computes no gradients in a fork of a process that has computed some, and
threads that tests have started do not survive a fork.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import importlib
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import cloudpickle

REPOSITORY = Path(__file__).resolve().parents[1]
LENGTH = 8
"""Bytes of a request's length, which stands before it."""

LATE_IMPORTS = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking._tracking_service.utils")
"""Modules that a command imports when it first needs them."""


@dataclass(frozen=True)
class Limits:
    """What a command may use of the machine; it fails when it asks for more.

    Attributes:
        data_bytes: memory beyond what its process has before it begins
        cpu_seconds: time of all its threads
    """

    data_bytes: int
    cpu_seconds: int

    def apply(self) -> None:
        """Bound this process."""
        data = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[5])
        resource.setrlimit(resource.RLIMIT_DATA, (data + self.data_bytes,) * 2)
        # the second is a SIGKILL, for what catches the first
        resource.setrlimit(resource.RLIMIT_CPU, (self.cpu_seconds, self.cpu_seconds + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass(frozen=True)
class Request:
    """A command to run.

    Attributes:
        folder: where it runs
        args: its words, without ``bustseg``
        log: what it prints goes to files of this name with the suffixes ``.out`` and ``.err``; its exit code, as
            :func:`os.wait4` gives it, the most memory that it has held beyond this process's, in KiB, and the seconds
            of its threads to ``.status``
        environment: all of its environment variables
        patch: changes its process before it runs
        limits: what it may use; None for no bounds
    """

    folder: Path
    args: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    patch: Callable[[], None] | None = None
    limits: Limits | None = None


class Launcher:
    """The process in whose forks commands run; it ends with this one."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.launcher"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads do not survive a fork
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.stop)

    def start(self, request: Request) -> int:
        """Start a command; returns its process, which leads a group of its own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        content = cloudpickle.dumps(request)
        self._process.stdin.write(len(content).to_bytes(LENGTH, "big") + content)
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that starts the commands has ended; its message stands above"
        return int(answer)

    def stop(self) -> None:
        """End the process; commands that it has started go on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def launcher() -> Launcher:
    """The launcher of this process, started when it is first needed."""
    return Launcher()


def serve() -> None:
    """Start what is asked for at the standard input, until that is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors end by themselves
    requests = sys.stdin.buffer
    while length := requests.read(LENGTH):
        content = requests.read(int.from_bytes(length, "big"))
        if os.fork() == 0:
            try:
                supervise(cloudpickle.loads(content), answers)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)  # whatever happens, or two processes would wait for requests


set_by_imports: dict[str, str] = {}
"""Environment variables that importing the package sets where the user has not, such as MLflow's number of tries."""


def import_everything() -> None:
    """Import the package and what it imports late."""
    before = dict(os.environ)
    import bustseg

    modules = [module.name for module in pkgutil.walk_packages(bustseg.__path__, "bustseg.")]
    for name in (*modules, *LATE_IMPORTS):
        if not name.endswith("__main__"):
            with suppress(ImportError):
                importlib.import_module(name)
    set_by_imports.update({name: value for name, value in os.environ.items() if before.get(name) != value})


def supervise(request: Request, answers: TextIO) -> None:
    """Run one command and note how it ended; called in a fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    held_kib = os.sysconf("SC_PAGE_SIZE") // 1024 * int(Path("/proc/self/statm").read_text().split()[1])
    pid = os.fork()
    if pid == 0:
        run(request)
    with suppress(OSError):
        os.setpgid(pid, pid)
    print(pid, file=answers, flush=True)
    _, status, usage = os.wait4(pid, 0)
    temporary = request.log.with_suffix(".new")
    # what it holds when it begins is shared with this process, and no cost of the command
    temporary.write_text(f"{status} {usage.ru_maxrss - held_kib} {usage.ru_utime + usage.ru_stime}")
    temporary.replace(request.log.with_suffix(".status"))
    os._exit(0)


def run(request: Request) -> None:
    """Be the command; does not return."""
    code = 70
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update({**set_by_imports, **request.environment})
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, name, flags in (
            (0, Path(os.devnull), os.O_RDONLY),
            (1, request.log.with_suffix(".out"), writing),
            (2, request.log.with_suffix(".err"), writing),
        ):
            os.dup2(os.open(name, flags, 0o644), number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
        faulthandler.register(signal.SIGUSR1, file=2)
        if request.patch is not None:
            request.patch()
        if request.limits is not None:
            request.limits.apply()
        from bustseg.cli import main

        code = main(list(request.args))
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    # pickled requests name this module, which is not to be there twice
    importlib.import_module("tests.launcher").serve()
