"""``bustseg predict clip.mp4``: a video with outlines, and a table with a row for each frame."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from bustseg.box import boxed_model
from bustseg.data.clips import CLIP_SUFFIXES, Clip
from bustseg.data.images import to_grey
from bustseg.deploy.predict import Options, overlay, predict, with_disclaimer
from bustseg.disclaimer import NOTICE, WORDS
from bustseg.errors import DataError, UserError
from bustseg.progress import StreamProgress, console, print_error
from bustseg.whole import write_whole

if TYPE_CHECKING:
    from bustseg.deploy.prediction import Prediction
    from bustseg.deploy.predictor import Predictor

FORMATS = {"mp4": "mp4v", "webm": "VP80", "avi": "MJPG"}
"""Formats of the video that is written, and their codecs: those that OpenCV's wheels can write without a licence."""

COLUMNS = (
    "frame",
    "seconds",
    "area_px",
    "components",
    "largest_component_px",
    "presence",
    "lesion_probability",
    "confidence",
    "threshold",
    "look_at_this",
    "reason",
    "notice",
)

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class ClipOptions:
    """Options of clips, in addition to those of every prediction.

    Attributes:
        smooth: seconds over which logits are averaged (the time constant of an exponential mean); 0 for none
        format: format of the video that is written
    """

    smooth: float = 0.0
    format: str = "mp4"

    def __post_init__(self) -> None:
        if not 0 <= self.smooth <= 60:
            raise UserError(f"--smooth is {self.smooth}: give seconds from 0 to 60")
        if self.format not in FORMATS:
            raise UserError(f"--clip_format is {self.format!r}: use {', '.join(FORMATS)}")


