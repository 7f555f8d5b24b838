"""The server's routes: for programs, and for the page's uploads, pictures and corrections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, File, HTTPException, Path, Query, Request, Response, UploadFile

from bustseg.bounds import LimitError
from bustseg.errors import DataError, UserError, disk_is_full
from bustseg.serve.answers import (
    Correction,
    Found,
    Health,
    MaskForm,
    Model,
    Notice,
    PageImage,
    Predictions,
    Problem,
    Saved,
    SegmentationWish,
    Uploaded,
    UploadId,
)
from bustseg.serve.batching import Busy
from bustseg.serve.service import Service
from bustseg.serve.uploads import Upload

_LONGEST_NAME = 255

FrameNumber = Annotated[int, Path(ge=0, le=1_000_000, description="position in the file, from 0")]
Threshold = Annotated[
    float | None, Query(ge=0, le=1, description="probability above which a pixel is lesion; the model's otherwise")
]

_GONE: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such upload or frame."}}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "A picture."}}


@contextmanager
def _told() -> Iterator[None]:
    """Convert bustseg's errors to HTTP statuses."""
    try:
        yield
    except LimitError as error:
        raise HTTPException(413, str(error)) from None
    except UserError as error:  # DataError is one
        raise HTTPException(422, str(error)) from None
    except Busy:
        raise HTTPException(429, "too many images wait: try again", {"Retry-After": "1"}) from None
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise HTTPException(507, "the server's disk is full: free some space there, and try again") from None


@dataclass(frozen=True)
class Answers:
    """What all routes need for their responses.

    Attributes:
        service: segments images, keeps uploads, saves corrections
    """

    service: Service

    async def in_time(self, work: Awaitable[Any]) -> Any:
        """The result of a coroutine, unless it takes too long."""
        try:
            async with asyncio.timeout(self.service.settings.answer_seconds):
                with _told():
                    return await work
        except TimeoutError:
            error = "this request took too long: send fewer images at once, or try again"
            raise HTTPException(429, error, {"Retry-After": "5"}) from None

    def upload(self, id: str, frame: int = 0) -> Upload:
        """An upload that still exists and has this frame; otherwise the response is 404."""
        upload = self.service.uploads.get(id)
        if upload is None:
            raise HTTPException(404, "no such upload: it may have expired")
        if not frame < len(upload.items):
            raise HTTPException(404, f"the upload has {len(upload.items)} frames")
        return upload


