"""What there is of a kind: the classes that are imported, and what installed packages offer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from bustseg.errors import UserError


def subclasses(base: type) -> list[type]:
    """The classes that are a ``base``, made or imported so far; itself and abstract ones left out."""
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
    """What installed packages offer under a group of entry points, each of which names a thing or a sequence of them.

    Args:
        group: name of the group
        what: what the things are, for messages

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
