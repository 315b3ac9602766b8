"""A request's transaction: begun by the dependency, and over with its scope."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from anyio.lowlevel import checkpoint

from poolkit._shell.messages import commit_unknown
from poolkit._shell.transaction import Transaction, transaction
from poolkit.fastapi import _applications as applications
from poolkit.fastapi import _framework as framework
from poolkit.fastapi import _function_scope as function_scope
from poolkit.fastapi import _websockets as websockets

if TYPE_CHECKING:
    import types

    from starlette.requests import HTTPConnection

    from poolkit._shell.pool import Pool
    from poolkit.fastapi._lazy import LazyConnection
    from poolkit.fastapi._request import RequestLeases

#: Seconds: as long as a server that answers may take.
_COMMIT_LIMIT: Final = 30.0

#: What to write in a WebSocket instead.
FOR_A_MESSAGE: Final = (
    "depend on poolkit.fastapi.pool, and write `async with pool.transaction() as conn:`"
)


async def begin(
    http: HTTPConnection,
    held: RequestLeases,
    pool: Pool[Any],
    lease: LazyConnection[Any],
    settings: dict[str, Any],
) -> Any:
    """Begin the transaction of a request, and have it end with the function scope."""
    websockets.advise(http.scope, held.label, "transaction", FOR_A_MESSAGE)
    on_it, connection = await begin_on(pool, lease, settings)
    stack = function_scope.stack_of(http)
    # Else the exit of a dependency stands between, which may use the connection, and its session.
    if held.ends_next(stack):
        on_it.ending_lease()
    stack.push_async_exit(functools.partial(end, on_it, pool, http))
    return connection


async def begin_on(
    pool: Pool[Any], lease: LazyConnection[Any], settings: dict[str, Any]
) -> tuple[Transaction[Any], Any]:
    """Begin a transaction on the lease of a request; return it, and the connection."""
    began, is_new = pool._now(), not lease.is_held
    try:
        on_it: Transaction[Any] = transaction(await lease.keep(), **settings)
        if is_new:
            on_it.exchanging(functools.partial(lease.exchange, since=began))
        connection = await on_it.within(pool._default_limit, since=began).__aenter__()
    except BaseException as error:
        lease.has_not_begun(error, is_new=is_new)
        raise
    return on_it, connection


async def end(
    on_it: Transaction[Any],
    pool: Pool[Any],
    http: HTTPConnection,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: types.TracebackType | None,
) -> None:
    """Commit or roll back; a client that leaves meanwhile does not leave it half done."""
    visit = http.scope.get(applications.VISIT)
    if error is None and visit is not None and visit.is_cancelled:
        try:
            await checkpoint()  # a thread, or an endpoint that has not awaited, knows nothing of it
        except BaseException as cancelled:
            await on_it.__aexit__(type(cancelled), cancelled, cancelled.__traceback__)
            raise
    is_over = error is not None and framework.has_closed(http, error)
    runtime = pool._runtime
    with runtime.limited(runtime.after(_COMMIT_LIMIT), shield=True) as scope:
        if is_over:
            await on_it.__aexit__(None, None, None)
        else:
            await on_it.__aexit__(kind, error, traceback)
    if scope.cancelled_caught and (error is None or is_over):
        late = TimeoutError(f"COMMIT was not done within {_COMMIT_LIMIT:g} s")
        raise commit_unknown(pool.name, late) from late
