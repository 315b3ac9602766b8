"""`router`: what an orchestrator asks, from the state of the pools; metrics; and the live page.

Nothing is acquired. A probe that waited in line would fail when the pool is busy, its pod would be
taken out or restarted, and the others would be busier still.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from poolkit._errors import PoolConfigError
from poolkit._options import check_seconds
from poolkit._shell.pool import Pool
from poolkit.fastapi._applications import DEFAULT, find_all


def router(
    *,
    health: bool = False,
    unready_after: float = 5.0,
    metrics: bool = False,
    dashboard: bool = False,
    dependencies: Sequence[Any] = (),
    public: bool = False,
    workers_folder: str | os.PathLike[str] | None = None,
) -> APIRouter:
    """Return a router for `fastapi.FastAPI.include_router`, with the parts that are asked for.

    ``health``: ``/livez`` always answers 200, and has nothing to do with the pools. ``/readyz``
    answers 200 unless a pool of the lifespan is closed, or has had no connection for
    ``unready_after`` seconds and cannot open one: then 503, with the reason. A busy pool is ready.

    ``metrics``: ``/metrics`` is the text that Prometheus reads, of the pools of the lifespan; it
    needs prometheus-client. Names of pools and routes are in it: keep it from the public.

    ``dashboard``: ``/poolkit`` is a live page of the pools: who holds what, who waits, the places
    in the code. So it is behind ``dependencies``, ``[Depends(an_admin)]`` for example, which are
    its own and not those of the probes; ``public=True`` shows it to everybody.

    ``workers_folder``: where a server has several processes, each leaves in this folder what the
    page and the metrics are made of. Then the page of any process shows them all, and any tells
    the metrics of all, with a label ``worker``.

    Raises `PoolConfigError` when no part is asked for, and for a dashboard with neither
    ``dependencies`` nor ``public=True``, and for a folder that cannot be used.
    """
    if not (health or metrics or dashboard):
        raise PoolConfigError("router() has nothing to serve: write router(health=True)")
    if dashboard and not (dependencies or public):
        raise PoolConfigError(
            "router(dashboard=True) would show everybody who holds what: give it dependencies="
            "[Depends(...)] that let the right ones in, or say public=True"
        )
    if (dependencies or public) and not dashboard:
        raise PoolConfigError(
            "dependencies= and public= of router() are those of the dashboard, and probes and "
            "metrics take none: write router(dashboard=True, ...), or leave them out"
        )
    if workers_folder is not None and not (metrics or dashboard):
        raise PoolConfigError(
            "workers_folder= of router() is for the dashboard and the metrics: write "
            "router(metrics=True, workers_folder=...), or leave it out"
        )
    check_seconds("unready_after", unready_after, optional=False)

    async def readyz(request: Request) -> JSONResponse:
        pools = find_all(request.scope)
        if pools is None:
            return JSONResponse({"status": "no pool is open: the lifespan has not run"}, 503)
        troubles = {
            "default" if name == DEFAULT else name: trouble
            for name, pool in pools.items()
            if (trouble := _trouble(pool, unready_after))
        }
        if troubles:
            return JSONResponse({"status": "not ready", "pools": troubles}, 503)
        return JSONResponse({"status": "ready"})

    if metrics:
        import_module("poolkit.prometheus")  # says what is missing
        text = import_module("poolkit.fastapi._metrics")
        made: APIRouter = text.make_router(_pools_by_name, workers_folder)
    else:
        made = APIRouter()
    if health:
        # Starlette's own routes: dependencies of the application are none of theirs.
        made.add_route("/livez", _livez, include_in_schema=False)
        made.add_route("/readyz", readyz, include_in_schema=False)
    if dashboard:
        page = import_module("poolkit.dashboard._routes")
        made.include_router(page.make_router(dependencies, _pools_by_name, workers_folder))
    return made


def _pools_by_name(scope: Any) -> dict[str, Pool[Any]]:
    pools = find_all(scope) or {}
    return {"default" if name == DEFAULT else name: pool for name, pool in pools.items()}


async def _livez(_: Request) -> JSONResponse:
    return JSONResponse({"status": "alive"})


def _trouble(pool: Pool[Any], patience: float) -> str | None:
    """Say why nobody can be served, if so."""
    state = pool._state
    if not state.is_open:
        return "closed"
    outage = state.outage
    if outage is None or state.idle or state.leased or state.recycling:
        return None
    now = pool._now()
    if now - outage.since < patience:
        return None
    # Without traffic a pool of `min_size=0` does not find out that the database is back: it has to
    # be called ready for that.
    is_trying = state.options.min_size or state.options.min_idle or state.queue or state.connecting
    if not is_trying and now >= outage.retry_at:
        return None
    return f"cannot connect for {now - outage.since:.0f} s"