class Smoother:
    """Exponential mean of logits over time: steadier outlines, with a lag of about ``seconds``.

    Logits are averaged, not masks, so that a lesion that fades in and out keeps its shape.

    Args:
        seconds: the time constant; 0 changes nothing
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._mean: np.ndarray | None = None

    def __call__(self, logits: np.ndarray, elapsed: float) -> np.ndarray:
        """The mean after one more map of logits.

        Args:
            logits: of any shape, the same in every call
            elapsed: seconds since the previous call
        """
        if self.seconds <= 0:
            return logits
        if self._mean is None:
            self._mean = logits.astype(np.float32)
        else:
            share = np.float32(1 - math.exp(-max(elapsed, 0.0) / self.seconds))
            self._mean = self._mean + share * (logits - self._mean)
        return self._mean


def outlined(frame: np.ndarray, found: Prediction) -> np.ndarray:
    """A frame ``uint8`` (H, W, 3) in RGB with its outline and the disclaimer."""
    return with_disclaimer(overlay(frame, found.mask))


def is_clip(given: str) -> bool:
    """Whether an input names a video file."""
    return Path(given).suffix.lower() in CLIP_SUFFIXES and Path(given).expanduser().is_file()


def predict_all(given: Sequence[str], model: str | None, out: Path, options: Options, clips: ClipOptions) -> int:
    """Predict videos one by one, and everything else with :func:`bustseg.deploy.predict.predict`.

    Returns:
        exit code: 0, 1 when an image or video could not be read, 2 when none could
    """
    videos = [Path(one).expanduser() for one in given if is_clip(one)]
    others = [one for one in given if not is_clip(one)]
    codes = [predict(others, model, out, options)] if others or not videos else []
    if videos:
        codes.append(predict_clips(videos, model, out, options, clips))
    return max(codes) if min(codes) == max(codes) else 1


def predict_clips(videos: Sequence[Path], model: str | None, out: Path, options: Options, clips: ClipOptions) -> int:
    """Outline lesions in videos: for each ``NAME_outlined.mp4``, ``NAME_frames.csv`` and ``NAME_clip.json``.

    A video that is already done with the same model and settings is skipped.

    Returns:
        exit code: 0, 1 when a video could not be read, 2 when none could

    Raises:
        UserError: the model or an option cannot be used, or ``out`` holds results of the same video with another model
            or other settings
    """
    names = [path.stem for path in videos]
    if len(set(names)) < len(names):
        raise UserError("two clips have the same name: predict them into separate folders with --out")
    from bustseg.deploy.predictor import Predictor

    predictor = Predictor(model if model is not None else str(boxed_model()), threshold=options.threshold)
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in videos:
        try:
            _predict_clip(path, out, predictor, options, clips)
        except DataError as error:
            failed += 1
            print_error(str(error))
    console.print(NOTICE, highlight=False)
    return 0 if not failed else 1 if failed < len(videos) else 2


def _predict_clip(path: Path, out: Path, predictor: Predictor, options: Options, clips: ClipOptions) -> None:
    clip = Clip.open(path)
    head = {
        "notice": NOTICE,
        "clip": path.name,
        "bytes": path.stat().st_size,
        "model": predictor.digest,
        "threshold": predictor.threshold,
        "postprocess": predictor.postprocess.to_dict(),
        "smooth": clips.smooth,
        "format": clips.format,
    }
    end = out / f"{path.stem}_clip.json"
    if end.is_file() and not options.overwrite:
        known = json.loads(end.read_text())
        if {key: known.get(key) for key in head} == head:
            console.print(f"{path.name} is already done", highlight=False, markup=False)
            return
        raise UserError(f"{end} was made with another model or setting: name another --out, or give --overwrite")
    end.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    video = out / f"{path.stem}_outlined.{clips.format}"
    partial = video.with_name(f".{video.stem}.partial.{clips.format}")
    start = time.perf_counter()
    try:
        with _Video(partial, clip, FORMATS[clips.format]) as written, StreamProgress("frames") as progress:
            if clip.frames:
                progress.expect(clip.frames)
            followed = follow(clip, predictor, clips.smooth, options.batch_size)
            for number, (at, frame, found) in enumerate(followed):
                rows.append(_row(number, at, found))
                written.add(outlined(frame, found), at)
                progress.advance()
        partial.replace(video)
    finally:
        partial.unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / f"{path.stem}_frames.csv", text.getvalue().encode())
    lesion = [row for row in rows if row["area_px"]]
    summary = {
        "frames": len(rows),
        "frames_with_lesion": len(lesion),
        "frames_to_look_at": sum(row["look_at_this"] for row in rows),
        "largest_area_px": max((row["area_px"] for row in rows), default=0),
        "frames_per_second": round(len(rows) / seconds, 1),
    }
    write_whole(end, json.dumps({**head, "rate": clip.rate, **summary}, indent=1).encode() + b"\n")
    console.print(
        f"{path.name}: {len(rows)} frames, {len(lesion)} with a lesion, {summary['frames_to_look_at']} to look at; "
        f"{video.name} in {out} ({summary['frames_per_second']} frames/s)",
        highlight=False,
        markup=False,
    )


def follow(
    clip: Clip, predictor: Predictor, smooth: float = 0.0, batch_size: int = 8
) -> Iterator[tuple[float, np.ndarray, Prediction]]:
    """Each frame of a clip: seconds since the first, picture ``uint8`` (H, W, 3) in RGB, and prediction.

    Holds one batch at a time.
    """
    smoother, before = Smoother(smooth), 0.0
    for frames in _chunks(clip.timed(), batch_size):
        prepared = [predictor.prepare(to_grey(frame)) for _, frame in frames]
        for (at, frame), view, logits in zip(frames, prepared, predictor.logits(prepared), strict=True):
            yield at, frame, predictor.finish(smoother(logits, at - before), frame.shape[:2], prepared=view)
            before = at


def _chunks(items: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def _row(number: int, seconds: float, found: Prediction) -> dict[str, Any]:
    said = found.summary()
    confidence = said["confidence"]
    return {
        "frame": number,
        "seconds": f"{seconds:.3f}",
        "area_px": said["area_px"],
        "components": said["components"],
        "largest_component_px": said["largest_component_px"],
        "presence": "" if said["presence"] is None else f"{said['presence']:.4f}",
        "lesion_probability": f"{said['lesion_probability']:.4f}",
        "confidence": "" if confidence is None else f"{confidence:.4f}",
        "threshold": f"{said['threshold']:g}",
        "look_at_this": int(bool(said["reasons"])),
        "reason": "; ".join(said["reasons"]),
        "notice": WORDS,
    }


class _Video:
    """A video file that is being written, at the clip's average rate."""

    def __init__(self, path: Path, clip: Clip, codec: str) -> None:
        self._size = (clip.shape[1], clip.shape[0])
        self._rate, self._written = clip.rate, 0
        self._last: np.ndarray | None = None
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), clip.rate, self._size)
        if not self._writer.isOpened():
            raise UserError(
                f"cannot write {path.name}: the disk is full, or this OpenCV lacks {codec} (try --clip_format avi)"
            )

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.release()

    def add(self, frame: np.ndarray, seconds: float) -> None:
        """Append a frame in RGB at its time since the first; the frame before it is repeated until then.

        A frame of another size, as in some broken files, is stretched to the size of the first.
        """
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size)
        # allow half a frame for rounding and an uneven clock
        while self._last is not None and self._written / self._rate < seconds - 0.5 / self._rate:
            self._write(self._last)
        self._last = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        self._write(self._last)

    def _write(self, frame: np.ndarray) -> None:
        self._writer.write(frame)
        self._written += 1
