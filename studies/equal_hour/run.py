"""Give one contender its hour on one core.

    python -m studies.equal_hour.run NAME --data hour/data --out hour [--seconds 3600] [--python other/bin/python]

The contender's process is bound to one core and one thread; its output goes to ``OUT/NAME/log.txt``.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONTENDERS = {"bustseg": "bustseg_recipe", "plain": "plain", "monai": "monai_unet", "nnunet": "nnunet"}


def run(name: str, data: Path, out: Path, seconds: float, python: str, core: int | None = None) -> int:
    """Run a contender to its end; returns its exit code."""
    own = out / name
    own.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **threads, "PYTHONPATH": path, "EQUAL_HOUR_STARTED": str(time.time())}
    module = f"studies.equal_hour.{CONTENDERS[name]}"
    command = [
        python,
        "-m",
        module,
        "--data",
        str(data.resolve()),
        "--out",
        str(own.resolve()),
        "--seconds",
        str(seconds),
    ]
    with (own / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0)) if core is None else core})
        return process.wait()


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--core", type=int, help="number of the core (default: the last)")
    args = parser.parse_args()
    print(f"{args.name} on {platform.processor() or platform.machine()}, {args.seconds:.0f} s", flush=True)
    sys.exit(run(args.name, args.data, args.out, args.seconds, args.python, args.core))


if __name__ == "__main__":
    main()
