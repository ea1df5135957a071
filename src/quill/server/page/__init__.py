"""The routes behind the page: JSON in, what `quill.lab` and `quill.experiments` compute out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import Route

    from quill.server.served_models import ServedModels


def routes(served: ServedModels) -> list[Route]:
    """Return all routes of the page; the application puts them under /api."""
    from quill.server.page import alternatives, jobs, learn, look, switches, watch
    from quill.server.page.laboratory import Laboratories

    laboratories, found = Laboratories(), alternatives.routes(served)
    for module in (look, switches, watch, learn, jobs):
        found += module.routes(laboratories)
    return found
