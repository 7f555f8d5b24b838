"""Find the classes of a kind that are imported, and what installed packages offer through entry points."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from bustseg.errors import UserError


def subclasses(base: type) -> list[type]:
    """The concrete subclasses of ``base`` that have been defined or imported so far."""
    found: dict[type, None] = {}
    waiting: list[type] = [base]
    while waiting:
        own: list[type] = waiting.pop().__subclasses__()
        for cls in own:
            if cls not in found:
                found[cls] = None
                waiting.append(cls)
    return [cls for cls in found if not inspect.isabstract(cls)]


def offered(group: str, what: str) -> list[Any]:
    """What installed packages offer in a group of entry points, each of which names one object or a sequence of them.

    Args:
        group: name of the group
        what: what the objects are, for messages

    Raises:
        UserError: an entry point cannot be loaded
    """
    things: list[Any] = []
    for point in entry_points(group=group):
        try:
            found = point.load()
        except Exception as error:  # whatever a package raises when it is imported
            raise UserError(f"the {what} of {point.value} cannot be loaded: {error}") from error
        things += found if isinstance(found, Sequence) else [found]
    return things
