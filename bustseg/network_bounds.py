"""How much memory a network may take that a stored configuration names: a checkpoint of kilobytes may ask for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SPARE_BYTES, TIMES = 2**30, 8
"""A network may take so much, and so many times the size of the file that holds its weights."""

WITHOUT_FILE_BYTES = 2**32
"""The same where no file with weights is at hand: a thousand million parameters."""

MAX_TENSORS = 200_000
"""Tensors that are made while a network is built; one of a thousand layers makes some ten thousand."""

_MAKERS: frozenset[Callable[..., Any]] = frozenset(
    (
        *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm),
        *(torch.arange, torch.range, torch.linspace, torch.logspace, torch.eye, torch.empty_strided),
        *(torch.tril_indices, torch.triu_indices, torch.hann_window, torch.hamming_window, torch.kaiser_window),
    )
)
"""Functions that make a tensor of the size that they are given; they can be asked for that size alone."""


class TooLarge(BaseException):
    """Ends what is being built at once: jsonargparse takes any ``Exception`` for a reason to try the next type."""


@contextmanager
def bounded_tensors(origin: str | Path) -> Iterator[None]:
    """Bound the memory of the tensors that are made while what a file names is built.

    Args:
        origin: file or run that the configuration came from; the size of a file tells how large its network may be

    Raises:
        TooLarge: more was asked for, which then was not made
    """
    with _Bounded(str(origin), _limit(origin)):
        yield


def _limit(origin: str | Path) -> int:
    with suppress(OSError, ValueError):  # what is no path is a run
        path = Path(origin)
        if path.is_file():
            return SPARE_BYTES + TIMES * path.stat().st_size
    return WITHOUT_FILE_BYTES


class _Bounded(TorchFunctionMode):
    def __init__(self, origin: str, limit: int) -> None:
        super().__init__()
        self.origin, self.limit = origin, limit
        self.taken = self.made = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            # asked of a device that has no memory first; what it cannot tell fails, or is counted, when it is made
            with suppress(Exception):
                self._check(func(*args, **{**kwargs, "device": "meta"}))
            result = func(*args, **kwargs)
            self.taken += self._check(result)
            self.made += 1
            return result
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            self._check(result)
        return result

    def _check(self, result: torch.Tensor) -> int:
        size = result.numel() * result.element_size()
        if self.taken + size > self.limit or self.made > MAX_TENSORS:
            raise TooLarge(
                f"the network that {self.origin} names would take more than {self.limit / 2**30:.1f} GiB or "
                f"{MAX_TENSORS:,} tensors, far more than its weights do: do not use this file"
            )
        return size
