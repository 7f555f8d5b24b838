"""Progress on the terminal: a bar where someone watches, silence where nobody does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(soft_wrap=True)
"""Results go here (standard output)."""

error_console = Console(stderr=True, soft_wrap=True)
"""Warnings, errors and progress go here, so that a piped result stays clean."""


@cache
def tell_once(message: str) -> None:
    """Print a note on standard error, the first time that it comes up in this process."""
    error_console.print(f"[yellow]note:[/] {escape(message)}", highlight=False)


def print_wide(table: RenderableType) -> None:
    """Print a table on standard output; where nobody watches, as wide as it needs to be."""
    natural = console.measure(table, options=console.options.update(width=10_000)).maximum
    (console if console.is_terminal else Console(width=natural)).print(table)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while a bar on standard error counts them; the bar vanishes at the end."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=error_console,
        transient=True,
        disable=not error_console.is_terminal,
    ) as progress:
        yield from progress.track(items, description=description, total=total)


class StreamProgress:
    """Progress over items whose number becomes known only while they are worked on.

    On a terminal a bar with items per second and the time left; elsewhere a line now and then.

    Args:
        what: the items, as in "12 of 100 images"
        every: seconds between lines where there is no terminal
    """

    def __init__(self, what: str = "images", every: float = 30.0) -> None:
        self.what, self.every = what, every
        self.completed = 0
        self._expected: int | None = None
        self._more = 0
        self._worked = 0
        self._start = self._said = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=error_console,
            transient=True,
            disable=not error_console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> StreamProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def total(self) -> int | None:
        """All items, once it is known how many there are."""
        return None if self._expected is None else self._expected + self._more

    def expect(self, items: int) -> None:
        """Tell how many items there are; may come from another thread."""
        self._expected = items

    def expect_more(self, items: int = 1) -> None:
        """There are so many items more (or fewer, below 0) than :meth:`expect` was or will be told."""
        self._more += items

    @property
    def rate(self) -> float:
        """Items per second since the start, without those that were done before."""
        return self._worked / max(time.monotonic() - self._start, 1e-9)

    def advance(self, worked: bool = True) -> None:
        """Count one item, ``worked`` on now or done before."""
        self.completed += 1
        self._worked += worked
        now = time.monotonic()
        if self._bar.disable:
            if now - self._said >= self.every:
                self._said = now
                error_console.print(self.text(), highlight=False, markup=False)
        else:
            self._bar.update(self._task, completed=self.completed, total=self.total, description=self.text())

    def text(self) -> str:
        """Such as "1200 of 10000 images, 85.2 images/s, 1:43 left"."""
        of = f" of {self.total}" if self.total is not None else ""
        words = f"{self.completed}{of} {self.what}, {self.rate:.1f} {self.what}/s"
        if self.total is None or not self._worked:
            return words
        left = round(max(self.total - self.completed, 0) / self.rate)
        hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
        return f"{words}, {f'{hours}:{minutes:02d}' if hours else minutes}:{seconds:02d} left"
