"""``/metrics``: the pools of the application, as Prometheus reads them. Nothing is acquired."""

import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from fastapi import APIRouter
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from poolkit._snapshots import Applications, Pools, folder_of
from poolkit.prometheus import Collector
from poolkit.prometheus._workers import PART, left_of, told_of


def make_router(
    pools_of: Callable[[Any], Pools], workers_folder: str | os.PathLike[str] | None
) -> APIRouter:
    """Return a router with the route: one of Starlette's own, which takes no dependencies.

    ``pools_of``: returns the pools for the scope of a request, or of an application.
    """
    workers: Applications | None = None
    if workers_folder is not None:
        folder = folder_of(workers_folder, PART)
        workers = Applications(folder, pools_of, lambda pools, _: left_of(pools.values()))

    async def metrics(request: Request) -> Response:
        pools = pools_of(request.scope)
        if not pools:
            return PlainTextResponse("no pool is open: the lifespan has not run\n", 503)
        told: Any = Collector(*pools.values())
        if workers is not None:
            exchange = workers.meet(request.app, pools)
            try:
                found = await exchange.newest()
            except OSError as error:
                trouble = f"workers_folder cannot be read: {type(error).__name__}\n"
                return PlainTextResponse(trouble, 503)
            told = _Told(told_of(found, exchange.worker, pools.values()))
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        # It asks a registry for nothing but its metrics.
        return Response(encode(told), headers={"Content-Type": kind})

    router = APIRouter(lifespan=None if workers is None else workers.lifespan)
    router.add_route("/metrics", metrics, include_in_schema=False)
    return router


class _Told:
    """What an encoder needs of a registry."""

    def __init__(self, metrics: Iterator[Metric]) -> None:
        self._metrics: Final = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics
