"""Write a benchmark's results into a page of the documentation, so that no number is typed by hand.

A page has the marks ``<!-- made by COMMAND -->`` and ``<!-- end of what COMMAND makes -->``; the text between them is
replaced.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bustseg.deploy.backends import cores
from bustseg.deploy.bench import machine

REPOSITORY = Path(__file__).resolve().parents[1]


class Measurement:
    """Where and when something is measured; create it before the work begins, since it records the load."""

    def __init__(self) -> None:
        self.before = os.getloadavg()[0]

    def told(self) -> str:
        """One sentence: machine, its load before and now, commit and day."""
        found = machine(0)
        ask = ["git", "describe", "--always", "--abbrev=8", "--exclude=*"]
        commit = subprocess.run(ask, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()
        return (
            f"{found['cpu']} ({', '.join(found['instructions']) or 'instructions unknown'}), {found['cores']} of "
            f"{os.cpu_count()} cores, {cores()} threads for a model; "
            f"load {self.before:.1f} before and {os.getloadavg()[0]:.1f} after; "
            f"{datetime.date.today()}, {commit}"
        )


def add_page(parser: argparse.ArgumentParser, page: str) -> None:
    """Add the option for the page to write."""
    parser.add_argument(
        "--page", type=Path, default=REPOSITORY / page, help=f"page of the documentation to write (default {page})"
    )


def write(page: Path, command: str, lines: Sequence[str]) -> None:
    """Write lines between the marks of a command, and print them.

    Args:
        page: a Markdown file
        command: the command in the marks, such as ``python benchmarks/live_rate.py``
        lines: Markdown

    Raises:
        SystemExit: the page has no such marks; nothing is written
    """
    begin, end = f"<!-- made by {command} -->", f"<!-- end of what {command} makes -->"
    print("\n".join(lines), flush=True)
    text = page.read_text(encoding="utf-8")
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise SystemExit(f"{page} has no place for this: it lacks {begin} and {end}")
    page.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]), encoding="utf-8")
