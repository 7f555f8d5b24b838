"""The server's addresses: what may be asked, and what it answers. ``/openapi.json`` says the same to programs."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, File, HTTPException, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from bustseg import __version__
from bustseg.bounds import LimitError
from bustseg.disclaimer import NOTICE
from bustseg.errors import DataError, UserError
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
from bustseg.serve.guard import Guard
from bustseg.serve.metrics import Measured
from bustseg.serve.service import Service
from bustseg.serve.settings import Settings
from bustseg.serve.shapes import from_run_lengths
from bustseg.serve.uploads import Upload

if TYPE_CHECKING:
    from bustseg.deploy.predictor import Predictor

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_LONGEST_NAME = 255

FrameNumber = Annotated[int, Path(ge=0, le=1_000_000, description="position in the file, from 0")]
Threshold = Annotated[
    float | None, Query(ge=0, le=1, description="probability above which a pixel is lesion; the model's otherwise")
]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is malformed."},
    401: {"model": Problem, "description": "This server wants a token."},
    403: {"model": Problem, "description": "The request comes from another site."},
    408: {"model": Problem, "description": "The request did not arrive in time."},
    413: {"model": Problem, "description": "The request, a file or an image is too large."},
    421: {"model": Problem, "description": "The server is not called that."},
    422: {"model": Problem, "description": "No image, or one that cannot be read; or a value that is not allowed."},
    429: {"model": Problem, "description": "Too many requests at once: try again."},
}
_GONE: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such upload or frame."}}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "A picture."}}


def page_files() -> dict[str, tuple[str, bytes]]:
    """The page's files by their path, with their type: read once, so that no path from outside touches a disk."""
    found: dict[str, tuple[str, bytes]] = {}
    for file in files("bustseg.serve").joinpath("page").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix not in _TYPES:
            continue
        type_ = _TYPES[suffix] or mimetypes.guess_type(file.name)[0] or ""
        text = f"{type_}; charset=utf-8"
        found["/" if file.name == "index.html" else f"/page/{file.name}"] = (text, file.read_bytes())
    return found


@contextmanager
def _told() -> Iterator[None]:
    """Errors of bustseg as HTTP statuses."""
    try:
        yield
    except LimitError as error:
        raise HTTPException(413, str(error)) from None
    except UserError as error:  # DataError is one
        raise HTTPException(422, str(error)) from None
    except Busy:
        raise HTTPException(429, "too many images wait: try again", {"Retry-After": "1"}) from None


class _Limited:
    """ASGI middleware: so many requests at the same time, one more is answered with 429 before its body is read."""

    def __init__(self, app: Any, service: Service, free: Sequence[str]) -> None:
        self.app, self.service, self.free = app, service, frozenset(free)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in self.free:
            await self.app(scope, receive, send)
            return
        if self.service.working >= self.service.settings.max_requests:
            answer = _problem(429, "too many requests at once: try again", {"Retry-After": "1"})
            await answer(scope, receive, send)
            return
        self.service.working += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.service.working -= 1


