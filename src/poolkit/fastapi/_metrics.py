"""``/metrics``: the pools of the application, as Prometheus reads them. Nothing is acquired."""

from fastapi import APIRouter
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from poolkit.fastapi._applications import find_all
from poolkit.prometheus import Collector


def add_metrics(router: APIRouter) -> None:
    """Add the route: one of Starlette's own, which no dependency of the application's is for."""

    async def metrics(request: Request) -> Response:
        pools = find_all(request.scope)
        if not pools:
            return PlainTextResponse("no pool is open: the lifespan has not run\n", 503)
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        # It asks a registry for nothing but its metrics.
        text = encode(Collector(*pools.values()))  # type: ignore[arg-type, unused-ignore]
        return Response(text, headers={"Content-Type": kind})

    router.add_route("/metrics", metrics, include_in_schema=False)
