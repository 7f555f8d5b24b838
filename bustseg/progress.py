"""Progress on the terminal: a bar where someone watches, silence where nobody does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(soft_wrap=True)
"""Results go here (standard output)."""

error_console = Console(stderr=True, soft_wrap=True)
"""Warnings, errors and progress go here, so that a piped result stays clean."""


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
