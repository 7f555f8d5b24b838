"""How much memory a network may take that a stored configuration names: a checkpoint of kilobytes may ask for all."""

from __future__ import annotations

import time
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

MAX_TENSORS = 100_000
"""Tensors that are made while a network is built; one of a thousand layers makes some ten thousand."""

MAX_SECONDS = 120.0
"""Computing time until a network is built; a thousand million weights take some ten seconds."""

_MAKERS: frozenset[Callable[..., Any]] = frozenset(
    (
        *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm),
        *(torch.arange, torch.range, torch.linspace, torch.logspace, torch.eye, torch.empty_strided),
        *(torch.tril_indices, torch.triu_indices, torch.hann_window, torch.hamming_window, torch.kaiser_window),
    )
)
"""Functions that make a tensor of the size that they are given; they can be asked for that size alone."""

_COPIERS: frozenset[Callable[..., Any]] = frozenset(
    (
        *(torch.clone, torch.Tensor.clone, torch.Tensor.repeat, torch.Tensor.new_empty, torch.Tensor.new_zeros),
        *(torch.Tensor.new_ones, torch.Tensor.new_full, torch.empty_like, torch.zeros_like, torch.ones_like),
        *(torch.full_like, torch.rand_like, torch.randn_like, torch.cat, torch.stack, torch.tensor),
    )
)
"""Functions that make a tensor of the size of others, as where a layer is copied."""


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
        self.end = time.process_time() + MAX_SECONDS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            # asked of a device that has no memory first; what it cannot tell fails, or is counted, when it is made
            with suppress(Exception):
                self._check(func(*args, **{**kwargs, "device": "meta"}))
        elif args and isinstance(args[0], torch.Tensor):  # made in another way, and about to be filled or copied
            self._check(args[0])
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            size = self._check(result)
            if func in _MAKERS or func in _COPIERS:
                self.taken += size
                self.made += 1
        return result

    def _check(self, tensor: torch.Tensor) -> int:
        size = tensor.numel() * tensor.element_size()
        if self.taken + size > self.limit or self.made > MAX_TENSORS or time.process_time() > self.end:
            raise TooLarge(
                f"the network that {self.origin} names would take more than {self.limit / 2**30:.1f} GiB, "
                f"{MAX_TENSORS:,} tensors or {MAX_SECONDS:.0f} seconds of computing, far more than its weights do: "
                "do not use this file"
            )
        return size
