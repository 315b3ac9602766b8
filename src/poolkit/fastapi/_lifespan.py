"""`lifespan`: the pools of an application, opened and closed with it."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias

from starlette.applications import Starlette

from poolkit._errors import PoolConfigError
from poolkit._pool import Pool
from poolkit.fastapi._attend import attend, dismiss
from poolkit.fastapi._dependencies import DEFAULT

PoolSource: TypeAlias = Pool[Any] | Callable[[], Pool[Any] | Awaitable[Pool[Any]]]

#: The name of all pools together, for `router`.
ALL: Final = "poolkit_pools"


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
        pools: dict[str, Pool[Any]] = {}
        async with contextlib.AsyncExitStack() as stack:
            for name, source in sources.items():
                pools[name] = await stack.enter_async_context(await _make(source, name))
            state = {**pools, ALL: pools}
            for name, value in state.items():
                setattr(app.state, name, value)
            for made in pools.values():
                attend(made)
            try:
                yield dict(state)
            finally:
                # A request that comes later is told of the lifespan, not of a closed pool.
                for name, value in state.items():
                    if getattr(app.state, name, None) is value:
                        delattr(app.state, name)
                for made in pools.values():
                    dismiss(made)

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
