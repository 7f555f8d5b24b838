"""``bustseg predict``: masks, overlays and a table for any number of images, in constant memory.

A chain of generators: images are decoded by threads ahead of the network and written by threads behind it, each stage
holding a bounded number of them, and the table gets its rows in the order of the input.
"""

from __future__ import annotations

import errno
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from bustseg import __version__
from bustseg.bounds import LARGE, room_for
from bustseg.box import boxed_model
from bustseg.data.inputs import TABLE, Inputs, Item, all_frames
from bustseg.data.sources import read_grey, to_grey
from bustseg.deploy import dicom_seg as seg
from bustseg.deploy.output import COLUMNS, GALLERY, ORDER, Output, png
from bustseg.disclaimer import NOTICE, WORDS
from bustseg.errors import DataError, UserError, disk_is_full
from bustseg.figures.colours import PREDICTION
from bustseg.figures.outlines import draw_outline
from bustseg.progress import StreamProgress, console, error_console, print_error, several
from bustseg.whole import write_whole

if TYPE_CHECKING:
    from bustseg.deploy.prediction import Prediction
    from bustseg.deploy.predictor import Predictor


_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pydicom", "torch", "onnxruntime", "openvino")
_SHOWN_ERRORS = 5
_OF_THE_IMAGE = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)

Given = TypeVar("Given")
Made = TypeVar("Made")


def check_threshold(threshold: float | None) -> None:
    """Refuse a threshold that is not a probability; None stands for the model's own.

    Raises:
        UserError: it is below 0 or above 1
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"the threshold is {threshold}: give a value from 0 to 1")


@dataclass(frozen=True)
class Options:
    """Options of ``bustseg predict`` other than input, model and folder.

    Attributes:
        threshold: probability above which a pixel belongs to a lesion; the model's when not given
        batch_size: images per step of the network
        workers: number of decoding threads, and of writing threads; by the number of cores when not given
        overlays: draw the outline on the image
        probabilities: also write the probabilities
        dicom_seg: write a DICOM SEG for each DICOM file; it names the patient
        overwrite: replace existing predictions
        recursive: search sub-folders
    """

    threshold: float | None = None
    batch_size: int = 8
    workers: int | None = None
    overlays: bool = True
    probabilities: bool = False
    dicom_seg: bool = False
    overwrite: bool = False
    recursive: bool = True

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        for name, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}: give at least 1")

    @property
    def threads(self) -> int:
        """Threads of each of the two pools."""
        return self.workers or max(1, min(8, os.cpu_count() or 1))


@dataclass
class _Decoded:
    item: Item
    picture: np.ndarray | None = None  # the part that the network sees; None for a large picture or an error
    inner: tuple[int, int] = (0, 0)  # size of that part
    shape: tuple[int, int] = (0, 0)  # of the whole picture
    prepared: np.ndarray | None = None
    logits: Any = None
    seconds: float = 0.0
    error: str = ""


@dataclass
class _Count:
    written: int = 0
    failed: int = 0
    looked_at: int = 0
    repeated: int = 0
    errors: list[str] = field(default_factory=list)


def predict(given: Sequence[str], model: str | None, out: Path, options: Options) -> int:
    """Predict any number of images into a folder, see :mod:`bustseg.deploy.output` for its content.

    Images that the folder already has, with the same model and settings, are skipped; it may be interrupted at any
    time.

    Args:
        given: files, folders and globs
        model: a checkpoint, a run or an exported folder; the model in the box when not given
        out: folder to write to

    Returns:
        exit code: 0, 1 when an image could not be read, 2 when none could

    Raises:
        UserError: input, model, folder or an option cannot be used; the disk is full
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out")
    inputs = Inputs(given, out, options.recursive)
    if options.dicom_seg:
        seg.check()
    name = model if model is not None else str(boxed_model())
    # imported here: it may import torch, and errors in the input should not wait for that
    from bustseg.deploy.predictor import Predictor

    predictor = Predictor(name, threshold=options.threshold)
    output = None
    try:
        head = {**_head(name, predictor, options), "called": "in the box" if model is None else Path(name).name}
        output = Output(out, head, options.overwrite)
        return _predict_into(output, inputs, predictor, options)
    except OSError as error:
        if not disk_is_full(error):
            raise
        done = f"{output.done} images are done and kept" if output is not None else "nothing was written"
        raise UserError(f"the disk of {out} is full: {done}; free some space and run the same command again") from error
    finally:
        if output is not None:
            output.release()