def add_programs(app: FastAPI, answers: Answers) -> None:
    """Routes for programs: health, model, metrics, and predictions for files."""
    service = answers.service

    @app.get("/health", tags=["programs"])
    async def health() -> Health:
        """Whether the server is up."""
        return Health(waiting=service.batcher.waiting, requests=service.working)

    @app.get("/model", tags=["programs"])
    async def model() -> Model:
        """The model in use."""
        return Model(**service.model())

    @app.get("/metrics", tags=["programs"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/predict", tags=["programs"])
    async def predict(
        request: Request,
        files: Annotated[list[UploadFile], File(description="image files")],
        mask: Annotated[list[MaskForm] | None, Query(description="how masks are written; polygons otherwise")] = None,
        threshold: Threshold = None,
    ) -> Predictions:
        """Outline lesions in one or several files: PNG, JPEG, TIFF, BMP, DICOM (single or multi-frame), mp4, avi, webm.

        A file that cannot be read gets an `error`; if none can be read, the response is 422.
        """
        if len(files) > service.settings.max_files:
            raise HTTPException(413, f"more than {service.settings.max_files} files at once")
        forms = frozenset(str(form) for form in (mask or [MaskForm.polygons])) - {"none"}
        results, statuses = await answers.in_time(_predicted(service, files, forms, threshold, request.is_disconnected))
        if all(result.get("error") for result in results):
            raise HTTPException(max(statuses, default=422), results[0]["error"] if results else "no file")
        entries = [Found(**{"frame": None, **result}) for result in results]
        return Predictions(model=service.predictor.digest[:12], results=entries)


async def _predicted(
    service: Service,
    files: Sequence[UploadFile],
    forms: frozenset[str],
    threshold: float | None,
    gone: Callable[[], Awaitable[bool]],
) -> tuple[list[dict[str, Any]], list[int]]:
    """The result for each image of the files, and the HTTP status of each file that cannot be read.

    Args:
        service: segments
        files: the uploaded files
        forms: encodings of the masks
        threshold: probability above which a pixel is lesion; the model's when not given
        gone: tells whether the client has disconnected

    Raises:
        HTTPException: the client has disconnected
    """
    results: list[dict[str, Any]] = []
    statuses: list[int] = []

    async def one(item: Any, head: dict[str, Any]) -> dict[str, Any]:
        try:
            looked = await service.look(item, threshold)
        except DataError as error:
            return {**head, "error": str(error)}
        return {**head, **await service.run(service.written, looked, forms)}

    for file in files:
        head = {"file": (file.filename or "")[:_LONGEST_NAME], "frame": None, "frames": 1}
        opened = service.uploads.opened(file.file)
        try:
            _, items = await service.run(opened.__enter__)
        except DataError as error:
            results.append({**head, "error": str(error)})
            statuses.append(413 if isinstance(error, LimitError) else 422)
            continue
        try:
            several = len(items) > 1
            heads = [{**head, "frame": k if several else None, "frames": len(items)} for k in range(len(items))]
            for start in range(0, len(items), service.settings.batch_size):
                if await gone():
                    raise HTTPException(400, "the client has disconnected")
                part = slice(start, start + service.settings.batch_size)
                results.extend(await asyncio.gather(*map(one, items[part], heads[part])))
        finally:
            await service.run(opened.__exit__, None, None, None)
    return results, statuses


def add_uploads(app: FastAPI, answers: Answers) -> None:
    """Routes for files that the page shows image by image."""
    service = answers.service

    @app.post("/uploads", tags=["page"], status_code=201)
    async def upload(file: Annotated[UploadFile, File(description="an image file, loop or clip")]) -> Uploaded:
        """Keep a file for a while, to view its images one by one."""
        name = (file.filename or "")[:_LONGEST_NAME]
        kept = await answers.in_time(service.run(service.uploads.keep, file.file, name))
        return Uploaded(id=kept.id, file=name, frames=len(kept.items), dicom=kept.items[0].header is not None)

    @app.get("/uploads/{id}", tags=["page"], responses=_GONE)
    async def uploaded(id: UploadId) -> Uploaded:
        """Whether an upload still exists."""
        kept = answers.upload(id)
        return Uploaded(id=id, file=kept.name, frames=len(kept.items), dicom=kept.items[0].header is not None)

    @app.delete("/uploads/{id}", tags=["page"], responses=_GONE)
    async def forget(id: UploadId) -> Notice:
        """Remove an upload immediately."""
        if not await service.forget(id):
            raise HTTPException(404, "no such upload")
        return Notice()

    @app.get("/uploads/{id}/{frame}", tags=["page"], responses=_GONE)
    async def image(id: UploadId, frame: FrameNumber, threshold: Threshold = None) -> PageImage:
        """The network's result for one image."""
        kept = answers.upload(id, frame)
        looked = await answers.in_time(service.look_at(kept, frame, threshold))
        item, several = kept.items[frame], len(kept.items) > 1
        answer = service.written(looked, frozenset())
        return PageImage(
            file=kept.name,
            frame=frame if several else None,
            frames=len(kept.items),
            picture_width=looked.shape[1],
            picture_height=looked.shape[0],
            box=list(item.box) if item.box else None,
            spacing=list(item.spacing) if item.spacing else None,
            may_name_patient=not item.may_be_shown,
            **{**answer, "width": looked.part[1], "height": looked.part[0]},
        )


def add_pictures(app: FastAPI, answers: Answers) -> None:
    """Routes for what the page draws of an image."""
    service = answers.service

    @app.get("/uploads/{id}/{frame}/picture", tags=["page"], response_class=Response, responses={**_GONE, **_PNG})
    async def picture(id: UploadId, frame: FrameNumber) -> Response:
        """The scanned region as PNG."""
        content = await answers.in_time(service.run(service.picture, answers.upload(id, frame).items[frame]))
        return Response(content, media_type="image/png")

    binary: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/octet-stream": {}}, "description": "float32, little endian"}
    }

    @app.get("/uploads/{id}/{frame}/logits", tags=["page"], response_class=Response, responses={**_GONE, **binary})
    async def logits(id: UploadId, frame: FrameNumber) -> Response:
        """The network's logits at its own size, row by row: from these the page computes masks at any threshold."""
        looked = await answers.in_time(service.look_at(answers.upload(id, frame), frame))
        height, width = looked.logits.shape
        headers = {"X-Height": str(height), "X-Width": str(width)}
        content = looked.logits.astype("<f4").tobytes()
        return Response(content, media_type="application/octet-stream", headers=headers)

    @app.get("/uploads/{id}/{frame}/heat", tags=["page"], response_class=Response, responses={**_GONE, **_PNG})
    async def heat(id: UploadId, frame: FrameNumber) -> Response:
        """A heat map of the prediction as PNG: Grad-CAM, or for exported models occlusion, which takes seconds."""
        content = await answers.in_time(service.heat(answers.upload(id, frame).items[frame]))
        return Response(content, media_type="image/png")


def add_corrections(app: FastAPI, answers: Answers) -> None:
    """Routes for an annotator's results."""
    service = answers.service

    dicom: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/dicom": {}}, "description": "A DICOM SEG."}
    }

    @app.post("/uploads/{id}/segmentation", tags=["page"], response_class=Response, responses={**_GONE, **dicom})
    async def segmentation(id: UploadId, wish: SegmentationWish) -> Response:
        """DICOM SEG of a DICOM file; it contains the patient's identity, as the standard requires."""
        kept = answers.upload(id)
        masks = {one.frame: one.rle.model_dump() for one in wish.masks}
        content = await answers.in_time(service.segmentation(kept, masks, wish.threshold))
        return Response(content, media_type="application/dicom")

    @app.post("/uploads/{id}/{frame}/correction", tags=["page"], status_code=201, responses=_GONE)
    async def correct(id: UploadId, frame: FrameNumber, correction: Correction) -> Saved:
        """Save an annotator's correction of an image, for training."""
        kept = answers.upload(id, frame)
        rle = correction.rle.model_dump()
        record = await answers.in_time(
            service.save(
                kept,
                frame,
                str(correction.verdict),
                rle,
                correction.threshold,
                correction.who,
                correction.label,
                correction.no_text,
            )
        )
        return Saved(**record | {"rle": rle})

    @app.get("/uploads/{id}/{frame}/correction", tags=["page"], responses=_GONE)
    async def corrected(id: UploadId, frame: FrameNumber) -> Saved | None:
        """The last saved correction of an image; null if there is none."""
        record = await answers.in_time(service.saved(answers.upload(id, frame), frame))
        return Saved(**record) if record else None
