"""Take the pictures of the MLflow UI that the documentation shows: docs/img/ui-*.png.

    python benchmarks/ui_screenshots.py --experiment baselines

Starts `bustseg ui` on the store in use, opens each page in headless Chromium, and ends both again. Of a sweep's
experiment it takes the table of trials and their comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from PIL import Image

from bustseg.runs.tracker import open_store, tracking_uri
from bustseg.runs.view import view_link

CHROMIUM = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-allow-origins=*",
    "--hide-scrollbars",
)
BUSY = """(() => {
    const waiting = '[role=progressbar], [class*=spinner], [class*=Skeleton], [aria-busy=true]';
    const seen = item => item.offsetParent && item.getBoundingClientRect().top < innerHeight;
    return document.body.innerText.length < 200 || [...document.querySelectorAll(waiting)].some(seen);
})()"""
"""Whether a page is still drawing itself."""

HAS_PICTURE = "[...document.images].some(image => image.complete && image.naturalWidth > 300)"
"""Whether the picture of an artifact has arrived, for which MLflow's page shows no sign that it is waiting."""

HIDE_BUTTONS = """document.head.append(
    Object.assign(document.createElement('style'), {innerText: '.modebar {display: none}'}))"""
"""The buttons of a chart, which cover its curves, show only with a mouse over them; here there is none."""

TO_CURVES = """(() => {
    const search = document.querySelector('input[placeholder="Search metric charts"]');
    const value = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value');
    value.set.call(search, '(train|val)/(loss|dice_lesion)$');
    search.dispatchEvent(new Event('input', {bubbles: true}));
})()"""
"""Search for the curves that matter, as docs/how-to/track-runs.md says: a run's page sorts charts by the alphabet."""

HIDE_PATHS = """for (const item of document.querySelectorAll('*'))
    if (!item.children.length && /^(Path: )?(file|sqlite):/.test(item.textContent.trim())) item.textContent = '';"""
"""Where the store lies on the machine that takes the pictures is nobody's business."""

CLOSE_ASSISTANT = """for (const key of Object.keys(localStorage))
    if (key.includes('mlflow.assistant.panelOpen')) localStorage.setItem(key, 'false')"""

LIMIT = 300_000
"""Bytes that a picture in the documentation may have."""

PICTURES = ("panels/test.png", "curves/roc.png", "explain/cases.png", "model_card.md")
"""Artifacts worth a page of their own, where the run has them."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit("the UI ended by itself")
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"nothing answers at {url} after {seconds:.0f} s")


def choose_run(experiment: str, run_id: str | None) -> tuple[str, str]:
    """Ids of the experiment and of its newest tested run, else its newest."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(item.name for item in client.search_experiments())
        raise SystemExit(f"no experiment {experiment!r}: there are {names}")
    runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])
    if not runs:
        raise SystemExit(f"experiment {experiment!r} has no runs")
    tested = [run for run in runs if "test/dice_lesion" in run.data.metrics]
    return found.experiment_id, run_id or (tested or runs)[0].info.run_id


def artifacts_of(run_id: str) -> list[str]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri())

    def walk(folder: str | None = None) -> list[str]:
        return [
            path
            for item in client.list_artifacts(run_id, folder)
            for path in (walk(item.path) if item.is_dir else [item.path])
        ]

    return walk()


def children(experiment: str) -> list[str]:
    """Finished runs under the experiment's newest parent, such as the trials of a sweep."""
    import mlflow

    from bustseg.runs.tracker import PARENT_TAG

    client = mlflow.MlflowClient(tracking_uri())
    runs = client.search_runs([experiment], "attributes.status = 'FINISHED'", order_by=["attributes.start_time DESC"])
    parents = [run.data.tags[PARENT_TAG] for run in runs if PARENT_TAG in run.data.tags]
    return [run.info.run_id for run in runs if run.data.tags.get(PARENT_TAG) == (parents or [None])[0]] * bool(parents)


