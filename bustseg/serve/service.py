"""The server's work on images, independent of HTTP: decode, segment, explain, save."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from bustseg import __version__
from bustseg.data.images import to_grey
from bustseg.data.inputs import Item
from bustseg.deploy import dicom_seg
from bustseg.deploy.output import png
from bustseg.deploy.predict import placed
from bustseg.deploy.prediction import Prediction
from bustseg.errors import DataError, UserError
from bustseg.serve.batching import Batcher
from bustseg.serve.corrections import REJECTED, Corrections, image_name
from bustseg.serve.metrics import Metrics
from bustseg.serve.settings import Settings
from bustseg.serve.shapes import from_run_lengths, polygons, run_lengths
from bustseg.serve.uploads import Upload, Uploads, read_item

if TYPE_CHECKING:
    from bustseg.deploy.predictor import Predictor

Made = TypeVar("Made")
RunLengths = Mapping[str, Any]
"""``size`` and ``counts`` of a mask, see :func:`bustseg.serve.shapes.run_lengths`."""

_SEEN = 32
"""Number of the page's images whose logits are cached, a quarter of a megabyte each at 256 x 256."""


def _expanded(rle: RunLengths, shape: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of run lengths from a client, whose size is checked first: a few bytes may claim any.

    Raises:
        DataError: its size is not ``shape``, or the counts do not fill it
    """
    if tuple(rle["size"]) != shape:
        raise DataError(f"the mask is {rle['size'][1]}x{rle['size'][0]}, the image {shape[1]}x{shape[0]}")
    return from_run_lengths(list(rle["size"]), list(rle["counts"]))


@dataclass(frozen=True)
class Seen:
    """One image after the network, before any threshold.

    Attributes:
        shape: (H, W) of the file's whole picture
        part: (H, W) of the scanned region
        prepared: ``uint8`` (h, w), the network's input
        logits: ``float32`` (1, h, w)
    """

    shape: tuple[int, int]
    part: tuple[int, int]
    prepared: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Looked:
    """One image after the network.

    Attributes:
        item: the item that it comes from
        shape: (H, W) of the file's whole picture
        part: (H, W) of the scanned region, which the mask belongs to
        logits: ``float32`` (h, w) at the network's size
        found: the prediction
    """

    item: Item
    shape: tuple[int, int]
    part: tuple[int, int]
    logits: np.ndarray
    found: Prediction


class Service:
    """A predictor with everything that concurrent clients need.

    Args:
        predictor: the model in use
        settings: limits
        name: name of the model
    """

    def __init__(self, predictor: Predictor, settings: Settings, name: str = "") -> None:
        self.predictor, self.settings, self.name = predictor, settings, name
        self.metrics = Metrics()
        self.uploads = Uploads(settings)
        self.corrections = Corrections(settings.corrections) if settings.corrections else None
        self.batcher = Batcher(
            predictor.logits, settings.batch_size, settings.max_requests * settings.batch_size, self.metrics.batched
        )
        self.working = 0  # number of requests, changed only by the event loop's thread
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)
        self.metrics.working.set_function(lambda: self.working)
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="serve")
        self._seen: OrderedDict[tuple[str, int], asyncio.Future[Seen]] = OrderedDict()
        self._explainer: Any = None
        # a heat map takes seconds: one at a time, and not in the threads that decode everybody's images
        self._explaining = ThreadPoolExecutor(1, thread_name_prefix="explain")

    def close(self) -> None:
        """Stop all threads and remove all files of clients."""
        self._explaining.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.batcher.close()
        self.uploads.close()

    @property
    def explanation(self) -> str:
        """Method that explains a prediction: occlusion for exported models, which have no gradients."""
        return "Occlusion" if self.predictor.task is None else "Grad-CAM"

    def model(self) -> dict[str, Any]:
        """Content of ``/model``."""
        predictor = self.predictor
        return {
            "name": self.name,
            "digest": predictor.digest,
            "version": __version__,
            "image_size": list(predictor.image_size),
            "threshold": predictor.threshold,
            "postprocess": predictor.postprocess.to_dict(),
            "calibrated": predictor.calibration is not None,
            "temperature": predictor.calibration.temperature if predictor.calibration else None,
            "training_images": predictor.images.to_dict(),
            "explanation": self.explanation,
            "corrections": self.corrections is not None,
        }

    async def run(self, function: Callable[..., Made], *args: Any) -> Made:
        """Run a function in one of the few threads that decode and encode."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args))

    async def look(self, item: Item, threshold: float | None = None) -> Looked:
        """Decode and segment one image.

        Raises:
            DataError: it cannot be read
            Busy: the network's queue is full
        """
        return await self._judged(item, await self._network(item), threshold)

    async def look_at(self, upload: Upload, frame: int, threshold: float | None = None) -> Looked:
        """Like :meth:`look`, for an image on the page.

        Its values, its logits and every threshold that the page tries come from one pass through the network.
        """
        key = upload.id, frame
        passing = self._seen.get(key)
        if passing is None:
            passing = self._seen[key] = asyncio.ensure_future(self._network(upload.items[frame]))
            passing.add_done_callback(partial(self._keep_only_seen, key))
            while len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(key)
        # the first client may disconnect while others wait for the same result
        return await self._judged(upload.items[frame], await asyncio.shield(passing), threshold)

    def _keep_only_seen(self, key: tuple[str, int], passing: asyncio.Future[Seen]) -> None:
        if (passing.cancelled() or passing.exception()) and self._seen.get(key) is passing:
            del self._seen[key]

    async def forget(self, id: str) -> bool:
        """Remove an upload and the cached results of its images; returns whether there was one."""
        for key in [key for key in list(self._seen) if key[0] == id]:
            self._seen.pop(key, None)
        return await self.run(self.uploads.drop, id)

    async def _network(self, item: Item) -> Seen:
        shape, part, prepared = await self.run(self._prepare, item)
        return Seen(shape, part, prepared, await asyncio.wrap_future(self.batcher.submit(prepared)))

    async def _judged(self, item: Item, seen: Seen, threshold: float | None) -> Looked:
        found = await self.run(self.predictor.finish, seen.logits, seen.part, threshold, seen.prepared)
        if found.look_at_this:
            self.metrics.flagged.inc()
        return Looked(item, seen.shape, seen.part, seen.logits[0], found)

    def _prepare(self, item: Item) -> tuple[tuple[int, int], tuple[int, int], np.ndarray]:
        """Shape of the whole picture, shape of the region, and the network's input; the picture itself is not kept."""
        picture = read_item(item, self.settings)
        region = item.cut(picture)
        return (picture.shape[0], picture.shape[1]), (region.shape[0], region.shape[1]), self.predictor.prepare(region)

    def picture(self, item: Item) -> bytes:
        """PNG of the scanned region, for the page."""
        return png(np.ascontiguousarray(item.cut(read_item(item, self.settings))))

    def grey(self, item: Item) -> np.ndarray:
        """The scanned region, grey ``uint8`` (H, W)."""
        return np.ascontiguousarray(to_grey(item.cut(read_item(item, self.settings))))

    async def heat(self, item: Item) -> bytes:
        """Heat map of the prediction: PNG at the network's resolution, with maximum 255.

        Grad-CAM of the network's last decoder block, or occlusion where there are no gradients (seconds: 226 passes).
        """
        return await asyncio.get_running_loop().run_in_executor(self._explaining, self._heat, item)

    def _heat(self, item: Item) -> bytes:
        region = self.grey(item)
        prepared = self.predictor.prepare(region)
        if self.predictor.task is None:
            from bustseg.explain.occlusion import occlusion_map

            heat, _ = occlusion_map(self.predictor.logits, prepared, self.predictor.rule)
        else:
            heat = self._grad_cam(prepared[None, None])
        shown = heat[self.predictor.framing.window((region.shape[0], region.shape[1]))]
        return png(np.ascontiguousarray(np.rint(255 * shown).astype(np.uint8)))

    def _grad_cam(self, batch: np.ndarray) -> np.ndarray:
        from bustseg.explain.gradcam import default_layer, heat_maps

        if self._explainer is None:  # hooks affect the whole network, so it works on a copy
            self._explainer = copy.deepcopy(self.predictor.task)
        layer = default_layer(self._explainer, batch)
        return heat_maps(self._explainer, batch, [layer]).heat[layer][0]

    @staticmethod
    def written(looked: Looked, forms: frozenset[str]) -> dict[str, Any]:
        """The response for one image; its mask covers the file's whole picture.

        Args:
            looked: the image
            forms: encodings of the mask: ``polygons``, ``rle``, ``png``
        """
        said = looked.found.summary(looked.item.spacing)
        answer = {
            "width": looked.shape[1],
            "height": looked.shape[0],
            **said,
            "look_at_this": bool(said["reasons"]),
        }
        mask = placed(looked.found.mask, looked.item.box, looked.shape) if forms else looked.found.mask
        if "polygons" in forms:
            answer["polygons"] = polygons(mask)
        if "rle" in forms:
            answer["rle"] = run_lengths(mask)
        if "png" in forms:
            answer["png"] = base64.b64encode(png(mask * np.uint8(255))).decode()
        return answer

    async def segmentation(self, upload: Upload, masks: Mapping[int, RunLengths], threshold: float | None) -> bytes:
        """The DICOM SEG of an upload.

        Args:
            upload: a DICOM file
            masks: run lengths of masks (H, W) of the scanned region by frame, which replace the network's
            threshold: threshold of the network's masks

        Raises:
            DataError: not a DICOM file, one that lacks data that a SEG must repeat, or a mask that does not fit
        """
        if upload.items[0].header is None:
            raise DataError("a DICOM SEG can be created only from a DICOM file")
        whole = []
        for frame, item in enumerate(upload.items):
            if frame in masks:
                shape, part, _ = await self.run(self._prepare, item)
                mask = await self.run(_expanded, masks[frame], part)
                whole.append(placed(mask, item.box, shape))
            else:
                looked = await self.look_at(upload, frame, threshold)
                whole.append(placed(looked.found.mask, item.box, looked.shape))
        digest = image_name(np.concatenate([np.packbits(mask) for mask in whole]))
        settings = f"{threshold or self.predictor.threshold} {self.predictor.postprocess} {digest}"
        return await self.run(dicom_seg.segmentation, upload.path, whole, self.predictor.digest, settings)

    async def save(
        self,
        upload: Upload,
        frame: int,
        verdict: str,
        rle: RunLengths,
        threshold: float | None,
        who: str,
        label: str,
        no_text: bool,
    ) -> dict[str, Any]:
        """Save a correction, see :meth:`bustseg.serve.corrections.Corrections.save`.

        Raises:
            UserError: saving is switched off, or text in the picture may name the patient
            DataError: the mask does not fit
        """
        if self.corrections is None:
            raise UserError("this server does not save corrections: start it with --corrections DIR")
        item = upload.items[frame]
        # of a rejected image only the masks are saved
        if not (item.may_be_shown or no_text or verdict == REJECTED):
            raise UserError(
                "text in this picture may name the patient: confirm that it shows no name (no_text), or do not save it"
            )
        looked = await self.look_at(upload, frame, threshold)
        after = await self.run(_expanded, rle, looked.part)
        image = await self.run(self.grey, item)
        cutoff = looked.found.threshold
        model = {"name": Path(self.name).name, "digest": self.predictor.digest}
        record = await self.run(
            self.corrections.save,
            image,
            looked.found.mask,
            after,
            verdict,
            model,
            cutoff,
            who,
            label,
            self._patient(upload),
        )
        self.metrics.saved.labels(verdict).inc()
        return record

    @staticmethod
    def _patient(upload: Upload) -> str:
        """The patient key that the frames of a file share, so that a split keeps them together."""
        header = upload.items[0].header
        if header is not None:
            return header.patient or header.file
        if len(upload.items) == 1:
            return ""
        first = cv2.imread(str(upload.items[0].path), cv2.IMREAD_GRAYSCALE)
        return "" if first is None else f"file {image_name(first)}"

    async def saved(self, upload: Upload, frame: int) -> dict[str, Any] | None:
        """The newest record of an image with its mask as run lengths; None if it has none."""
        if self.corrections is None:
            return None
        image = await self.run(self.grey, upload.items[frame])
        record = self.corrections.last(image_name(image))
        if record is None:
            return None
        return record | {"rle": run_lengths(await self.run(self.corrections.mask, record))}
