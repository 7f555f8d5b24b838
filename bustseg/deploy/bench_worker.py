"""One contestant of ``bustseg bench``, in a separate process, so that its memory and start-up can be measured.

Started as ``python -m bustseg.deploy.bench_worker``. Reads one job and then commands as lines of JSON from standard
input, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bustseg.data.sources import read_native
from bustseg.deploy.predictor import Predictor


def _predictor(job: dict[str, Any]) -> Predictor:
    size = (job["size"][0], job["size"][1])
    if job["backend"] in ("eager", "compiled"):
        import torch

        from bustseg.deploy.backends import TorchBackend
        from bustseg.runs.checkpoint import load_task

        torch.set_num_threads(job["threads"])
        task = load_task(Path(job["model"]))
        return Predictor(task, image_size=size, backend=TorchBackend(task, compiled=job["backend"] == "compiled"))
    return Predictor(job["model"], threads=job["threads"])


class _Worker:
    def __init__(self, job: dict[str, Any]) -> None:
        self.files = [Path(file) for file in job["files"]]
        self.predictor = _predictor(job)
        self.random = np.random.default_rng(0).integers(0, 256, (64, 1, *self.predictor.image_size), dtype=np.uint8)
        self._next = 0
        self.end_to_end()  # start-up of a new process, up to the first mask
        self.start_up = time.time() - job["started"]

    def end_to_end(self) -> None:
        """From a file to a mask of the image's own size."""
        self.predictor(read_native(self.files[self._next % len(self.files)]))
        self._next += 1

    def network(self, batch: int) -> None:
        """From prepared images to logits."""
        self.predictor.backend(self.random[:batch])

    def round(self, batches: list[int], calls: int) -> dict[str, Any]:
        """Seconds of each call, some calls of every kind."""
        return {
            "end_to_end": [_seconds(self.end_to_end) for _ in range(calls)],
            "network": {
                str(batch): [_seconds(lambda: self.network(batch)) for _ in range(calls)]  # noqa: B023
                for batch in batches
            },
        }

    def logits(self, images: str, out: str) -> dict[str, Any]:
        """Write the logits of prepared images, both as ``.npy``."""
        prepared = np.load(images)
        np.save(out, np.concatenate([self.predictor.backend(image[None, None]) for image in prepared])[:, 0])
        return {}

    @staticmethod
    def memory() -> dict[str, Any]:
        """Peak memory of the process in bytes."""
        status = Path("/proc/self/status")
        if status.is_file():  # getrusage also counts what the parent held when it forked
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return {"bytes": 1024 * int(line.split()[1])}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"bytes": peak if sys.platform == "darwin" else peak * 1024}


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _serve(answers: TextIO) -> None:
    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        worker = _Worker(json.loads(sys.stdin.readline()))
        answer({"start_up_s": worker.start_up})
        for line in sys.stdin:
            command = json.loads(line)
            answer(getattr(worker, command.pop("do"))(**command))
    except Exception as error:  # the reason goes into the contestant's row
        answer({"error": " ".join(str(error).split())[:300] or type(error).__name__})


if __name__ == "__main__":
    # libraries may print to standard output, so answers need a separate channel
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(channel)
