"""Latency and memory of `bustseg serve` with one client and with 200 concurrent clients.

    python benchmarks/serve_load.py          # writes its table into docs/how-to/serve.md

Starts the server with the model in the box in a separate process, and sends requests over the loopback: first from one
client, then from 200 at once, several times, every tenth with a file that is not an image. A client that gets 429 waits
and tries again, and its time counts from its first request.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import re
import subprocess
import sys
import time

import httpx
import numpy as np
import psutil
from measured import Measurement, add_page, write
from PIL import Image

from bustseg.data.phantom import draw_phantom


def picture(seed: int) -> bytes:
    """A phantom as PNG."""
    image, _ = draw_phantom(np.random.default_rng(seed), "benign")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


async def ask(client: httpx.AsyncClient, content: bytes) -> tuple[float, int, int]:
    """Seconds, final status, and how often the client was told to wait."""
    start, waits = time.perf_counter(), 0
    while True:
        answer = await client.post("/predict?mask=rle", files={"files": ("a.png", content)})
        if answer.status_code != 429:
            return time.perf_counter() - start, answer.status_code, waits
        waits += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]) * random.uniform(0.5, 1.5))


async def load(url: str, contents: list[bytes], clients: int, rounds: int, memory: psutil.Process) -> list[str]:
    """The table's lines."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        for k in range(3):
            await ask(client, contents[k])
        rest = sorted([(await ask(client, contents[k % len(contents)]))[0] for k in range(20)])
        lines = [
            "| | median | 95 % | statuses | told to wait | memory of the server |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        resident = memory.memory_info().rss / 1e6
        lines.append(
            f"| one client | {1000 * rest[10]:.0f} ms | {1000 * rest[18]:.0f} ms | 20 x 200 | 0 | {resident:.0f} MB |"
        )
        for number in range(1, rounds + 1):
            sent = [b"no image" if k % 10 == 9 else contents[k % len(contents)] for k in range(clients)]
            start = time.perf_counter()
            answers = await asyncio.gather(*(ask(client, content) for content in sent))
            took = time.perf_counter() - start
            times = np.array([seconds for seconds, status, _ in answers if status == 200])
            statuses = {status: sum(one[1] == status for one in answers) for status in {one[1] for one in answers}}
            words = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            waits = sum(one[2] for one in answers)
            lines.append(
                f"| {clients} at once, round {number} ({clients / took:.1f} a second) | {np.median(times):.1f} s | "
                f"{np.percentile(times, 95):.1f} s | {words} | {waits} | {memory.memory_info().rss / 1e6:.0f} MB |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, help="concurrent clients (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    add_page(parser, "docs/how-to/serve.md")
    options = parser.parse_args()
    measurement = Measurement()
    command = [sys.executable, "-m", "bustseg.cli", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://[^/\s]+", server.stdout.readline())
        assert found, "the server does not start"
        contents = [picture(seed) for seed in range(8)]
        lines = asyncio.run(load(found[0], contents, options.clients, options.rounds, psutil.Process(server.pid)))
        height, width = np.asarray(Image.open(io.BytesIO(contents[0]))).shape
        told = (
            f"`python benchmarks/serve_load.py --clients {options.clients} --rounds {options.rounds}`: the model in "
            f"the box, phantoms of {width} x {height}, every tenth file no image, clients and server on one "
            f"machine; {measurement.told()}."
        )
        write(options.page, "python benchmarks/serve_load.py", [*lines, "", told])
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
