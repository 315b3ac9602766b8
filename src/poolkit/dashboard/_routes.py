"""The routes of the page: its files, and the numbers it asks for once a second."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import json
import math
import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from poolkit._snapshots import Pools
from poolkit.dashboard._history import samples_of
from poolkit.dashboard._snapshot import see
from poolkit.dashboard._workers import Workers, page_of

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
    "/charts.js": ("charts.js", "text/javascript"),
}


def make_router(
    dependencies: Sequence[Any],
    pools_of: Callable[[Any], Pools],
    workers_folder: str | os.PathLike[str] | None,
) -> APIRouter:
    """Return a router with ``/poolkit`` and what belongs to it, all behind the dependencies.

    ``pools_of``: returns the pools for the scope of a request, or of an application.
    """
    workers = Workers(workers_folder, pools_of)
    router = APIRouter(lifespan=workers.lifespan)

    async def state(request: Request) -> Response:
        pools = pools_of(request.scope)
        asked = request.query_params
        name = asked.get("pool") or next(iter(pools), "")
        if name not in pools:
            return _answer(b'{"error":"There is no such pool"}', 404)
        meeting = await workers.meet(request.app, pools)
        worker, after, age = asked.get("worker") or meeting.own, _number(asked.get("after")), 0.0
        if worker == meeting.own:
            page, samples = see(pools[name]), samples_of(pools[name], after)
        else:
            other = meeting.other(worker)
            if other is None:
                return _answer(b'{"error":"This process has ended"}', 404)
            page, samples = page_of(other, name, after) or (b'{"is_asked":true}', [])
            age = other.age
        head = {"pools": list(pools), "pool": name, "worker": worker, "age": age}
        head = {**head, "samples": samples, **meeting.head(name)}
        # The page is in JSON already: that is made once for all who ask.
        return _answer(b"".join((json.dumps(head)[:-1].encode(), b",", page[1:])))

    for path, (file, kind) in _FILES.items():
        _add(router, path, _file(file, kind), dependencies)
    _add(router, "/state", state, dependencies)
    return router


def _add(router: APIRouter, path: str, endpoint: Any, dependencies: Sequence[Any]) -> None:
    router.add_api_route(
        f"/poolkit{path}",
        endpoint,
        dependencies=dependencies,
        include_in_schema=False,
        response_model=None,
    )


def _answer(content: bytes, status: int = 200) -> Response:
    return Response(content, status, _HEADERS, "application/json")


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
