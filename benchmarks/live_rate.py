"""Frames per second of `bustseg live` and `bustseg predict clip.mp4` with the model in the box.

    python benchmarks/live_rate.py                    # the table, into docs/how-to/clips-and-live.md
    python benchmarks/live_rate.py --picture docs/img/live.png     # and a picture of the page

Clips are moving phantoms with the stated size and rate; no page is open unless a picture is taken.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
from measured import Measurement, add_page, write

from bustseg.box import boxed_model
from bustseg.data.clips import Clip
from bustseg.data.images import read_grey
from bustseg.data.phantom import write_phantoms
from bustseg.deploy.clips import follow, outlined
from bustseg.deploy.predictor import Predictor
from bustseg.live.stream import Frames, Live, predictors_of


def write_clip(path: Path, image: np.ndarray, rate: float, seconds: float) -> Path:
    """Frames of the image, moving back and forth."""
    height, width = image.shape
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (width, height))
    for k in range(round(rate * seconds)):
        moved = np.roll(image, round(12 * np.sin(k / rate * 2)), axis=1)
        writer.write(cv2.cvtColor(moved, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def measure(path: Path, predictors: list[Predictor], pace: bool = True) -> tuple[float, int, int, float]:
    """Frames shown per second, frames dropped and read, median milliseconds from frame to outline."""
    live = Live(Frames(str(path), pace=pace), predictors)
    start = time.perf_counter()
    live.start()
    delays, number = [], 0
    while (found := live.shown.after(number)) is not None:
        number, shown = found
        delays.append(shown.milliseconds)
    took = time.perf_counter() - start
    live.stop()
    return live.drawn / took, live.dropped, live.read, float(np.median(delays))


def picture(path: Path, clip: Path, predictors: list[Predictor]) -> None:
    """Take a screenshot of the page, and print the rate with one browser on the same machine."""
    import uvicorn
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from bustseg.live.app import create_app
    from bustseg.serve.command import listen
    from bustseg.serve.settings import Settings

    live = Live(Frames(str(clip), repeat=True), predictors)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(live, Settings(), "the model in the box"), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    live.start()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        time.sleep(6)
        print("with the page:", " ".join(page.inner_text("#values").split()))
        page.screenshot(path=path)
        browser.close()
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    live.stop()
    server.should_exit = True
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each clip (default 6)")
    parser.add_argument("--picture", type=Path, help="write a screenshot of the page")
    add_page(parser, "docs/how-to/clips-and-live.md")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    root = write_phantoms(folder / "phantoms", n=8, seed=5)
    image = read_grey(sorted(path for path in root.glob("malignant/*).png"))[0])
    predictor = Predictor(boxed_model())
    kinds = {"with": predictors_of(str(boxed_model())), "without": predictors_of(str(boxed_model()), mirror=False)}
    for one in (predictor, *(one for predictors in kinds.values() for one in predictors)):
        one(image)
    measurement = Measurement()
    lines = ["| mirror image | clip | shown a second | dropped | frame to outline |", "| --- | --- | --- | --- | --- |"]
    for size, rate in (((640, 480), 25), ((640, 480), 60), ((1024, 768), 25), ((1024, 768), 60)):
        clip = write_clip(folder / f"{size[0]}_{rate}.avi", cv2.resize(image, size), rate, options.seconds)
        for kind, predictors in kinds.items():
            shown, dropped, read, delay = measure(clip, predictors)
            what = f"{kind} | {size[0]} x {size[1]}, {rate} a second"
            lines.append(f"| {what} | {shown:.1f} | {dropped} of {read} | {delay:.0f} ms |")
            print(lines[-1], flush=True)
    clip = folder / "640_60.avi"
    start = time.perf_counter()
    number = sum(1 for _, frame, found in follow(Clip.open(clip), predictor) if outlined(frame, found) is not None)
    rate = number / (time.perf_counter() - start)
    lines += [
        "",
        f"`predict` outlined {rate:.1f} frames of 640 x 480 a second (every one of {number}, as fast as it can).",
        "",
        f"`python benchmarks/live_rate.py --seconds {options.seconds:g}`; {measurement.told()}.",
    ]
    write(options.page, "python benchmarks/live_rate.py", lines)
    if options.picture:
        picture(options.picture, folder / "640_25.avi", kinds["with"])
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
