"""Draw what a terminal shows while a command runs: docs/img/terminal.png.

    python benchmarks/terminal_picture.py --until "epoch 3/4  train.* [6-9]/12" -- \\
        fit --config configs/quickstart.yaml --trainer.max_epochs 4 --tracking.run_name hybrid

The command runs in a pseudo-terminal (Linux, macOS). It is photographed when a line matches, and then runs to
its end.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import matplotlib
import pyte
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "black": "#444c56",
    "red": "#f47067",
    "green": "#57ab5a",
    "brown": "#c69026",
    "blue": "#539bf5",
    "magenta": "#e275ad",
    "cyan": "#39c5cf",
    "white": "#adbac7",
    "default": "#cdd9e5",
}
"""Colours of the terminal by pyte's names; others are hexadecimal already."""

BACKGROUND = "#1c2128"
SIZE = 26
MARGIN = 20


def photograph(arguments: list[str], columns: int, rows: int, until: str, out: Path) -> int:
    """Run bustseg in a pseudo-terminal and draw its screen when a line first matches; returns the exit code."""
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    hidden = ("COLUMNS", "LINES", "NO_COLOR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-m", "bustseg.cli", *arguments]
    environment |= {"TERM": "xterm-256color"}
    taken = False
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        while output := read(ours):
            stream.feed(output)
            if not taken and any(re.search(until, line) for line in screen.display):
                draw(screen).save(out, optimize=True)
                taken = True
    os.close(ours)
    if not taken:
        raise SystemExit(f"no line matched {until!r}")
    return process.returncode


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other side is closed
        return b""


def draw(screen: pyte.Screen) -> Image.Image:
    """The lines of a screen down to the last that is not empty, in their colours."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, bold = (ImageFont.truetype(fonts / f"DejaVuSansMono{kind}.ttf", SIZE) for kind in ("", "-Bold"))
    width, height = round(plain.getlength("M")), round(SIZE * 1.3)
    used = max((row for row, line in enumerate(screen.display) if line.strip()), default=0) + 1
    picture = Image.new("RGB", (screen.columns * width + 2 * MARGIN, used * height + 2 * MARGIN), BACKGROUND)
    canvas = ImageDraw.Draw(picture)
    for row in range(used):
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            colour = COLOURS.get(cell.fg) or COLOURS.get(cell.fg.removeprefix("bright")) or f"#{cell.fg}"
            place = (MARGIN + column * width, MARGIN + row * height)
            canvas.text(place, cell.data, fill=colour, font=bold if cell.bold else plain)
    return picture.quantize(64, dither=Image.Dither.NONE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="+", help="what follows `bustseg`, after --")
    parser.add_argument("--until", required=True, help="regular expression of the line that is waited for")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/img/terminal.png"))
    args = parser.parse_args()
    return photograph(args.arguments, args.columns, args.rows, args.until, args.out)


if __name__ == "__main__":
    sys.exit(main())
