"""Take a picture of the top of a page that bustseg has written, for the documentation.

    python benchmarks/page_pictures.py comparison/compare.html docs/img/compare.png
    python benchmarks/page_pictures.py predictions/gallery.html docs/img/gallery.png --height 620

Needs Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright
from ui_screenshots import compress

LIMIT = 200_000
"""Bytes that the picture may have."""


def take(page: Path, picture: Path, width: int, height: int, chromium: str) -> None:
    """Photograph the first ``height`` pixels of a page that is ``width`` pixels wide."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.goto(page.resolve().as_uri(), wait_until="load")
        tab.screenshot(path=picture)
        browser.close()
    compress(picture, LIMIT, kmeans=2)  # it keeps the tint of large areas, which is close to grey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="HTML file")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--width", type=int, default=1200, help="pixels")
    parser.add_argument("--height", type=int, default=900, help="pixels")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    args = parser.parse_args()
    if args.chromium is None:
        raise SystemExit("no Chromium: name one with --chromium")
    take(args.page, args.picture, args.width, args.height, args.chromium)
    print(f"{args.picture} {args.picture.stat().st_size} bytes")


if __name__ == "__main__":
    main()
