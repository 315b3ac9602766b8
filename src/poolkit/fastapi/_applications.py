"""Which pools each application has open, and which of them a request is served with.

An application's own pools come first, then those of the applications it is mounted in, the nearest
first. So a mounted application that has pools of its own never gets its parent's by accident.

::

    outer (pool a) ── mount ──▶ middle (pool b) ── mount ──▶ inner (none)
    a                           b                            b
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any, Final

from anyio.lowlevel import current_token

from poolkit._errors import PoolConfigError
from poolkit._shell import labels
from poolkit._shell.pool import Pool
from poolkit.fastapi import _framework as framework
from poolkit.fastapi import _sent as sent
from poolkit.fastapi._routes import RouteLabel
from poolkit.fastapi._second_acquire import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

#: The name of the default pool in the state of a lifespan, and on ``app.state``.
DEFAULT: Final = "poolkit"

#: The name of all pools together, for `router`.
ALL: Final = "poolkit_pools"

#: In a scope: the applications with pools that the request has come through, outermost first.
_WAY: Final = "poolkit_way"


class Opened(dict[str, Pool[Any]]):
    """The pools that one run of a lifespan has opened so far, by their names."""

    def __init__(self) -> None:
        self.loop: Final[object] = current_token()
        #: What it has set on the state of its application.
        self.state: dict[str, Any] = {}


#: An application that is served twice at once, by two test clients, has runs on two event loops;
#: and several on one loop if its routers bring lifespans.
_runs: Final[weakref.WeakKeyDictionary[Any, list[Opened]]] = weakref.WeakKeyDictionary()


#: What each lifespan opens when it runs: pools, or functions that make them.
sources: Final[weakref.WeakKeyDictionary[Callable[..., Any], Mapping[str, object]]] = (
    weakref.WeakKeyDictionary()
)
#: What each pool came from: itself, or a function.
origins: Final[weakref.WeakKeyDictionary[Pool[Any], object]] = weakref.WeakKeyDictionary()


def _runs_of(app: Any) -> list[Opened]:
    try:
        return _runs.get(app, [])
    except TypeError:  # no application of Starlette's
        return []


# -- for lifespans -------------------------------------------------------------------------------


def begin(app: Any) -> Opened:
    """Note that a lifespan of an application runs: what it opens is put into what is returned."""
    opened = Opened()
    with contextlib.suppress(TypeError):  # no application of Starlette's
        _runs.setdefault(app, []).append(opened)
    framework.add_middleware(app, _Through)
    sent.look_at(app)
    return opened


def check(app: Any, opened: Opened, name: str, pool: Pool[Any]) -> None:
    """Raise `PoolConfigError` if another lifespan of the application has another pool so named."""
    for other in _runs_of(app):
        there = other.get(name, pool)
        if there is pool or other.loop != opened.loop:
            continue
        what, another = f"pool named {name!r}", f"{name}_2"
        if name == DEFAULT:
            what, another = "default pool", "other"
        raise PoolConfigError(
            f"a second {what} in one application: {pool.name!r}, and another lifespan of it (its "
            f"own, or a router's) has opened {there.name!r}. No dependency could tell which one is "
            "meant. Open both in one lifespan, and name one of them: FastAPI(lifespan="
            f"poolkit.fastapi.lifespan(first, {another}=second)); its dependencies are those of "
            f"poolkit.fastapi.for_pool({another!r})"
        )


def look_at_responses() -> None:
    """Have it known whether responses were sent to their end, in applications that have pools."""
    sent.want(list(_runs))


def tell(app: Any, opened: Opened) -> dict[str, Any]:
    """Set the pools on the state of the application, and return the state for its requests."""
    opened.state = {**opened, ALL: dict(opened)}
    for name, value in opened.state.items():
        setattr(app.state, name, value)
    return dict(opened.state)


def end(app: Any, opened: Opened) -> None:
    """Forget what a lifespan has opened; the pools of others that still run come to light again."""
    runs = _runs_of(app)
    runs[:] = [run for run in runs if run is not opened]
    for name, value in opened.state.items():
        if getattr(app.state, name, None) is value:
            delattr(app.state, name)
    opened.state = {}
    for run in runs:
        for name, value in run.state.items():
            if getattr(app.state, name, None) is None:
                setattr(app.state, name, value)


#: Serves an HTTP request, if somebody wants to do something around each.
around: Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]] | None = None
#: In a scope: what that knows of the request.
VISIT: Final = "poolkit_visit"


class _Through:
    """Middleware of an application with pools: notes that a request comes through, and labels it.

    What is acquired in the request without any of the dependencies has its route's label, too. All
    of it is undone at the end: servers begin the next request in the same context.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] == "lifespan":  # what it starts is of no request
            await self.app(scope, receive, send)
            return
        before = scope.get(_WAY, ())
        scope[_WAY] = (*before, scope.get("app"))
        label, request = RouteLabel(scope), current.get()
        label_before = labels.set_for_context(label)
        if request is not None:
            current.set(None)
        try:
            if around is None or scope["type"] != "http":
                await self.app(scope, receive, send)
            else:
                await around(self.app, scope, receive, send)
        finally:
            scope[_WAY] = before
            label.end()
            if labels.restore(label_before) and current.get() is not request:
                current.set(request)


# -- for requests --------------------------------------------------------------------------------


def find(scope: Scope, name: str) -> Pool[Any] | None:
    """Return the pool that a name means in the application that serves a request, or None."""
    app = scope.get("app")
    own = _open_now(app)
    if name in own:
        return own[name]
    for pools in _ways(scope):
        if name in pools:
            pool = pools[name]
            return None if _lacks_its_own(app, name, pool) else pool
    return None


def find_all(scope: Scope) -> dict[str, Pool[Any]] | None:
    """Return the pools, by their names, of the application that serves a request, or None."""
    pools = next(filter(None, _ways(scope)), None)
    if pools is None or _lacks_its_own(scope.get("app"), DEFAULT, pools.get(DEFAULT)):
        return None
    return pools


def _ways(scope: Scope) -> Iterator[dict[str, Pool[Any]]]:
    """Return the pools of the application that serves, then those of the ones around it."""
    app = scope.get("app")
    yield _open_now(app)
    by_hand = getattr(getattr(app, "state", None), DEFAULT, None)
    if isinstance(by_hand, Pool):
        yield {DEFAULT: by_hand}
    for outer in reversed(scope.get(_WAY, ())):
        yield _open_now(outer)
    # Where applications share a server, and only one of them has run its lifespan.
    pools = scope.get("state", {}).get(ALL)
    if isinstance(pools, dict):
        yield pools


def _lacks_its_own(app: Any, name: str, found: Pool[Any] | None) -> bool:
    """Tell whether an application's own lifespan has not run, and would open another pool."""
    if _open_now(app) or getattr(getattr(app, "state", None), name, None) is found:
        return False
    same = (None, found, None if found is None else origins.get(found))
    wanted = [sources[life].get(name) for life in framework.lifespans_of(app) if life in sources]
    return any(one not in same for one in wanted)


def _open_now(app: Any) -> dict[str, Pool[Any]]:
    runs = _runs_of(app)
    if len(runs) == 1:
        return runs[0]
    loop = current_token() if runs else None
    return {name: pool for run in runs if run.loop == loop for name, pool in run.items()}
