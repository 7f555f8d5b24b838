"""Images of all clients through the network together: whatever waits when it becomes free is one batch.

Nothing waits for a batch to fill: at rest an image passes alone and at once, under load batches form by themselves.
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
    """A thread that computes logits of single images, as many at once as wait for it.

    Args:
        logits: computes a batch, such as :meth:`bustseg.deploy.predictor.Predictor.logits`
        batch_size: images at once, at most
        limit: images that may wait
        observe: is told the size of each batch and the seconds that it took
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
        """Images that wait."""
        return self._queue.qsize()

    def submit(self, prepared: np.ndarray) -> Future[np.ndarray]:
        """Logits (1, h, w) of one prepared image (h, w), in the future.

        Raises:
            Busy: as many images wait as may
        """
        future: Future[np.ndarray] = Future()
        try:
            self._queue.put_nowait((prepared, future))
        except queue.Full:
            raise Busy from None
        return future

    def close(self) -> None:
        """Finish what waits, and end."""
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = []
            item = self._queue.get()
            while item is not None:
                if item[1].set_running_or_notify_cancel():  # else the client has gone
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
            except BaseException as error:  # the thread must live on, and each client learn of it
                for _, future in batch:
                    future.set_exception(error)
                continue
            self._observe(len(batch), time.perf_counter() - start)
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
