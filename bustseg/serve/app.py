"""The server as an ASGI application; ``/openapi.json`` describes its interface."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from bustseg import __version__
from bustseg.disclaimer import NOTICE
from bustseg.serve.answers import Problem
from bustseg.serve.guard import Guard
from bustseg.serve.metrics import Measured
from bustseg.serve.routes import Answers, add_corrections, add_pictures, add_programs, add_uploads
from bustseg.serve.service import Service
from bustseg.serve.settings import Settings

if TYPE_CHECKING:
    from bustseg.deploy.predictor import Predictor

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request is malformed."},
    401: {"model": Problem, "description": "This server requires a token."},
    403: {"model": Problem, "description": "The request comes from another site."},
    408: {"model": Problem, "description": "The request did not arrive in time."},
    413: {"model": Problem, "description": "The request, a file or an image is too large."},
    421: {"model": Problem, "description": "The server does not have this name."},
    422: {"model": Problem, "description": "Not a readable image, or a value that is not allowed."},
    429: {"model": Problem, "description": "Too many requests at once: try again."},
    507: {"model": Problem, "description": "The server's disk is full."},
}


def page_files() -> dict[str, tuple[str, bytes]]:
    """The page's files by path, with their type: read once, so that no requested path reaches the disk."""
    found: dict[str, tuple[str, bytes]] = {}
    for file in files("bustseg.serve").joinpath("page").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix not in _TYPES:
            continue
        type_ = _TYPES[suffix] or mimetypes.guess_type(file.name)[0] or ""
        text = f"{type_}; charset=utf-8"
        found["/" if file.name == "index.html" else f"/page/{file.name}"] = (text, file.read_bytes())
    return found


class _Limited:
    """ASGI middleware that limits concurrent requests: further ones get 429 before their body is read."""

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


@asynccontextmanager
async def _lifespan(service: Service, app: FastAPI) -> AsyncIterator[None]:
    """While the server runs, remove uploads that have not been used for a while."""

    async def tidy() -> None:
        while True:
            await asyncio.sleep(min(60.0, service.settings.keep_seconds))
            await service.run(service.uploads.tidy)

    task = asyncio.create_task(tidy())
    try:
        yield
    finally:
        task.cancel()
        service.close()


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _problem(422, f"{where}: {first['msg']}")


async def _refused(request: Request, error: AnyHTTPException) -> Response:
    return _problem(error.status_code, str(error.detail), error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _problem(500, "an error in the server: its terminal says more")


def create_app(predictor: Predictor, settings: Settings | None = None, name: str = "") -> FastAPI:
    """The server as an ASGI application.

    Args:
        predictor: the model in use
        settings: limits; the defaults when not given
        name: name of the model
    """
    settings = settings or Settings()
    service = Service(predictor, settings, name)
    page = page_files()

    app = FastAPI(
        title="bustseg",
        version=__version__,
        description=f"Breast-tumour segmentation in ultrasound. {NOTICE}",
        docs_url=None,  # its page would load files from a CDN
        redoc_url=None,
        lifespan=partial(_lifespan, service),
        responses=_PROBLEMS,
    )
    app.state.service = service
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(AnyHTTPException)(_refused)
    app.exception_handler(Exception)(_failed)
    add_page(app, page)
    answers = Answers(service)
    add_programs(app, answers)
    add_uploads(app, answers)
    add_pictures(app, answers)
    add_corrections(app, answers)
    # the outermost middleware is added last
    free = ["/health", "/model", "/metrics", "/openapi.json", *page]
    app.add_middleware(_Limited, service=service, free=free)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(Guard, settings=settings, public=["/health", *page], refused=service.metrics.refused)
    return app


def add_page(app: FastAPI, page: Mapping[str, tuple[str, bytes]]) -> None:
    """Add routes for files, each with its content type."""
    for path, (type_, content) in page.items():
        # a plain route would take the defaults for query parameters
        app.add_route(path, partial(_static, type_, content), methods=["GET"], include_in_schema=False)


async def _static(type_: str, content: bytes, request: Request) -> Response:
    return Response(content, media_type=type_)
