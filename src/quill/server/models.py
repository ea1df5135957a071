"""GET /v1/models, /v1/models/{id} and /health, and how routes find the model of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quill.server.errors import ApiError, json_response
from quill.server.served_models import ServedModel, ServedModels, UnknownModelError


async def find_model(request: Request, model_id: str | None) -> ServedModel:
    """Return a model of the server by its id, loaded; None is the newest. An unknown id is a 404 that lists all."""
    served: ServedModels = request.app.state.served
    try:
        model = await asyncio.to_thread(served.get, model_id)
    except UnknownModelError as error:
        raise ApiError(404, str(error.args[0]), param="model", code="model_not_found") from None
    if not model.is_loaded:
        await asyncio.to_thread(model.load)
    return model


async def list_models(request: Request) -> Response:
    """Answer GET /v1/models: all models, the default first."""
    served: ServedModels = request.app.state.served
    models = await asyncio.to_thread(lambda: [describe(served.get(model_id)) for model_id in served.ids()])
    return json_response({"object": "list", "data": models})


async def one_model(request: Request) -> Response:
    """Answer GET /v1/models/{id}."""
    model = await find_model(request, request.path_params["model_id"])
    return json_response(await asyncio.to_thread(describe, model))


def describe(model: ServedModel) -> dict[str, Any]:
    """Return a model as the API lists it; what the checkpoint says is added once it is in memory."""
    described: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.saved_at,
        "owned_by": "quill",
        "training": model.training,
    }
    if model.is_loaded:
        checkpoint = model.checkpoint
        described |= {
            "step": checkpoint.step,
            "val_loss": checkpoint.val_loss,
            "max_model_len": checkpoint.config.block_size,
            "vocab_size": checkpoint.config.vocab_size,
            "weights_sha256": model.hash,
        }
    return described


async def health(request: Request) -> Response:
    """Answer GET /health: 503 while the newest model is loaded at the start, and if that has failed; then 200."""
    loading: asyncio.Task[None] = request.app.state.loading
    if not loading.done():
        return json_response({"status": "loading the model"}, 503)
    if (error := loading.exception()) is not None:
        return json_response({"status": "no model", "detail": str(error)}, 503)
    return json_response({"status": "ok"})
