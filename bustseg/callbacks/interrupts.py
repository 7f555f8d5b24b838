"""Make sure that Ctrl-C is not lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Callback

Handler = Callable[[int, FrameType | None], Any]


class Interrupts(Callback):
    """Raises a ``KeyboardInterrupt`` again if Python has dropped it.

    An exception that a signal raises inside a destructor or a garbage collector's callback (SQLAlchemy has those) is
    printed and ignored, and the training would go on. So, as a context manager around a training, it remembers the
    interrupt and suppresses the printout; as a callback it raises the interrupt again at the next batch if it had no
    effect.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # signals that the shell ignores, or that the system handles, are left alone
                if callable(handler := signal.getsignal(number)):
                    self._before[number] = handler
                    signal.signal(number, self._remember)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._report
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable

    def _report(self, dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._unraisable(dropped)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._before[number](number, frame)

    def _raise_again(self, *_: Any, **__: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = _raise_again
