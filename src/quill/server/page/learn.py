"""The lessons: what the experiments found here, as `quill experiment` stores it, and what they would check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from quill.experiments.catalog import CATALOG
from quill.server.errors import ApiError
from quill.server.page.questions import answer

if TYPE_CHECKING:
    from quill.server.page.laboratory import Laboratories

FOLDER = Path("experiments")
"""Where `quill experiment` writes its results by default, below the folder in which the server was started."""

LESSONS = {
    "Attention is communication": ("ladder", "communication"),
    "Heads do different things": ("heads",),
    "The feed-forward network is worth its parameters": ("mlp",),
    "LayerNorm stabilises depth": ("depth-stability",),
    "Dropout generalises: when?": ("dropout",),
    "Depth is refinement": ("refinement", "induction"),
    "What limits a GPT on this machine": ("roofline",),
    "The batch is parallel": ("batch",),
}
"""The eight lessons, each with its experiments."""

OWN_MODEL = ("communication", "heads", "refinement")
"""Experiments that can look into a trained run."""


def routes(laboratories: Laboratories) -> list[Route]:
    """Return the routes of this file."""
    return [
        Route("/learn", overview, methods=["GET"]),
        Route("/learn/{name}", result, methods=["GET"]),
        Route("/learn/{name}/picture", picture, methods=["GET"]),
    ]


async def overview(request: Request) -> Response:
    """Return the lessons with their experiments, and the verdict of each that was run."""
    return answer(await run_in_threadpool(lessons))


def lessons() -> list[dict[str, Any]]:
    """Return the lessons with their experiments."""
    return [
        {"title": title, "experiments": [described(name) for name in names]} for title, names in LESSONS.items()
    ]  # fmt: skip


def described(name: str) -> dict[str, Any]:
    """Return what an experiment is about, and the verdict that is stored, if it was run."""
    found = stored(name)
    decided = decided_part(found) if found else {}
    return {
        "name": name,
        "about": CATALOG[name][1],
        "own_model": name in OWN_MODEL,
        "claim": found.get("claim") if found else None,
        "verdict": decided.get("verdict"),
    }


async def result(request: Request) -> Response:
    """Return the stored result of an experiment."""
    name = known_name(request)
    found = await run_in_threadpool(stored, name)
    if found is None:
        raise ApiError(404, f"{name} was not run here yet", code="no_result")
    shown = ("title", "claim", "measure", "opposite", "settings", "seed")
    decided = decided_part(found)
    return answer(
        {
            "name": name, **{key: found.get(key) for key in shown}, "seconds": found["timings"].get("seconds"),
            **{key: decided.get(key) for key in ("verdict", "control", "effects", "controls")},
        }
    )  # fmt: skip


async def picture(request: Request) -> Response:
    """Return the picture of a stored result."""
    name = known_name(request)
    file = FOLDER / name / "result.png"
    if not file.is_file():
        raise ApiError(404, f"{name} was not run here yet", code="no_result")
    return FileResponse(file, media_type="image/png")


def known_name(request: Request) -> str:
    """Return the name of an experiment in the address; ApiError 404 for any other."""
    name = request.path_params["name"]
    if name not in CATALOG:
        raise ApiError(404, f"there is no such experiment: the experiments are {', '.join(CATALOG)}")
    return name


def stored(name: str) -> dict[str, Any] | None:
    """Return the stored result of an experiment; None if there is none, or it is not one."""
    try:
        found = json.loads((FOLDER / name / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("timings"), dict) else None


def decided_part(found: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a result that has the verdict: the timings, if the verdict depends on them."""
    return found if "verdict" in found else found["timings"]