def _problem(status: int, error: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": error, "notice": NOTICE}, status, headers)


def create_app(  # noqa: C901, PLR0915 (its inner functions are the routes)
    predictor: Predictor, settings: Settings | None = None, name: str = ""
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        predictor: segments
        settings: limits; the defaults when not given
        name: what the model is called
    """
    settings = settings or Settings()
    service = Service(predictor, settings, name)
    page = page_files()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def tidy() -> None:
            while True:
                await asyncio.sleep(min(60.0, settings.keep_seconds))
                await service.run(service.uploads.tidy)

        task = asyncio.create_task(tidy())
        try:
            yield
        finally:
            task.cancel()
            service.close()

    app = FastAPI(
        title="bustseg",
        version=__version__,
        description=f"Breast-tumour segmentation in ultrasound. {NOTICE}",
        docs_url=None,  # its page would load from a CDN
        redoc_url=None,
        lifespan=lifespan,
        responses=_PROBLEMS,
    )
    app.state.service = service
    free = ["/health", "/model", "/metrics", "/openapi.json", *page]

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _problem(422, f"{where}: {first['msg']}")

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        return _problem(error.status_code, str(error.detail), error.headers)

    async def answered(work: Any) -> Any:
        """The result of a coroutine, unless it takes longer than may be."""
        try:
            async with asyncio.timeout(settings.answer_seconds):
                with _told():
                    return await work
        except TimeoutError:
            raise HTTPException(429, "there was no time for this request: try again", {"Retry-After": "5"}) from None

    def upload_of(id: str, frame: int = 0) -> Upload:
        upload = service.uploads.get(id)
        if upload is None:
            raise HTTPException(404, "no such upload: it may have been too long ago")
        if not frame < len(upload.items):
            raise HTTPException(404, f"the upload has {len(upload.items)} frames")
        return upload

    add_page(app, page)

    @app.get("/health", tags=["programs"])
    async def health() -> Health:
        """Whether the server is there."""
        return Health(waiting=service.batcher.waiting, requests=service.working)

    @app.get("/model", tags=["programs"])
    async def model() -> Model:
        """Which model answers."""
        return Model(**service.model())

    @app.get("/metrics", tags=["programs"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/predict", tags=["programs"])
    async def predict(
        request: Request,
        files: Annotated[list[UploadFile], File(description="image files")],
        mask: Annotated[list[MaskForm] | None, Query(description="how masks are written; polygons otherwise")] = None,
        threshold: Threshold = None,
    ) -> Predictions:
        """Outline lesions in one or several files: PNG, JPEG, TIFF, BMP, DICOM (single or multi-frame), mp4, avi, webm.

        A file that cannot be read has its `error`; where none can, the answer is 422.
        """
        if len(files) > settings.max_files:
            raise HTTPException(413, f"more than {settings.max_files} files at once")
        forms = frozenset(str(form) for form in (mask or [MaskForm.polygons])) - {"none"}
        results: list[dict[str, Any]] = []
        statuses: list[int] = []

        async def one(item: Any, head: dict[str, Any]) -> dict[str, Any]:
            try:
                looked = await service.look(item, threshold)
            except DataError as error:
                return {**head, "error": str(error)}
            return {**head, **await service.run(service.written, looked, forms)}

        async def work() -> None:
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
                    for start in range(0, len(items), settings.batch_size):
                        if await request.is_disconnected():
                            raise HTTPException(400, "the client has gone")
                        part = slice(start, start + settings.batch_size)
                        results.extend(await asyncio.gather(*map(one, items[part], heads[part])))
                finally:
                    await service.run(opened.__exit__, None, None, None)

        await answered(work())
        if all(result.get("error") for result in results):
            raise HTTPException(max(statuses, default=422), results[0]["error"] if results else "no file")
        entries = [Found(**{"frame": None, **result}) for result in results]
        return Predictions(model=predictor.digest[:12], results=entries)

    @app.post("/uploads", tags=["page"], status_code=201)
    async def upload(file: Annotated[UploadFile, File(description="an image file, loop or clip")]) -> Uploaded:
        """Keep a file for a while, to look at its images one by one."""
        name = (file.filename or "")[:_LONGEST_NAME]
        kept = await answered(service.run(service.uploads.keep, file.file, name))
        return Uploaded(id=kept.id, file=name, frames=len(kept.items), dicom=kept.items[0].header is not None)

    @app.get("/uploads/{id}", tags=["page"], responses=_GONE)
    async def uploaded(id: UploadId) -> Uploaded:
        """Whether an upload is still there."""
        kept = upload_of(id)
        return Uploaded(id=id, file=kept.name, frames=len(kept.items), dicom=kept.items[0].header is not None)

    @app.delete("/uploads/{id}", tags=["page"], responses=_GONE)
    async def forget(id: UploadId) -> Notice:
        """Remove an upload now."""
        if not await service.forget(id):
            raise HTTPException(404, "no such upload")
        return Notice()

    @app.get("/uploads/{id}/{frame}", tags=["page"], responses=_GONE)
    async def image(id: UploadId, frame: FrameNumber, threshold: Threshold = None) -> PageImage:
        """What the network says of one image."""
        kept = upload_of(id, frame)
        looked = await answered(service.look_at(kept, frame, threshold))
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

    @app.get("/uploads/{id}/{frame}/picture", tags=["page"], response_class=Response, responses={**_GONE, **_PNG})
    async def picture(id: UploadId, frame: FrameNumber) -> Response:
        """The scanned region as PNG."""
        content = await answered(service.run(service.picture, upload_of(id, frame).items[frame]))
        return Response(content, media_type="image/png")

    binary: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/octet-stream": {}}, "description": "float32, little endian"}
    }

    @app.get("/uploads/{id}/{frame}/logits", tags=["page"], response_class=Response, responses={**_GONE, **binary})
    async def logits(id: UploadId, frame: FrameNumber) -> Response:
        """The network's logits at its own size, row by row: from these a page cuts masks at any threshold by itself."""
        looked = await answered(service.look_at(upload_of(id, frame), frame))
        height, width = looked.logits.shape
        headers = {"X-Height": str(height), "X-Width": str(width)}
        content = looked.logits.astype("<f4").tobytes()
        return Response(content, media_type="application/octet-stream", headers=headers)

    @app.get("/uploads/{id}/{frame}/heat", tags=["page"], response_class=Response, responses={**_GONE, **_PNG})
    async def heat(id: UploadId, frame: FrameNumber) -> Response:
        """Grad-CAM as PNG of the network's size; checkpoints only."""
        content = await answered(service.run(service.heat, upload_of(id, frame).items[frame]))
        return Response(content, media_type="image/png")

    dicom: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/dicom": {}}, "description": "A DICOM SEG."}
    }

    @app.post("/uploads/{id}/segmentation", tags=["page"], response_class=Response, responses={**_GONE, **dicom})
    async def segmentation(id: UploadId, wish: SegmentationWish) -> Response:
        """DICOM SEG of a DICOM file; it carries the patient's identity, as the standard demands."""
        kept = upload_of(id)
        with _told():
            masks = {one.frame: from_run_lengths(one.rle.size, one.rle.counts) for one in wish.masks}
        content = await answered(service.segmentation(kept, masks, wish.threshold))
        return Response(content, media_type="application/dicom")

    @app.post("/uploads/{id}/{frame}/correction", tags=["page"], status_code=201, responses=_GONE)
    async def correct(id: UploadId, frame: FrameNumber, correction: Correction) -> Saved:
        """Save what an annotator says of an image, for training."""
        kept = upload_of(id, frame)
        rle = correction.rle.model_dump()
        record = await answered(
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
        """What was saved last of an image, null where nothing was."""
        record = await answered(service.saved(upload_of(id, frame), frame))
        return Saved(**record) if record else None

    # the outermost is added last
    app.add_middleware(_Limited, service=service, free=free)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(Guard, settings=settings, public=["/health", *page], refused=service.metrics.refused)
    return app


def add_page(app: FastAPI, page: Mapping[str, tuple[str, bytes]]) -> None:
    """Serve files by their paths, each with its type."""
    for path, (type_, content) in page.items():
        # a plain route would take the defaults for query parameters
        app.add_route(path, partial(_static, type_, content), methods=["GET"], include_in_schema=False)


async def _static(type_: str, content: bytes, request: Request) -> Response:
    return Response(content, media_type=type_)
