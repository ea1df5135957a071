"""The application: every route, behind the checks of `security`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from quill.errors import QuillError
from quill.server import page
from quill.server.completions.route import complete
from quill.server.connection.security import Security
from quill.server.errors import ApiError, Errors, on_http_exception
from quill.server.metrics import Metrics, metrics
from quill.server.models import health, list_models, one_model
from quill.server.openapi import openapi
from quill.server.served_models import ServedModels
from quill.server.settings import ServerSettings
from quill.server.tokens import detokenize, tokenize, tokenizer_info

STATIC = Path(__file__).with_name("static")


def create_app(served: ServedModels, settings: ServerSettings | None = None) -> Starlette:
    """Return the ASGI application that serves these models and the page."""
    settings = settings or ServerSettings()
    files = StaticFiles(directory=STATIC, html=True)

    def is_public(path: str) -> bool:
        return path in ("/", "/health") or files.lookup_path(path.lstrip("/"))[1] is not None

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.loading = asyncio.create_task(load_default(served))
        yield
        app.state.loading.cancel()
        with contextlib.suppress(asyncio.CancelledError, QuillError):
            await app.state.loading

    counted = Metrics()
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{model_id:path}", one_model),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/tokenizer_info", tokenizer_info),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/v1/chat/completions", no_chat, methods=["POST"]),
            Mount("/api", routes=page.routes(served)),
            Mount("/", files),
        ],
        middleware=[
            Middleware(Security, settings=settings, is_public=is_public),
            Middleware(Errors, on_answer=counted.count_request),
        ],
        exception_handlers={HTTPException: on_http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.served, app.state.settings, app.state.metrics = served, settings, counted
    return app


async def load_default(served: ServedModels) -> None:
    """Load the newest model and make its engine, so that the first request need not wait."""
    model = await asyncio.to_thread(served.get)
    await asyncio.to_thread(model.load)
    await model.writer.call(lambda batch: None)


async def no_chat(request: Request) -> Response:
    """Answer POST /v1/chat/completions."""
    raise ApiError(404, "a base model has no chat template: use /v1/completions", code="not_supported")
