"""Frames in real time: read, segmented, drawn. Between two stages there is room for only one frame, and no queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import cv2
import numpy as np

from bustseg.data.clips import Clip
from bustseg.data.images import to_grey
from bustseg.deploy.clips import Smoother, outlined
from bustseg.errors import DataError, UserError

if TYPE_CHECKING:
    from bustseg.deploy.predictor import Predictor

Thing = TypeVar("Thing")

_JPEG_QUALITY = 85
_RATE_SECONDS = 2.0


class Latest(Generic[Thing]):
    """Room for one item: an item that is not taken in time is replaced by the next, and counted."""

    def __init__(self) -> None:
        self._thing: Thing | None = None
        self._number = 0
        self._taken = 0
        self._ended = False
        self._change = threading.Condition()
        self.dropped = 0

    def put(self, thing: Thing) -> None:
        """Store an item."""
        with self._change:
            if self._thing is not None and self._taken < self._number:
                self.dropped += 1
            self._thing, self._number = thing, self._number + 1
            self._change.notify_all()

    def end(self) -> None:
        """Mark the end: there will be no more items."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    @property
    def ended(self) -> bool:
        """Whether there will be no more items."""
        return self._ended

    def take(self, timeout: float | None = None) -> tuple[int, Thing] | None:
        """The newest item that has not been taken, with its number; each is taken only once.

        None when there will be none, or within ``timeout`` seconds was none.
        """
        with self._change:
            self._change.wait_for(lambda: self._number > self._taken or self._ended, timeout)
            if self._number <= self._taken or self._thing is None:
                return None
            self._taken = self._number
            return self._number, self._thing

    def after(self, number: int, timeout: float | None = None) -> tuple[int, Thing] | None:
        """Wait for an item newer than ``number``; returns the newest one with its number.

        Any number of readers may wait.

        None when there will be none, or within ``timeout`` seconds was none.
        """
        with self._change:
            self._change.wait_for(lambda: self._number > number or self._ended, timeout)
            if self._number <= number or self._thing is None:
                return None
            self._taken = max(self._taken, self._number)
            return self._number, self._thing


@dataclass(frozen=True)
class Shown:
    """A picture that is shown, with its numbers.

    Attributes:
        jpeg: the frame with its outline
        area_px: area of the lesion
        presence: calibrated probability that there is a lesion; None where the model is not calibrated for it
        confidence: confidence of the outline; None where the model is not calibrated
        look_at_this: reasons to look at it
        rate: shown frames per second over the last two seconds
        read, dropped: number of frames since the start
        milliseconds: from the frame's arrival to this picture
    """

    jpeg: bytes
    area_px: int
    presence: float | None
    confidence: float | None
    look_at_this: tuple[str, ...]
    rate: float
    read: int
    dropped: int
    milliseconds: float


