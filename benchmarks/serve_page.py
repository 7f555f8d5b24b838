"""Take the documentation's pictures of the page, and measure the time from choosing a file to its outline.

    python benchmarks/serve_page.py                 # pictures into docs/img, times into docs/how-to/serve.md
    python benchmarks/serve_page.py --no-pictures

Starts `bustseg serve` with the model in the box, drives its page in headless Chromium with phantoms, and stops both.
The first image after the start of server and browser is cold; those that follow are warm.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import Measurement, add_page, write
from PIL import Image
from playwright.sync_api import sync_playwright

from bustseg.data.phantom import write_phantoms

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run")
OUTLINES = "performance.getEntriesByName('outline').map(one => one.duration)"
SETTLED = """document.querySelector('#busy').textContent === ''
    && ![...document.querySelectorAll('#list .what')].some(e => /waiting|sending|segmenting/.test(e.textContent))"""


def until(page: Any, condition: str) -> Any:
    """Wait for a JavaScript condition."""
    end = time.monotonic() + 120
    while not (value := page.evaluate(condition)):
        if time.monotonic() > end:
            raise TimeoutError(condition)
        time.sleep(0.02)
    return value


def picture(page: Any, out: Path, name: str) -> None:
    """Write a screenshot as PNG with 256 colours, which has a third of the size."""
    path = out / f"{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def times(page: Any, files: list[Path]) -> list[float]:
    """Seconds from a chosen file to its outline on the screen, one file after the other."""
    taken = []
    for file in files:
        known = len(page.evaluate(OUTLINES))
        start = time.perf_counter()
        page.set_input_files("#picker", str(file))
        until(page, f"({OUTLINES}).length > {known}")
        taken.append(time.perf_counter() - start)
        until(page, SETTLED)
        page.click("#clear")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/img"), help="folder of the pictures")
    parser.add_argument("--n", type=int, default=12, help="number of files to measure (default 12)")
    parser.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True, help="also take the pictures"
    )
    add_page(parser, "docs/how-to/serve.md")
    options = parser.parse_args()
    measurement = Measurement()
    folder = Path(tempfile.mkdtemp())
    root = write_phantoms(folder / "phantoms", n=40, seed=5)
    files = sorted(path for path in root.glob("*/*).png"))
    command = [
        sys.executable,
        "-m",
        "bustseg.cli",
        "serve",
        "--port",
        "0",
        "--corrections",
        str(folder / "corrections"),
    ]
    begun = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "the server does not start"
        starting = time.perf_counter() - begun
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))
            page = browser.new_page(viewport={"width": 1360, "height": 860})
            page.goto(found.group(0))
            until(page, "document.documentElement.dataset.ready")
            first, *rest = times(page, files[: options.n])
            lines = [
                "| | |",
                "| --- | --- |",
                f"| from the command to the page's address | {starting:.2f} s |",
                f"| from a chosen file to its outline on the screen: first image (cold) | {first:.2f} s |",
                f"| the {len(rest)} that follow (warm): median, longest | {statistics.median(rest):.2f} s, "
                f"{max(rest):.2f} s |",
                "",
                f"`python benchmarks/serve_page.py --n {options.n}`: phantoms, the model in the box, Chromium "
                f"{browser.version} and server together; {measurement.told()}.",
            ]
            write(options.page, "python benchmarks/serve_page.py", lines)
            if not options.pictures:
                return
            page.set_input_files("#picker", [str(file) for file in files[:9]])
            until(page, "document.querySelectorAll('#list .item').length === 9")
            until(page, SETTLED)
            picture(page, options.out, "serve-page")
            page.click("[data-tool=brush]")
            box = page.locator("#canvas").bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.45
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x + 60, y + 40, steps=8)
            page.mouse.up()
            page.fill("#who", "A. Reader")
            page.click("#accept")
            until(page, "document.querySelector('#saved').textContent.startsWith('Saved')")
            page.click("#theme")
            time.sleep(0.3)
            picture(page, options.out, "serve-correct-dark")
            page.click("#theme")
            page.set_viewport_size({"width": 820, "height": 1100})
            page.click("#look-first")
            time.sleep(0.5)
            picture(page, options.out, "serve-tablet")
            browser.close()
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