async def take(devtools: int, base: str, pages: dict[str, str], out: Path, seconds: float) -> None:
    """Photograph each page, as a browser shows it whose user has closed MLflow's assistant once."""
    async with aiohttp.ClientSession() as session:
        address = f"http://127.0.0.1:{devtools}/json/new?about:blank"
        async with session.put(address) as answer:
            socket_url = (await answer.json())["webSocketDebuggerUrl"]
        async with session.ws_connect(socket_url, max_msg_size=0) as page:
            ids = itertools.count(1)

            async def call(method: str, **params: Any) -> dict[str, Any]:
                number = next(ids)
                await page.send_json({"id": number, "method": method, "params": params})
                async for message in page:
                    content = message.json()
                    if content.get("id") == number:
                        if "error" in content:
                            raise SystemExit(f"Chromium: {content['error']['message']}")
                        return content["result"]
                raise SystemExit("Chromium ended")

            async def run(script: str) -> Any:
                return (await call("Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")

            async def show(url: str) -> None:
                await call("Page.navigate", url="about:blank")  # a change after the # alone is no new page
                await call("Page.navigate", url=url)
                await settle()

            async def settle() -> None:
                end = time.monotonic() + seconds
                calm = 0
                while calm < 6 and time.monotonic() < end:
                    await asyncio.sleep(0.5)
                    calm = 0 if await run(BUSY) else calm + 1

            await call("Emulation.setDeviceMetricsOverride", width=1600, height=1000, deviceScaleFactor=1, mobile=False)
            await show(f"{base}/#/experiments")
            await run(CLOSE_ASSISTANT)
            for name, target in pages.items():
                await show(base + target)
                end = time.monotonic() + seconds
                while ".png" in target and not await run(HAS_PICTURE) and time.monotonic() < end:
                    await asyncio.sleep(0.5)
                await run(HIDE_BUTTONS)
                if name == "metrics":
                    await run(TO_CURVES)
                    await settle()
                await run(HIDE_PATHS)
                image = await call("Page.captureScreenshot", format="png")
                path = out / f"ui-{name}.png"
                path.write_bytes(base64.b64decode(image["data"]))
                # this method keeps colours that are rare, such as those of outlines
                compress(path, method=Image.Quantize.MAXCOVERAGE)
                print(f"{path} {path.stat().st_size} bytes")


def compress(path: Path, limit: int = LIMIT, **options: Any) -> None:
    """Give a picture a palette: enough for a user interface, and a third of the bytes.

    Args:
        path: the picture
        limit: bytes that it may have; the palette is made smaller until it has no more
        options: of Pillow's ``quantize``
    """
    image = Image.open(path).convert("RGB")
    for colours in (256, 128, 64, 32):
        image.quantize(colours, dither=Image.Dither.NONE, **options).save(path, optimize=True)
        if path.stat().st_size <= limit:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="quickstart")
    parser.add_argument("--run", help="run id (default: the experiment's newest tested run)")
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--seconds", type=int, default=30, help="how long a page may take to draw itself")
    args = parser.parse_args()
    if args.chromium is None:
        raise SystemExit("no Chromium: name one with --chromium")
    open_store(tracking_uri())
    experiment, run = choose_run(args.experiment, args.run)
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    training = "workflowType=machine_learning"
    home = f"/#/experiments/{experiment}"
    pages = {
        "runs": view_link("", experiment),
        "charts": f"{view_link('', experiment)}&compareRunsMode=CHART",
        "run": f"{home}/runs/{run}?{training}",
        "metrics": f"{home}/runs/{run}/model-metrics?{training}",
    }
    if trials := children(experiment):
        # the page begins with the parallel coordinates of the parameters that differ
        chosen = f"runs={quote(json.dumps(trials))}&experiments={quote(json.dumps([experiment]))}"
        pages = {"runs": pages["runs"], "compare": f"/#/compare-runs?{chosen}&{training}"}
    there = [] if trials else artifacts_of(run)
    for artifact in PICTURES:
        if artifact in there:
            name = Path(artifact).with_suffix("").as_posix().replace("/", "-")
            pages[f"artifact-{name}"] = f"{home}/runs/{run}/artifacts/{artifact}?{training}"
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        devtools = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "bustseg.cli", "ui", "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        browser = subprocess.Popen(
            [args.chromium, *CHROMIUM, f"--user-data-dir={profile}", f"--remote-debugging-port={devtools}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(f"{base}/health", server)
            wait_for(f"http://127.0.0.1:{devtools}/json/version", browser)
            asyncio.run(take(devtools, base, pages, args.out, args.seconds))
        finally:
            for process in (browser, server):
                process.terminate()
                process.wait(timeout=30)


if __name__ == "__main__":
    main()
