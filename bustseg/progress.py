"""Progress on the terminal: a bar where someone watches, silence where nobody does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from bustseg.redact import redact

Item = TypeVar("Item")


class _Console(Console):
    """Prints no credentials, wherever a text is from."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redact(one) if isinstance(one, str) else one for one in objects), **options)


error_console = _Console(stderr=True, soft_wrap=True)
"""Warnings, errors and progress go here, so that a piped result stays clean."""

_shown: list[Progress] = []
"""The bars that are begun, the innermost last; it alone is on the screen."""

_waiting: list[Progress] = []
"""The line of :func:`waiting`, until something else is shown."""

_labels: list[str] = []


class _Results(_Console):
    """Standard output; where a bar is shown on the same terminal, the lines above it."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.quiet:
            return
        if _shown and self.is_terminal and error_console.is_terminal:
            # a bar moves out of the way of what its own console prints, and of nothing else
            error_console.print(*objects, **options)
        else:
            super().print(*objects, **options)


console = _Results(soft_wrap=True)
"""Results go here (standard output)."""


def make_bar(*columns: str | ProgressColumn, expand: bool = False) -> Progress:
    """A bar on standard error, which vanishes at its end; it shows nothing where nobody watches.

    Args:
        columns: what it shows, see :class:`rich.progress.Progress`
        expand: take the whole width of the terminal
    """
    return Progress(
        *columns,
        console=error_console,
        transient=True,
        expand=expand,
        disable=not error_console.is_terminal,
        # else what is printed for a pipe would come out on standard error while a bar is shown there
        redirect_stdout=sys.stdout.isatty(),
    )


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say on a terminal what is being waited for, until something else is shown or the context ends."""
    bar = make_bar(SpinnerColumn(), TextColumn("{task.description}"))
    bar.add_task(text, total=None)
    _waiting.append(bar)
    show(bar)
    try:
        yield
    finally:
        done_waiting()


def wait_for(text: str) -> None:
    """Say what :func:`waiting` waits for now; of no effect where nothing is waited for."""
    for bar in _waiting:
        bar.update(bar.task_ids[0], description=text)


def done_waiting() -> None:
    """Take the line of :func:`waiting` away."""
    while _waiting:
        hide(_waiting.pop())


@contextmanager
def on_screen(bar: Progress) -> Iterator[Progress]:
    """Show a bar below all lines while the context lasts; a bar around it gives way to it for as long."""
    show(bar)
    try:
        yield bar
    finally:
        hide(bar)


def show(bar: Progress) -> None:
    """Begin what :func:`on_screen` does."""
    if bar not in _waiting:
        done_waiting()
    if _shown:
        _shown[-1].stop()
    _shown.append(bar)
    bar.start()


def hide(bar: Progress) -> None:
    """End what :func:`on_screen` does; of no effect on a bar that is not shown."""
    if bar not in _shown:
        return
    bar.stop()
    innermost = bar is _shown[-1]
    _shown.remove(bar)
    if _shown and innermost:
        _shown[-1].start()


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """Let the bars of a training say, while the context lasts, of what it is a part: ``fold 2/5``."""
    _labels.append(label)
    try:
        yield
    finally:
        _labels.pop()


def label() -> str:
    """What the innermost :func:`labelled` says; empty outside of all."""
    return _labels[-1] if _labels else ""


def clock(seconds: float) -> str:
    """A duration such as ``1:43`` or ``2:05:09``."""
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@cache
def tell_once(message: str) -> None:
    """Print a note on standard error, the first time that it comes up in this process."""
    error_console.print(f"[yellow]note:[/] {escape(message)}", highlight=False)


def warn(line: str) -> None:
    """Print a warning on standard error."""
    error_console.print(f"[yellow]{escape(line)}[/]", highlight=False)


def print_wide(table: RenderableType) -> None:
    """Print a table on standard output; where nobody watches, as wide as it needs to be."""
    natural = console.measure(table, options=console.options.update(width=10_000)).maximum
    (console if console.is_terminal else Console(width=natural)).print(table)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while a bar on standard error counts them; the bar vanishes at the end."""
    bar = make_bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with on_screen(bar):
        yield from bar.track(items, description=description, total=total)


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
        self._bar = make_bar(BarColumn(), TextColumn("{task.description}"))
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> StreamProgress:
        show(self._bar)
        return self

    def __exit__(self, *_: object) -> None:
        hide(self._bar)

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
        return f"{words}, {clock((self.total - self.completed) / self.rate)} left"
