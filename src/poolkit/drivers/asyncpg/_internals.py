"""What poolkit does with a connection by undocumented parts of asyncpg, or else without them.

`poolkit.drivers.asyncpg._parts` says which parts a connection has. Where nobody could tell what a
lease has left, or what still acts on its connection, `Unfit` is raised: the pool retires the
connection instead of handing it on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

from asyncpg import exceptions as pg

from poolkit import PoolConfigError
from poolkit.drivers._background import run_later
from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._parts import CALLBACKS, CAPABILITIES

if TYPE_CHECKING:
    from poolkit.drivers.asyncpg._costs import MissingParts
    from poolkit.drivers.asyncpg._parts import Parts

#: Seconds until the server is asked once more to cancel what still runs; then twice as many.
_ASK_AGAIN: Final = 0.1
#: Seconds that a request to cancel may take that nobody waits for.
_LONGEST: Final = 5.0


class Unfit(ConnectionError):
    """A connection that may be unfit for its next user, which nobody can tell."""


# -- a connection of our class -------------------------------------------------------------------


def as_ours(c: Any, kind: type, reported: MissingParts, pool: str) -> Any:
    """Return a connection of our class for what `asyncpg.connect` has returned.

    That may be in a wrapper of an agent's, or of a class of asyncpg's own. Raises `PoolConfigError`
    if it is no connection of asyncpg's at all.
    """
    if issubclass(type(c), kind):
        return c
    reported.report(pool, ["asyncpg.connect"])
    inner = unwrapped.plain_connection(c)
    if issubclass(type(inner), kind):
        return inner
    if issubclass(type(inner), unwrapped.Connection):
        return remade(inner, kind)
    raise PoolConfigError(
        f"asyncpg.connect has returned a {type(c).__name__}, which is no connection of asyncpg's: "
        "something has replaced it"
    )


def remade(c: Any, kind: Any) -> Any:
    """Return a connection of our class that takes over from one made without the class."""
    try:
        made = kind(c._protocol, c._transport, c._loop, c._addr, c._config, c._params)
        for name in ("_listeners", *CALLBACKS):
            setattr(made, name, getattr(c, name))
        if hasattr(c, "__dict__"):  # of a subclass
            vars(made).update(vars(c))
        c._protocol.set_connection(made)
        c._aborted = True  # to whoever still has the old one, it is closed
        made._codecs.is_complete = False
    except (AttributeError, TypeError) as error:
        raise PoolConfigError(
            "a connection was made without the class that connection_class= has named, and with "
            f"this asyncpg it cannot be taken over ({error}): pass connection_class on to "
            "asyncpg.connect"
        ) from error
    return made


# -- operations ----------------------------------------------------------------------------------


async def settle(c: Any) -> None:
    """Wait until a cancelled operation has ended; cancel one that still runs, and wait for it.

    One that still runs is of a task whose lease is over. `asyncpg.Connection.reset` would return
    early here, before a cancelled BEGIN has taken effect. Raises `Unfit` if an operation may run
    all the same.
    """
    if c.is_closed():
        raise ConnectionError("the connection was closed")
    parts: Parts = c._parts
    if parts.statement_in_use is None:
        # asyncpg first waits for a cancellation, and refuses if an operation runs.
        try:
            await c.execute_own("SELECT 1")
        except pg.InFailedSQLTransactionError:
            pass
        except pg.InterfaceError as error:
            raise Unfit(f"an operation may be under way: {error}") from error
        return
    if "Protocol._wait_for_cancellation" not in parts.missing and may_be_cancelling(c):
        await _cancellation_ended(c)
    try:
        # asyncpg refuses to close a statement in use at the right moment: it has waited for a
        # cancellation, has found that no operation runs, and has sent nothing yet.
        await parts.protocol.close_statement(parts.statement_in_use, parts.no_timeout)
    except pg.InternalClientError:
        return
    except pg.InterfaceError:
        if c.is_closed():
            raise
    name = "_request_cancel"
    try:
        parts.protocol._request_cancel()
        name = "_wait_for_cancellation"
        await _cancellation_ended(c)
    except (AttributeError, TypeError) as error:
        parts.report_missing(f"Protocol.{name}")
        raise Unfit(f"what is under way cannot be cancelled: {error}") from error


async def _cancellation_ended(c: Any) -> None:
    """Wait until a cancelled operation has ended; ask the server again while it runs on.

    PostgreSQL forgets a request to cancel that overtakes its statement, as it does when the session
    is slow to read: the statement would then run to its end, and the connection be lost.
    """
    pause = _ASK_AGAIN
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await c._parts.protocol._wait_for_cancellation()
                return
        pause *= 2
        asked = asyncio.get_running_loop().create_future()
        try:
            c._cancel_current_command(asked)
        except (AttributeError, TypeError) as error:
            raise Unfit(f"the server has missed a cancellation: {error}") from error
        # Until the server has the request, it would cancel what is sent next.
        await asked


def may_be_cancelling(c: Any) -> bool:
    """Tell whether a cancelled operation may still run."""
    try:
        return c._parts.protocol._is_cancelling() is not False
    except (AttributeError, TypeError):
        return True


def cancel_late(c: Any) -> None:
    """Have the server cancel what runs on a connection that is about to be closed at once.

    It would go on there, with its locks, until it has something to send; and asyncpg gives up its
    own request to cancel with the connection.
    """
    request = unwrapped.cancel_request()
    if request is None or c.is_closed() or not (may_be_cancelling(c) or _is_busy(c)):
        return
    with contextlib.suppress(AttributeError):
        protocol = c._parts.protocol
        session = {"backend_pid": protocol.backend_pid, "backend_secret": protocol.backend_secret}
        server = {"loop": c._loop, "addr": c._addr, "params": c._params}
        run_later(c._loop, functools.partial(request, **server, **session), _LONGEST)


def _is_busy(c: Any) -> bool:
    """Tell whether an operation runs; False if nobody can tell."""
    parts: Parts = c._parts
    if parts.statement_in_use is None:
        return False
    closing = parts.protocol.close_statement(parts.statement_in_use, parts.no_timeout)
    try:
        closing.send(None)  # it refuses before it awaits anything: see `settle`
    except pg.InternalClientError:
        return False
    except pg.InterfaceError:
        return True
    except Exception:
        return False
    finally:
        closing.close()
    return False


async def copy_out(c: Any, first: str, copy: str, keep: Any) -> None:
    """Send statements and a ``COPY (...) TO STDOUT``; ``keep`` is awaited with each chunk of data.

    In one round trip if asyncpg's protocol can be called directly, else in two.
    """
    parts: Parts = c._parts
    if "Protocol.copy_out" not in parts.missing and parts.protocol is not None:
        try:
            await unwrapped.BaseProtocol.copy_out(parts.protocol, first + copy, keep, None)
        except TypeError:  # it takes other arguments: nothing was sent
            parts.report_missing("Protocol.copy_out")
        else:
            return
    query = copy.removeprefix("COPY (").rpartition(") TO STDOUT")[0]
    await c.execute_own(first)
    await unwrapped.Connection.copy_from_query(c, query, output=keep, encoding="UTF8")


# -- facts ---------------------------------------------------------------------------------------


def is_not_postgresql(c: Any) -> bool:
    """Tell whether asyncpg says that the server lacks something that PostgreSQL has."""
    capabilities = getattr(c, "_server_caps", None)
    return any(getattr(capabilities, name, None) is False for name in CAPABILITIES)


def socket_of(c: Any) -> Any:
    """Return the connection's socket; None if asyncpg does not give it."""
    try:
        return c._transport.get_extra_info("socket")
    except Exception:
        return None


def queries_count(c: Any) -> int:
    """Return how many queries the connection has run; 0 if asyncpg does not count them."""
    count = getattr(c._parts.protocol, "queries_count", 0)
    return count if isinstance(count, int) else 0
