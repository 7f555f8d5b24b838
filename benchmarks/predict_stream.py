"""`bustseg predict` over many images: constant memory, throughput, and nothing lost when it is killed.

Generates small speckle images, some of them broken, predicts them in a separate process with a model of three
operations (so that mainly reading, writing and bookkeeping are measured), kills that process once with SIGKILL, starts
the same command again, and checks the table: a row for every image, an error for every broken one.

    python benchmarks/predict_stream.py --n 10000
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.deploy.dark_model import write_dark_model

HEIGHT, WIDTH = 120, 160


def write_images(folder: Path, n: int, broken: set[int], seed: int = 0) -> None:
    """Speckle with a dark ellipse, 1000 per folder; the broken ones are truncated."""
    rng = np.random.default_rng(seed)
    grain = [rng.rayleigh(70, (HEIGHT, WIDTH)) for _ in range(16)]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(n):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir(parents=True)
        cx, cy = rng.uniform(0.3, 0.7) * WIDTH, rng.uniform(0.3, 0.7) * HEIGHT
        a, b = rng.uniform(10, 35, 2)
        dark = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
        speckle = np.roll(grain[number % 16], number * 37) + 90
        image = np.where(dark, 0.2 * speckle, speckle).clip(0, 255).astype(np.uint8)
        content = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].tobytes()
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.write_bytes(content[: len(content) // 2] if number in broken else content)


def rows_in(table: Path) -> int:
    return max(0, table.read_bytes().count(b"\n") - 1) if table.is_file() else 0


def watch(command: list[str], table: Path, kill_at: int | None) -> tuple[list[tuple[float, int, float]], int]:
    """Samples of (seconds, rows, MB of resident memory) until the command ends or is killed, and its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory, start, samples = psutil.Process(process.pid), time.perf_counter(), []
    while process.poll() is None:
        rows = rows_in(table)
        try:
            samples.append((time.perf_counter() - start, rows, memory.memory_info().rss / 2**20))
        except psutil.NoSuchProcess:
            break
        if kill_at is not None and rows >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.1)
    return samples, process.wait()


def rate(samples: list[tuple[float, int, float]]) -> float:
    """Images per second from the first new row to the last sample."""
    working = [sample for sample in samples if sample[1] > samples[0][1]]
    return (working[-1][1] - working[0][1]) / (working[-1][0] - working[0][0])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--n", type=int, default=10000, help="images (default 10000)")
    arguments.add_argument("--broken", type=int, default=5, help="number of broken ones (default 5)")
    arguments.add_argument("--kill_at", type=float, default=0.3, help="share after which it is killed (default 0.3)")
    arguments.add_argument("--model", help="another model (default: dark pixels are lesions, 64 x 64)")
    args, rest = arguments.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        broken = {(k + 1) * args.n // (args.broken + 1) for k in range(args.broken)}
        write_images(root / "images", args.n, broken)
        model = args.model or str(write_dark_model(root / "model"))
        out = root / "out"
        table = out / "predictions.csv"
        command = [sys.executable, "-m", "bustseg.cli", "predict", str(root / "images"), "--model", model]
        command += ["--out", str(out), *rest]
        first, killed = watch(command, table, int(args.kill_at * args.n))
        whole = rows_in(table)
        second, code = watch(command, table, None)
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        wrong = {int(Path(row["image"]).stem) for row in rows if row["error"]}
        masks = sum(1 for _ in (out / "masks").rglob("*.png"))
        half = (whole + args.n) // 2
        start = [sample for sample in second if sample[1] > whole]  # the model has been loaded
        print(
            json.dumps(
                {
                    "images": args.n,
                    "killed after rows": whole,
                    "exit codes": [killed, code],
                    "rows": len(rows),
                    "images without a row": args.n - len({row["image"] for row in rows}),
                    "errors": len(wrong),
                    "errors are the broken files": wrong == broken,
                    "masks": masks,
                    "images/s, first process": round(rate(first), 1),
                    "images/s, second process": round(rate(second), 1),
                    "max RSS MB, first process": round(max(sample[2] for sample in first), 1),
                    "max RSS MB, second process, first half": round(max(s[2] for s in start if s[1] <= half), 1),
                    "max RSS MB, second process, second half": round(max(s[2] for s in start if s[1] > half), 1),
                },
                indent=1,
            )
        )
    lost = len(rows) != args.n or wrong != broken or masks != args.n - len(broken) or killed != -signal.SIGKILL
    sys.exit(1 if lost or code != 1 else 0)


if __name__ == "__main__":
    main()
