"""Progress on the terminal: a bar when the output is a terminal, silence when it is not."""

from __future__ import annotations

import sys
import textwrap
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
from rich.text import Text

from bustseg.redact import redact

Item = TypeVar("Item")


class _Console(Console):
    """Removes credentials from every text that it prints."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redact(one) if isinstance(one, str) else one for one in objects), **options)


error_console = _Console(stderr=True, soft_wrap=True)
"""Warnings, errors and progress go here, so that a piped result stays clean."""

_shown: list[Progress] = []
"""The bars that have started, the innermost last; only that one is on the screen."""

_waiting: list[Progress] = []
"""The line of :func:`waiting`, until something else is shown."""

_labels: list[str] = []


class _Results(_Console):
    """Standard output; lines are printed above a bar that is on the same terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.quiet:
            return
        if _shown and self.is_terminal and error_console.is_terminal:
            # a bar makes room only for what its own console prints
            error_console.print(*objects, **options)
        else:
            super().print(*objects, **options)


console = _Results(soft_wrap=True)
"""Results go here (standard output)."""


def make_bar(*columns: str | ProgressColumn, expand: bool = False) -> Progress:
    """A bar on standard error, which disappears at its end; it shows nothing where there is no terminal.

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
        # otherwise piped output would be printed on standard error while a bar is shown there
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
    """Change the text of :func:`waiting`; no effect outside of it."""
    for bar in _waiting:
        bar.update(bar.task_ids[0], description=text)


def done_waiting() -> None:
    """Remove the line of :func:`waiting`."""
    while _waiting:
        hide(_waiting.pop())


@contextmanager
def on_screen(bar: Progress) -> Iterator[Progress]:
    """Show a bar below all lines while the context lasts; an outer bar is hidden meanwhile."""
    show(bar)
    try:
        yield bar
    finally:
        hide(bar)


def show(bar: Progress) -> None:
    """Show a bar, as :func:`on_screen` does."""
    if bar not in _waiting:
        done_waiting()
    if _shown:
        _shown[-1].stop()
    _shown.append(bar)
    bar.start()


def hide(bar: Progress) -> None:
    """Hide a bar again; no effect on a bar that is not shown."""
    if bar not in _shown:
        return
    bar.stop()
    innermost = bar is _shown[-1]
    _shown.remove(bar)
    if _shown and innermost:
        _shown[-1].start()


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """While the context lasts, add to a training's bars what it is part of: ``fold 2/5``."""
    _labels.append(label)
    try:
        yield
    finally:
        _labels.pop()


def label() -> str:
    """The label of the innermost :func:`labelled`; empty outside."""
    return _labels[-1] if _labels else ""


def clock(seconds: float) -> str:
    """A duration such as ``1:43`` or ``2:05:09``."""
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@cache
def tell_once(message: str) -> None:
    """Print a note on standard error, only once in this process."""
    error_console.print(f"[yellow]note:[/] {escape(message)}", highlight=False)


def warn(line: str) -> None:
    """Print a warning on standard error."""
    error_console.print(f"[yellow]{escape(line)}[/]", highlight=False)


def several(count: int, noun: str) -> str:
    """A number of things in words: ``1 image``, ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_error(line: str) -> None:
    """Print an error on standard error; a terminal breaks it between words, a file or a pipe gets one line."""
    head = "error: "
    text = "\n".join(_broken(head + redact(line), error_console)).removeprefix(head)
    error_console.print(f"[bold red]{head.strip()}[/] {escape(text)}", highlight=False)


def print_entry(name: str, text: str, width: int = 0) -> None:
    """Print a line of a list, ``name  text``; on a terminal a long text continues below its own beginning.

    Args:
        name: what the line is about; Rich's markup has an effect
        text: what is said about it, as it is
        width: columns of the longest name of the list
    """
    shown = Text.from_markup(name)
    shown.pad_right(max(width - len(shown), 0))
    indent = " " * (len(shown) + 2)
    console.print(
        Text.assemble(shown, "  ", f"\n{indent}".join(_broken(redact(text), console, len(indent)))), highlight=False
    )


def _broken(text: str, console: Console, indent: int = 0) -> list[str]:
    """Lines of a text, broken between words where a terminal ends; a path or an address stays whole, to be copied."""
    room = console.width - indent
    if not console.is_terminal or room < 20:
        return [text]
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def print_wide(table: RenderableType) -> None:
    """Print a table on standard output; where that is not a terminal, as wide as it needs to be."""
    natural = console.measure(table, options=console.options.update(width=10_000)).maximum
    (console if console.is_terminal else Console(width=natural)).print(table)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while a bar on standard error counts them; the bar disappears at the end."""
    bar = make_bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with on_screen(bar):
        yield from bar.track(items, description=description, total=total)


class StreamProgress:
    """Progress over items whose total becomes known only during the work.

    On a terminal a bar with items per second and the time left; elsewhere an occasional line.

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
        """Number of all items, once it is known."""
        return None if self._expected is None else self._expected + self._more

    def expect(self, items: int) -> None:
        """Set how many items there are; may be called from another thread."""
        self._expected = items

    def expect_more(self, items: int = 1) -> None:
        """Add to the number of items that :meth:`expect` was or will be given; negative to subtract."""
        self._more += items

    @property
    def rate(self) -> float:
        """Items per second since the start, not counting those that were already done."""
        return self._worked / max(time.monotonic() - self._start, 1e-9)

    def advance(self, worked: bool = True) -> None:
        """Count one item, ``worked`` on now or already done."""
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
