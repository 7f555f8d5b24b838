"""The page of ``bustseg live``: requests the newest picture again as soon as the last one is shown."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Response

from bustseg import __version__
from bustseg.disclaimer import NOTICE
from bustseg.live.stream import Live
from bustseg.serve.app import add_page, page_files
from bustseg.serve.guard import Guard
from bustseg.serve.settings import Settings

_PAGE = {"/": "/page/live.html", "/page/live.js": "/page/live.js", "/page/style.css": "/page/style.css"}
_WAIT_SECONDS = 5.0


def create_app(live: Live, settings: Settings, name: str) -> FastAPI:
    """The page and the pictures as an ASGI application.

    Args:
        live: source of the pictures
        settings: host and token
        name: name of the model
    """
    files = page_files()
    page = {path: files[file] for path, file in {**_PAGE, "/page/icon.svg": "/page/icon.svg"}.items()}
    app = FastAPI(title="bustseg live", version=__version__, description=NOTICE, docs_url=None, redoc_url=None)
    add_page(app, page)

    @app.get("/frame", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def frame(after: Annotated[int, Query(ge=0)] = 0) -> Response:
        """The newest picture with a number above `after`; 204 if there is none yet, 410 at the end."""
        found = await asyncio.to_thread(live.shown.after, after, _WAIT_SECONDS)
        if found is None:
            if live.shown.ended:
                raise HTTPException(410, live.error or "there are no more frames")
            return Response(status_code=204)
        number, shown = found
        headers = {
            "X-Number": str(number),
            "X-Area": str(shown.area_px),
            "X-Presence": "" if shown.presence is None else f"{shown.presence:.2f}",
            "X-Confidence": "" if shown.confidence is None else f"{shown.confidence:.2f}",
            "X-Look": "; ".join(shown.look_at_this),
            "X-Rate": f"{shown.rate:.1f}",
            "X-Read": str(shown.read),
            "X-Dropped": str(shown.dropped),
            "X-Milliseconds": f"{shown.milliseconds:.0f}",
        }
        return Response(shown.jpeg, media_type="image/jpeg", headers=headers)

    @app.get("/about")
    async def about() -> dict[str, str]:
        """Name of the model in use."""
        return {"model": name, "notice": NOTICE}

    app.add_middleware(Guard, settings=settings, public=list(page))
    return app
