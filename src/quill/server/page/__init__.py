"""The routes behind the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import Route

    from quill.server.served_models import ServedModels


def routes(served: ServedModels) -> list[Route]:
    """Return all routes of the page; the application puts them under /api."""
    from quill.server.page import alternatives

    return alternatives.routes(served)