class Frames:
    """The frames of a camera, or of a video file at its own rate.

    Args:
        device: number of a camera, or path of a file
        repeat: start a file again at its end
        pace: wait for a file's own rate; otherwise frames come as fast as they are decoded

    Raises:
        UserError: no such camera, or a file that cannot be read
    """

    def __init__(self, device: str, repeat: bool = False, pace: bool = True) -> None:
        self.repeat, self.pace = repeat, pace
        self._camera: cv2.VideoCapture | None = None
        self._clip: Clip | None = None
        if device.isdigit() or device.startswith("/dev/"):
            self._camera = cv2.VideoCapture(int(device) if device.isdigit() else device)
            if not self._camera.isOpened():
                raise UserError(f"no camera {device}: name another --device, or a video file")
            # a driver that buffers frames would show old ones
            self._camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            return
        path = Path(device).expanduser()
        if not path.is_file():
            raise UserError(f"no camera or file {device}")
        self._clip = Clip.open(path)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames ``uint8`` (H, W, 3) in RGB."""
        if self._camera is not None:
            while True:
                there, frame = self._camera.read()
                if not there:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        assert self._clip is not None
        while True:
            start = time.monotonic()
            for seconds, frame in self._clip.timed():
                if self.pace:
                    time.sleep(max(0.0, start + seconds - time.monotonic()))
                yield frame
            if not self.repeat:
                return
            if self.pace:  # the last frame is shown for its time, too
                time.sleep(1 / self._clip.rate)

    def close(self) -> None:
        """Release the camera."""
        if self._camera is not None:
            self._camera.release()


class Live:
    """Reads in one thread, segments and draws in others, until the frames end or :meth:`stop`.

    Several predictors with one thread each give more frames than one predictor with all threads, since drawing and
    encoding run in one thread and then overlap. A frame that is overtaken by a newer one is dropped.

    Args:
        frames: source of the frames
        predictors: predictors of the same model, each used in its own thread
        smooth: seconds over which logits are averaged, see :class:`bustseg.deploy.clips.Smoother`

    Attributes:
        shown: the newest picture
        read: number of frames that were read
        drawn: number of frames that were shown
        error: why it stopped, unless the frames ended
    """

    def __init__(self, frames: Frames, predictors: Sequence[Predictor], smooth: float = 0.0) -> None:
        self.frames = frames
        self.shown: Latest[Shown] = Latest()
        self.read = self.drawn = 0
        self.error = ""
        self._smoother = Smoother(smooth)
        self._came: Latest[tuple[float, np.ndarray]] = Latest()
        self._times: deque[float] = deque()
        self._stop = threading.Event()
        self._order = threading.Lock()
        self._newest, self._newest_came, self._drawn_to = 0, 0.0, 0
        self._overtaken = 0
        self._working = len(predictors)
        self._threads = [threading.Thread(target=self._reading, daemon=True)]
        self._threads += [
            threading.Thread(target=self._segmenting, args=(predictor,), daemon=True) for predictor in predictors
        ]

    @property
    def dropped(self) -> int:
        """Number of frames that were replaced by newer ones."""
        return self._came.dropped + self._overtaken

    @property
    def rate(self) -> float:
        """Shown frames per second over the last two seconds."""
        times = list(self._times)
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0

    def start(self) -> None:
        """Start."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, and release the camera."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self.frames.close()

    def _reading(self) -> None:
        try:
            for frame in self.frames:
                if self._stop.is_set():
                    break
                self.read += 1
                self._came.put((time.monotonic(), frame))
        except DataError as error:
            self.error = str(error)
        finally:
            self._came.end()

    def _segmenting(self, predictor: Predictor) -> None:
        try:
            while not self._stop.is_set():
                taken = self._came.take(timeout=0.5)
                if taken is not None:
                    number, (came, frame) = taken
                    self._show(predictor, number, came, frame)
                elif self._came.ended:
                    break
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            self._stop.set()
        finally:
            with self._order:
                self._working -= 1
                last = not self._working
            if last:
                self.shown.end()

    def _show(self, predictor: Predictor, number: int, came: float, frame: np.ndarray) -> None:
        prepared = predictor.prepare(to_grey(frame))
        logits = predictor.logits([prepared])[0]
        with self._order:
            if number < self._newest:
                self._overtaken += 1
                return
            logits = self._smoother(logits, came - self._newest_came if self._newest else 0.0)
            self._newest, self._newest_came = number, came
        found = predictor.finish(logits, frame.shape[:2], prepared=prepared)
        picture = cv2.cvtColor(outlined(frame, found), cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].tobytes()
        with self._order:
            if number < self._drawn_to:
                self._overtaken += 1
                return
            self._drawn_to = number
            now = time.monotonic()
            self._times.append(now)
            while self._times[0] < now - _RATE_SECONDS:
                self._times.popleft()
            self.drawn += 1
            self.shown.put(
                Shown(
                    jpeg,
                    found.area_px,
                    found.presence,
                    found.confidence,
                    found.look_at_this,
                    self.rate,
                    self.read,
                    self.dropped,
                    1000 * (now - came),
                )
            )


def predictors_of(model: str, threshold: float | None = None, mirror: bool = True) -> list[Predictor]:
    """The predictors for :class:`Live`: one per core for an exported model, else a single one.

    Args:
        model: as for a predictor
        threshold: the model's when not given
        mirror: also predict each frame's mirror image, if the model does so

    Raises:
        UserError: the model cannot be used
    """
    from bustseg.deploy.backends import cores, exported_backend
    from bustseg.deploy.exported import ExportedModel, is_exported
    from bustseg.deploy.predictor import Predictor

    if not is_exported(model):
        predictor = Predictor(model, threshold=threshold)
        if predictor.task is not None and not mirror:
            predictor.task.flip = False
        return [predictor]
    exported = ExportedModel.read(model)
    backends = [exported_backend(exported, 1, mirror) for _ in range(cores())]
    return [Predictor(exported, threshold=threshold, backend=backend) for backend in backends]