def _head(name: str, predictor: Predictor, options: Options) -> dict[str, Any]:
    """Content of ``predictions.json`` before the first image; it names no input, since names may identify patients."""
    versions = {"bustseg": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "notice": NOTICE,
        "model": {"name": Path(name).name, "digest": predictor.digest},
        "threshold": predictor.threshold,
        "image_size": list(predictor.image_size),
        "postprocess": predictor.postprocess.to_dict(),
        "calibration": predictor.calibration.to_dict() if predictor.calibration else None,
        "training_images": predictor.images.to_dict(),
        "overlays": options.overlays,
        "probabilities": options.probabilities,
        "columns": COLUMNS,
        "versions": versions,
        "started": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _predict_into(output: Output, inputs: Inputs, predictor: Predictor, options: Options) -> int:
    before, count = output.done, _Count()
    if before:
        console.print(f"{before} images are already done", highlight=False)
    segments = _Segments(output, predictor, options.dicom_seg)
    progress = StreamProgress()
    # counting in a separate thread gives the time left without a list of all files
    counter = threading.Thread(target=_count_files, args=(inputs, progress), daemon=True)
    ahead = options.batch_size + 2 * options.threads
    readers, writers = (ThreadPoolExecutor(options.threads, thread_name_prefix=name) for name in ("read", "write"))
    try:
        with progress:
            counter.start()
            todo = _to_do(inputs, output, segments, count, progress)
            decoded = _ahead(readers, lambda item: _decode(item, predictor), todo, ahead)
            segmented = _segment(decoded, predictor, options.batch_size)
            write = _Writer(output, predictor, options)
            for item, row in _ahead(writers, write, segmented, ahead):
                output.add(row)
                if row.get("error"):
                    count.failed += 1
                    count.errors.append(_told(item, row["error"]))
                    del count.errors[_SHOWN_ERRORS:]
                else:
                    count.written += 1
                    output.done += 1
                    count.looked_at += row["look_at_this"]
                segments.finish(item, failed=bool(row.get("error")))
                progress.advance()
    except (KeyboardInterrupt, RuntimeError):
        text = f"{output.done} images are done in {output.folder}; the same command continues from there"
        error_console.print(text, highlight=False, markup=False)
        raise
    finally:
        for pool in (readers, writers):
            pool.shutdown(wait=True, cancel_futures=True)
    looked_at = output.looked_at + count.looked_at
    output.close(
        {
            "images": output.done,
            "errors": count.failed,
            "look_at_this": looked_at,
            "passed_over": inputs.passed.total(),
            "not_ultrasound": dict(inputs.not_ultrasound),
            "finished": _now(),
        }
    )
    if not output.done and not count.failed and inputs.not_ultrasound:
        raise UserError(f"no ultrasound image to predict: {inputs.told()}")
    return _tell(output, count, looked_at, progress, segments, inputs.told())


def _told(item: Item, error: str) -> str:
    if item.image in error:
        return error
    return f"{item.image}: {error}" if item.frame is None else f"{item.image} frame {item.frame}: {error}"


def _tell(
    output: Output, count: _Count, looked_at: int, progress: StreamProgress, segments: _Segments, passed_over: str
) -> int:
    """Print a summary; returns the exit code."""
    rate = f" ({progress.rate:.1f} images/s)" if count.written else ""
    flagged = f": {output.folder / TABLE} says why" if looked_at else ""
    head = output.head
    lines = [
        f"model {head['called']}, digest {head['model']['digest'][:12]}, threshold {head['threshold']:g}",
        f"{output.done} images in {output.folder}{rate}",
    ]
    if output.done:
        lines.append(f"{looked_at} of them to look at{flagged}")
        lines.append(f"next: open {output.folder / GALLERY} in a browser")
    if (output.folder / ORDER).is_file():
        lines.append(f"{ORDER} lists the images in the order in which reviewing them gains most")
    if segments.written:
        lines.append(
            f"{segments.written} DICOM SEG files in segmentations/: they name the patients, as the standard requires"
        )
    if count.repeated:
        lines.append(f"{count.repeated} images were named more than once and are listed once")
    if passed_over:
        lines.append(passed_over)
    for line in lines:
        console.print(line, highlight=False, markup=False)
    console.print(NOTICE, highlight=False)
    if not count.failed:
        return 0
    for message in count.errors:
        error_console.print(message, highlight=False, markup=False)
    more = f" ({len(count.errors)} shown)" if count.failed > len(count.errors) else ""
    images = several(count.failed, "image")
    print_error(f"{images} could not be read, see the column error of {output.folder / TABLE}{more}")
    return 1 if output.done else 2


def _count_files(inputs: Inputs, progress: StreamProgress) -> None:
    """Report the number of files; further images in a file are added when it is opened."""
    with suppress(OSError):
        progress.expect(sum(1 for _ in inputs.paths()))


def _to_do(
    inputs: Inputs, output: Output, segments: _Segments, count: _Count, progress: StreamProgress
) -> Iterator[Item]:
    """The images that are not done yet, each once."""
    seen: set[int] = set()
    passed_over = 0
    for item in inputs:
        progress.expect_more(passed_over - inputs.not_ultrasound.total())
        passed_over = inputs.not_ultrasound.total()
        if item.frame:
            progress.expect_more()
        if hash(item.key) in seen:
            count.repeated += 1
            progress.advance(worked=False)
            continue
        seen.add(hash(item.key))
        segments.expect(item)
        if output.has(item.key):
            segments.finish(item)
            progress.advance(worked=False)
        else:
            # here and not in the threads, so that the same input gives the same names
            yield replace(item, name=output.names.take(item.name, item.key))


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given], depth: int
) -> Iterator[Made]:
    """Results of ``work`` in the order of ``items``, with at most ``depth`` items in progress."""
    pending: deque[Future[Made]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        while pending and (len(pending) >= depth or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _decode(item: Item, predictor: Predictor) -> _Decoded:
    start = time.perf_counter()
    made = _Decoded(item)
    try:
        picture = item.read()
        with room_for(picture.shape[0] * picture.shape[1]):
            made.shape = (picture.shape[0], picture.shape[1])
            picture = item.cut(picture)
            made.prepared = predictor.prepare(picture)
        # a large picture is read again when it is written, since a dozen may be waiting in memory
        made.inner = (picture.shape[0], picture.shape[1])
        made.picture = picture if picture.size < LARGE else None
    except DataError as error:
        made.error = str(error)
    except MemoryError:
        made.error = "the image does not fit into memory"
    except Exception as error:  # a decoder's own failure must not stop the rest
        made.picture, made.prepared, made.error = None, None, f"cannot be read ({type(error).__name__})"
    made.seconds = time.perf_counter() - start
    return made


def _segment(decoded: Iterable[_Decoded], predictor: Predictor, batch_size: int) -> Iterator[_Decoded]:
    """Add the logits to each image, a batch at a time; unreadable images pass through in order."""
    batch: list[_Decoded] = []
    for one in decoded:
        batch.append(one)
        if sum(other.prepared is not None for other in batch) == batch_size or len(batch) == 4 * batch_size:
            yield from _with_logits(batch, predictor)
            batch = []
    yield from _with_logits(batch, predictor)


def _with_logits(batch: list[_Decoded], predictor: Predictor) -> list[_Decoded]:
    prepared = [one.prepared for one in batch if one.prepared is not None]
    if prepared:
        start = time.perf_counter()
        logits = iter(predictor.logits(prepared))
        share = (time.perf_counter() - start) / len(prepared)
        for one in batch:
            if one.prepared is not None:
                one.logits = next(logits)
                one.seconds += share
    return batch


@dataclass(frozen=True)
class _Writer:
    """Turns logits into files and a row of the table."""

    output: Output
    predictor: Predictor
    options: Options

    def __call__(self, one: _Decoded) -> tuple[Item, dict[str, Any]]:
        item = one.item
        row: dict[str, Any] = {"image": item.key[0], "frame": item.key[1]}
        if one.error or one.prepared is None:
            return item, row | {"error": " ".join(one.error.split()) or "cannot be read"}
        try:
            with room_for(one.inner[0] * one.inner[1]):
                start = time.perf_counter()
                found = self.predictor.finish(one.logits, one.inner, prepared=one.prepared)
                one.seconds += time.perf_counter() - start
                return item, row | self._write(one, found)
        except DataError as error:  # a large picture that was changed in between
            return item, row | {"error": " ".join(str(error).split())}
        except OSError as error:
            if error.errno not in _OF_THE_IMAGE:
                raise
            return item, row | {"error": f"its files cannot be written: {error.strerror}"}

    def _write(self, one: _Decoded, found: Prediction) -> dict[str, Any]:
        item, output = one.item, self.output
        name = item.name
        reasons = list(found.look_at_this)
        if item.header is not None and not item.header.declared:
            reasons.append("the file does not say that it is ultrasound")
        if self.options.overlays:
            if item.may_be_shown:
                picture = item.cut(item.read()) if one.picture is None else one.picture
                said_there = caption(found.confidence, reasons)
                drawn = with_disclaimer(captioned(overlay(picture, found.mask), said_there))
                write_whole(output.file("overlays", name), png(drawn))
            else:
                reasons.append("no overlay: text in the picture may name the patient")
        if self.options.probabilities:
            levels = np.rint(found.probability * 65535).astype(np.uint16)
            write_whole(output.file("probabilities", name), png(placed(levels, item.box, one.shape)))
        mask = placed(found.mask * np.uint8(255), item.box, one.shape)
        write_whole(output.file("masks", name), png(mask))
        said = found.summary(item.spacing)
        area_mm2, confidence = said["area_mm2"], said["confidence"]
        return {
            "mask": f"masks/{name}.png",
            "width": one.shape[1],
            "height": one.shape[0],
            "area_px": said["area_px"],
            "area_mm2": "" if area_mm2 is None else f"{area_mm2:.2f}",
            "components": said["components"],
            "largest_component_px": said["largest_component_px"],
            "presence": "" if said["presence"] is None else f"{said['presence']:.4f}",
            "lesion_probability": f"{said['lesion_probability']:.4f}",
            "confidence": "" if confidence is None else f"{confidence:.4f}",
            "threshold": f"{said['threshold']:g}",
            "look_at_this": int(bool(reasons)),
            "reason": "; ".join(reasons),
            "model": self.predictor.digest[:12],
            "milliseconds": f"{1000 * one.seconds:.1f}",
        }


def placed(part: np.ndarray, box: tuple[int, int, int, int] | None, shape: tuple[int, int]) -> np.ndarray:
    """``part`` at the place from which it was cropped in a picture of ``shape`` (H, W), with zeros around it."""
    if box is None:
        return part
    whole = np.zeros(shape, part.dtype)
    top, left, height, width = box
    whole[top : top + height, left : left + width] = part
    return whole


def overlay(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The outline of a mask on its image.

    Args:
        picture: ``uint8`` (H, W), or (H, W, 3) in RGB
        mask: 0 and 1 (H, W)

    Returns:
        ``uint8`` (H, W, 3) in RGB
    """
    canvas = cv2.cvtColor(to_grey(picture), cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture.copy()
    canvas = np.ascontiguousarray(canvas)
    draw_outline(canvas, mask, PREDICTION, max(1, round(min(mask.shape) / 250)))
    return canvas


def caption(confidence: float | None, reasons: Sequence[str]) -> str:
    """Caption of an overlay: ``confidence 0.83, look at this``; empty when there is nothing to say."""
    words = [] if confidence is None else [f"confidence {confidence:.2f}"]
    return ", ".join([*words, "look at this"] if reasons else words)


def captioned(picture: np.ndarray, words: str) -> np.ndarray:
    """A picture with words in its upper left corner, white with a black edge; ``uint8`` (H, W, 3), changed in place."""
    (length, height), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 1, 1)
    if not length:
        return picture
    # large enough to be read in a small view, but not wider than the picture
    scale = min(min(picture.shape[:2]) / 600, 0.94 * picture.shape[1] / length)
    thickness = max(1, round(1.6 * scale))
    draw_words(picture, words, (round(12 * scale), round(height * scale + 12 * scale)), scale, thickness)
    return picture


def with_disclaimer(picture: np.ndarray) -> np.ndarray:
    """A picture with the disclaimer in its lower left corner; ``uint8`` (H, W, 3), changed in place."""
    height, width = picture.shape[:2]
    (length, _), _ = cv2.getTextSize(WORDS, cv2.FONT_HERSHEY_SIMPLEX, 1, 1)
    scale = min(max(0.35, width / 1600), 0.96 * width / length)
    draw_words(picture, WORDS, (round(0.02 * width), height - max(3, round(10 * scale))), scale, 1)
    return picture


def draw_words(picture: np.ndarray, words: str, where: tuple[int, int], scale: float, thickness: int) -> None:
    """Draw white words with a black edge into a picture, ``uint8`` (H, W, 3).

    The edge is the same text, shifted by its thickness: in OpenCV 5 thicker text is wider and would not align.

    Args:
        picture: changed in place
        words: what to draw
        where: (x, y) of the lower left corner of the words
        scale, thickness: as in OpenCV
    """
    moves = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
    for colour, steps in (((0, 0, 0), moves), ((255, 255, 255), [(0, 0)])):
        for x, y in steps:
            place = (where[0] + x * thickness, where[1] + y * thickness)
            cv2.putText(picture, words, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)


class _Segments:
    """Writes the DICOM SEG of a file as soon as all its frames are done, now or earlier."""

    def __init__(self, output: Output, predictor: Predictor, wanted: bool) -> None:
        self.output, self.predictor, self.wanted = output, predictor, wanted
        self.written = 0
        self._left: dict[str, int] = {}

    def expect(self, item: Item) -> None:
        if self.wanted and item.header is not None:
            self._left.setdefault(item.image, item.frames)

    def finish(self, item: Item, failed: bool = False) -> None:
        """Count a frame as done; a file with a failed frame gets no SEG, which would show that frame as empty."""
        if item.image not in self._left:
            return
        self._left[item.image] = -1 if failed or self._left[item.image] < 0 else self._left[item.image] - 1
        if self._left[item.image] == 0:
            del self._left[item.image]
            self._write(item)

    def _write(self, item: Item) -> None:
        path = self.output.file("segmentations", item.image)
        if path.is_file():
            return
        names = [self.output.names.take(name, key) for name, key in all_frames(item)]
        masks = [(read_grey(self.output.file("masks", name)) > 127).astype(np.uint8) for name in names]
        settings = f"{self.predictor.threshold} {self.predictor.postprocess}"
        try:
            write_whole(path, seg.segmentation(item.path, masks, self.predictor.digest, settings))
            self.written += 1
        except DataError as error:
            error_console.print(f"no SEG of {item.image}: {error}", highlight=False, markup=False)
