"""Batches images of all clients: whatever waits when the network becomes free is one batch.

Nothing waits for a batch to fill: when idle, an image is processed at once; under load, batches form by themselves.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np


class Busy(Exception):
    """The queue is full."""


class Batcher:
    """A thread that computes logits of single images, batching those that are waiting.

    Args:
        logits: computes a batch, such as :meth:`bustseg.deploy.predictor.Predictor.logits`
        batch_size: most images in a batch
        limit: most images that may wait
        observe: called with the size of each batch and its time in seconds
    """

    def __init__(
        self,
        logits: Callable[[list[np.ndarray]], np.ndarray],
        batch_size: int,
        limit: int,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._logits, self._size, self._observe = logits, batch_size, observe
        self._queue: queue.Queue[tuple[np.ndarray, Future[np.ndarray]] | None] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of waiting images."""
        return self._queue.qsize()

    def submit(self, prepared: np.ndarray) -> Future[np.ndarray]:
        """A future with the logits (1, h, w) of one prepared image (h, w).

        Raises:
            Busy: the queue is full
        """
        future: Future[np.ndarray] = Future()
        try:
            self._queue.put_nowait((prepared, future))
        except queue.Full:
            raise Busy from None
        return future

    def close(self) -> None:
        """Process the waiting images, and stop."""
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = []
            item = self._queue.get()
            while item is not None:
                if item[1].set_running_or_notify_cancel():  # otherwise the client has disconnected
                    batch.append(item)
                if len(batch) == self._size:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            ended = item is None
            if not batch:
                continue
            start = time.perf_counter()
            try:
                results = self._logits([image for image, _ in batch])
            except BaseException as error:  # the thread must survive, and each client must get the error
                for _, future in batch:
                    future.set_exception(error)
                continue
            self._observe(len(batch), time.perf_counter() - start)
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
