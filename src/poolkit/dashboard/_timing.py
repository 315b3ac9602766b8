"""`ServerTiming`: what a request has spent on connections, in the browser's network panel."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.inspection import is_open_here
from poolkit._shell.runtime import running_task
from poolkit._shell.shared import OnePerPool, Shared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from poolkit._shell.pool import Pool

#: The request that the running code belongs to, if its application is wrapped in `ServerTiming`.
current: Final = contextvars.ContextVar["Timing | None"]("poolkit_timing", default=None)

#: Where ``poolkit.fastapi.lifespan`` leaves its pools.
_ALL: Final = "poolkit_pools"
#: In the scope of a request. A context may be another's: servers begin the next request in it.
_OUTER: Final = "poolkit_timing"


class Timing:
    """What one request has spent on connections so far, in seconds."""

    __slots__ = ("began", "outer", "released", "waited")

    def __init__(self, pools: Iterable[Pool[Any]], outer: Timing | None) -> None:
        #: When it began, by the clock of each pool that it is about; others are not its concern.
        self.began = {pool: pool._now() for pool in pools}
        self.outer = outer  # of a wrapper around this one, about the same request
        self.waited = 0.0
        self.released = 0.0

    def since(self, pool: Pool[Any], seconds: float) -> float:
        """Return how much of the time up to now is this request's: what was before is another's."""
        return min(seconds, pool._now() - self.began[pool])

    def held(self, task: object) -> float:
        """Return how long it has held connections; those that its task still holds until now."""
        still = [(pool, info) for pool in self.began for info in pool.leases(task=task)]
        return self.released + sum(self.since(pool, info.seconds) for pool, info in still)


class _Times(Shared):
    """Observes one pool, and tells each request what it has spent."""

    def wait_ended(
        self,
        pool: Pool[Any],
        label: str | None,  # noqa: ARG002
        seconds: float,
        outcome: str,  # noqa: ARG002
    ) -> None:
        """Add up."""
        for timing in _timings(pool):
            timing.waited += seconds

    def released(self, pool: Pool[Any], label: str | None, seconds: float) -> None:  # noqa: ARG002
        """Add up."""
        for timing in _timings(pool):
            timing.released += timing.since(pool, seconds)


_times: Final = OnePerPool(_Times)


def _timings(pool: Pool[Any]) -> Iterator[Timing]:
    """Return those of the running request that a pool is to tell."""
    timing = current.get()
    while timing is not None:
        if pool in timing.began:
            yield timing
        timing = timing.outer


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
        found = self._pools if self._pools is not None else _pools_of(scope)
        # A pool of another event loop is none of this request's.
        pools = [pool for pool in found if is_open_here(pool)]
        outer, task = scope.get(_OUTER), running_task()
        timing = Timing(pools, outer)

        async def send_timed(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = _header(timing.waited, timing.held(task))
                headers = [*message.get("headers", ()), (b"server-timing", header)]
                message = {**message, "headers": headers}
            await send(message)

        for pool in pools:
            _times.begin(pool)
        scope[_OUTER] = timing
        token = current.set(timing)
        try:
            await self.app(scope, receive, send_timed)
        finally:
            current.reset(token)
            scope[_OUTER] = outer
            for pool in pools:
                _times.end(pool)


def _header(waited: float, held: float) -> bytes:
    return (
        f'pool;dur={waited * 1000:.1f};desc="wait", db;dur={held * 1000:.1f};desc="held"'.encode()
    )


def _pools_of(scope: Any) -> tuple[Pool[Any], ...]:
    # An application's own come first: it may be mounted in another one.
    app_state = getattr(scope.get("app"), "state", None)
    found = getattr(app_state, _ALL, None) or scope.get("state", {}).get(_ALL) or {}
    return tuple(found.values())
