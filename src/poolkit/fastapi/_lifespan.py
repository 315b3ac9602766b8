"""`lifespan`: the pools of an application, opened and closed with it."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from starlette.applications import Starlette

from poolkit._errors import PoolConfigError
from poolkit._shell.pool import Pool
from poolkit.fastapi import _applications as applications
from poolkit.fastapi import _second_acquire as second_acquire
from poolkit.fastapi._applications import ALL, DEFAULT

PoolSource: TypeAlias = Pool[Any] | Callable[[], Pool[Any] | Awaitable[Pool[Any]]]


def lifespan(
    default: PoolSource, /, **named: PoolSource
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[dict[str, Any]]]:
    """Return a lifespan that opens pools at start-up and closes them at shutdown, last one first.

    Give it to the application: ``FastAPI(lifespan=poolkit.fastapi.lifespan(pool))``; or enter it in
    a lifespan of your own, and pass its state on::

        @contextlib.asynccontextmanager
        async def lifespan(app):
            async with poolkit.fastapi.lifespan(pool)(app) as state:
                ...  # the pools are open
                yield {**state, "more": ...}

    Args:
        default: the pool of the dependencies: a `Pool`, or a function without arguments that
            returns one (``async`` or not), called at each start-up, on the running event loop.
        named: more pools, for `for_pool`; also ``request.state.<name>`` and ``app.state.<name>``.

    Raises:
        PoolConfigError: something else was given, or returned by a function.
        PoolConfigError: at start-up, another lifespan of the same application (its own, or a
            router's) has opened another default pool, or another one of the same name.
        PoolError: at start-up, whatever `Pool.open` raises; the pools opened before are closed.

    """
    for name in (DEFAULT, ALL):
        if name in named:
            raise PoolConfigError(f"{name!r} is the name of the default pool: choose another")
    sources = {DEFAULT: default, **named}
    for name, source in sources.items():
        if not (isinstance(source, Pool) or callable(source)):
            raise PoolConfigError(
                f"lifespan() was given a {type(source).__name__} for {name!r}: give it a pool, for "
                "example poolkit.create_pool(url), or a function that returns one"
            )

    @contextlib.asynccontextmanager
    async def opened(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.AsyncExitStack() as stack:
            pools = applications.begin(app)
            stack.callback(applications.end, app, pools)
            for name, source in sources.items():
                made = await _make(source, name)
                applications.check(app, pools, name, made)
                applications.origins[made] = source
                second_acquire.begin(made)
                stack.callback(second_acquire.end, made)
                pools[name] = await stack.enter_async_context(made)
            try:
                yield applications.tell(app, pools)
            finally:
                # A request that comes later is told of the lifespan, not of a closed pool.
                applications.end(app, pools)

    applications.sources[opened] = sources
    return opened


async def _make(source: PoolSource, name: str) -> Pool[Any]:
    made = source if isinstance(source, Pool) else source()
    if inspect.isawaitable(made):
        made = await made
    if not isinstance(made, Pool):
        # A URL, perhaps, which would be seen in the log.
        what = "None" if made is None else f"a {type(made).__name__}"
        raise PoolConfigError(
            f"the function given to lifespan() for {name!r} returned {what}, not a pool"
        )
    return made
