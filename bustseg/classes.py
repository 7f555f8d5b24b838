"""The classes that are of a kind, as far as they are imported."""

from __future__ import annotations

import inspect


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
