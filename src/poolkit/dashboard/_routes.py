"""The routes of the page: its files, and the numbers it asks for once a second."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from poolkit._shell.pool import Pool
from poolkit.dashboard._snapshot import snapshot

#: What the page, and nothing else, may do in a browser.
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILES: Final = {
    "": ("page.html", "text/html"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def add_routes(
    router: APIRouter,
    dependencies: Sequence[Any],
    pools_of: Callable[[Request], Mapping[str, Pool[Any]]],
) -> None:
    """Add ``/poolkit`` and what belongs to it, all behind the dependencies."""

    async def state(request: Request) -> Response:
        pools = pools_of(request)
        names = list(pools)
        name = request.query_params.get("pool") or (names[0] if names else "")
        if name not in pools:
            return JSONResponse({"error": "there is no such pool"}, 404, _HEADERS)
        shown = snapshot(pools[name], _number(request.query_params.get("after")))
        return JSONResponse({"pools": names, "pool": name, **shown}, headers=_HEADERS)

    for path, (file, kind) in _FILES.items():
        router.add_api_route(
            f"/poolkit{path}",
            _file(file, kind),
            dependencies=dependencies,
            include_in_schema=False,
            response_model=None,
        )
    router.add_api_route(
        "/poolkit/state",
        state,
        dependencies=dependencies,
        include_in_schema=False,
        response_model=None,
    )


def _file(name: str, kind: str) -> Callable[[], Any]:
    content = files("poolkit.dashboard").joinpath(name).read_bytes()

    async def file() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return file


def _number(text: str | None) -> float:
    try:
        number = float(text or "-inf")
    except ValueError:
        return -math.inf
    return number
