"""`ServerTiming`: what a request has spent on connections, in the browser's network panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.dashboard._history import Timing, current, watch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit._shell.pool import Pool

#: Where ``poolkit.fastapi.lifespan`` leaves its pools.
_ALL: Final = "poolkit_pools"
#: In the scope of a request. A context may be another's: servers begin the next request in it.
_OUTER: Final = "poolkit_timing"


class ServerTiming:
    """An ASGI application around another, which adds a ``Server-Timing`` header to each response.

    ``app.add_middleware(ServerTiming)``, and a response says
    ``Server-Timing: pool;dur=1.2;desc="wait", db;dur=8.4;desc="held"``: the milliseconds that its
    request waited for connections, and held them, up to the moment when the response began.
    Browsers show it in the network panel, and scripts of the same origin read it from
    ``performance``. A request that touches no pool has two zeros.

    It tells clients how busy the pool is: leave it out where they are not to know.

    Args:
        app: the application.
        pools: the pools to watch; by default those of ``poolkit.fastapi.lifespan``.

    """

    def __init__(self, app: Any, *, pools: Iterable[Pool[Any]] | None = None) -> None:
        self.app = app
        self._pools = None if pools is None else tuple(pools)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        pools = self._pools if self._pools is not None else _pools_of(scope)
        for pool in pools:
            watch(pool).time()
        outer = scope.get(_OUTER)
        scope[_OUTER] = timing = Timing(pools, outer)
        token = current.set(timing)
        # A pool of another event loop is none of this request's.
        tasks = {
            pool: pool._runtime.task()
            for pool in pools
            if pool._state.is_open and pool._runtime.is_here()
        }

        async def send_timed(message: Any) -> None:
            if message["type"] == "http.response.start":
                held = timing.held
                for pool, this in tasks.items():
                    for slot in pool._state.leased:  # to the end of the response, by this task
                        task = slot.holder[0]() if slot.holder else None
                        if task is not None and task is this:
                            held += timing.held_since(pool, slot)
                header = _header(timing.waited, held)
                headers = [*message.get("headers", ()), (b"server-timing", header)]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, send_timed)
        finally:
            current.reset(token)
            scope[_OUTER] = outer


def _header(waited: float, held: float) -> bytes:
    return (
        f'pool;dur={waited * 1000:.1f};desc="wait", db;dur={held * 1000:.1f};desc="held"'.encode()
    )


def _pools_of(scope: Any) -> tuple[Pool[Any], ...]:
    # An application's own come first: it may be mounted in another one.
    app_state = getattr(scope.get("app"), "state", None)
    found = getattr(app_state, _ALL, None) or scope.get("state", {}).get(_ALL) or {}
    return tuple(found.values())
