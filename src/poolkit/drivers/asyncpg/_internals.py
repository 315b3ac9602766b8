"""What poolkit touches of asyncpg that asyncpg does not document, looked at before it is used.

An agent may have put something of its own in the place of a part, and another version may lack it.
The classes are looked at when a driver is made, each connection when it is opened. What is not as
expected is done without, at the cost that `COSTS` names, and said once for each driver. Where
nobody could tell what a lease has left, or what still acts on its connection, the connection is
retired instead of being handed on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import exceptions as pg

from poolkit._errors import PoolConfigError
from poolkit.drivers.asyncpg._costs import COSTS, Notes

if TYPE_CHECKING:
    from collections.abc import Callable

#: So many wrappers around one thing are taken off.
_DEEPEST: Final = 16


class Doubtful(ConnectionError):
    """A connection of which nobody can tell whether it is fit for its next user."""


# -- the modules ---------------------------------------------------------------------------------


def _find_class(module: str, name: str) -> Any:
    """Return a class of asyncpg's, without what may be around it; None if there is none."""
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    found = plain_class(found)
    return found if issubclass(type(found), type) else None


def plain_class(kind: Any) -> Any:
    """Return a class from inside of what an agent has put around it."""
    return _plain(kind, lambda it: issubclass(type(it), type))


def _plain(thing: Any, is_it: Callable[[Any], bool]) -> Any:
    """Return what is inside of the wrappers of an agent; the innermost, if it is none of it."""
    for _ in range(_DEEPEST):
        if is_it(thing):
            break
        try:
            inner = thing.__wrapped__
        except Exception:
            break
        thing = inner
    return thing


BaseProtocol: Final[Any] = _find_class("asyncpg.protocol.protocol", "BaseProtocol")
#: The class of connections.
Connection: Final[Any] = _find_class("asyncpg.connection", "Connection") or plain_class(
    asyncpg.Connection
)


def _statement_state() -> Any:
    return _find_class("asyncpg.protocol.protocol", "PreparedStatementState")


def _no_timeout() -> Any:
    """Return what stands for no timeout; in its place None, which stands for command_timeout."""
    return getattr(importlib.import_module("asyncpg.protocol.protocol"), "NO_TIMEOUT", None)


def _proxy_class() -> type:
    """Return what is an `asyncpg.Connection` for ``isinstance``, and can be a base of views."""
    found = _find_class("asyncpg.connection", "_ConnectionProxy")
    if found is None or found.__dictoffset__ or found.__basicsize__ != object.__basicsize__:
        return object
    return found  # type: ignore[no-any-return]


ConnectionProxy: Final = _proxy_class()


def texts_of_asyncpg() -> frozenset[str]:
    """Return asyncpg's own statements, by which it learns of types."""
    try:
        introspection = importlib.import_module("asyncpg.introspection")
    except ImportError:
        return frozenset()
    values = vars(introspection).values()
    return frozenset(value for value in values if isinstance(value, str) and "pg_" in value)


# -- the class of connections --------------------------------------------------------------------


def missing_of_class(kind: type) -> list[str]:
    """Return the names of what a class of connections, and asyncpg's modules, lack."""
    missing = [
        name
        for name in COSTS
        if name.startswith("Connection._")
        and _is_method(name)
        and not callable(getattr(kind, name.partition(".")[2], None))
    ]
    if ConnectionProxy is object:
        missing.append("connection._ConnectionProxy")
    if BaseProtocol is None:
        missing.append("protocol.BaseProtocol")
    if _statement_state() is None:
        missing.append("protocol.PreparedStatementState")
    if _no_timeout() is None:
        missing.append("protocol.NO_TIMEOUT")
    return missing


_METHODS: Final = frozenset(
    {"_unwrap", "_get_statement", "_prepare", "_executemany", "_copy_out", "_introspect_type"}
    | {"_introspect_types", "_drop_local_statement_cache", "_drop_local_type_cache"}
    | {"_drop_global_statement_cache", "_drop_global_type_cache", "_mark_stmts_as_closed"}
)


def _is_method(name: str) -> bool:
    return name.partition(".")[2] in _METHODS


def is_asyncpgs(kind: type, name: str) -> bool:
    """Tell whether a class has a method of asyncpg's, whatever agents have put around it."""
    found = inspect.getattr_static(kind, name, None)
    return found is inspect.getattr_static(Connection, name, None)


# -- a connection --------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Inside:
    """What there is of one connection, as far as it is what it was expected to be."""

    missing: list[str]
    #: The protocol, without what an agent may have put around it.
    protocol: Any
    #: Sends a text by the simple protocol, past what agents have put around it.
    query: Callable[..., Any] | None
    #: A statement that cannot be closed.
    in_use: Any
    #: Whether what is made from the connection ends with the lease.
    guards: bool
    #: Whether the outermost transaction is known.
    knows_top: bool
    #: Whether all callbacks are known.
    knows_callbacks: bool
    #: Whether the statements are known.
    knows_statements: bool
    #: Whether codecs can be set back.
    knows_codecs: bool
    is_caching: bool
    login: str
    no_timeout: Any
    #: Says, once, what turns out to be missing later.
    tell: Callable[[str], None] = lambda _: None


def look(c: Any, kind: type) -> Inside:
    """Look at a connection that is being made, of a subclass of a class; raises nothing."""
    missing = missing_of_class(kind)
    protocol = protocol_of(c)
    if protocol is None and BaseProtocol is not None:
        missing.append("Connection._protocol")
    if not _is_of(getattr(c, "_transport", None), "get_extra_info"):
        missing.append("Connection._transport")

    def has(name: str, kind: type | tuple[type, ...]) -> bool:
        found = isinstance(getattr(c, name, None), kind)
        if not found:
            missing.append(f"Connection.{name}")
        return found

    callbacks = [has("_listeners", dict)]
    callbacks += [has(f"_{name}", set) for name in _CALLBACKS]
    # Setting it says whether there is such a thing; it is None at the beginning.
    knows_top = _can_set(c, "_top_xact", None)
    if not knows_top:
        missing.append("Connection._top_xact")
    guards = _guards(c)
    if not guards:
        missing.append("Connection._pool_release_ctr")
    parts = ("get_max_size", "get_max_lifetime", "iter_statements", "clear", "_on_remove")
    knows_statements = _is_of(getattr(c, "_stmt_cache", None), *parts)
    if not knows_statements:
        missing.append("Connection._stmt_cache")
    knows_statements &= has("_stmts_to_close", set)
    has("_stmt_cache_enabled", bool)
    caps = getattr(c, "_server_caps", None)
    if not all(isinstance(getattr(caps, name, None), bool) for name in CAPS):
        missing.append("Connection._server_caps")
    login = getattr(getattr(c, "_params", None), "user", None)
    if not isinstance(login, str):
        missing.append("Connection._params")
        login = str(getattr(_settings(c), "session_authorization", ""))
    in_use = query = None
    if protocol is not None:
        settings = _settings(c)
        names = ("remove_python_codec", "add_python_codec", "set_builtin_type_codec")
        missing += [
            f"ConnectionSettings.{name}"
            for name in (*names, "register_data_types")
            if not _is_of(settings, name)
        ]
        missing += [f"Protocol.{name}" for name in _PROTOCOLS if not _is_of(protocol, name)]
        if not isinstance(getattr(protocol, "queries_count", None), int):
            missing.append("Protocol.queries_count")
        in_use = _statement_in_use(protocol)
        if in_use is None and "protocol.PreparedStatementState" not in missing:
            missing.append("protocol.PreparedStatementState")
        send = getattr(BaseProtocol, "query", None)
        if "Protocol.query" not in missing and callable(send):
            query = functools.partial(send, protocol)
    codecs = ("ConnectionSettings.", "Connection._introspect", "Connection._drop_local")
    return Inside(
        missing,
        protocol,
        query,
        in_use,
        guards,
        knows_top,
        all(callbacks) and "Connection._unwrap" not in missing,
        knows_statements and "Connection._mark_stmts_as_closed" not in missing,
        not any(name.startswith(codecs) for name in missing) and knows_statements,
        getattr(c, "_stmt_cache_enabled", True) is True,
        login,
        _no_timeout(),
    )


_CALLBACKS: Final = ("log_listeners", "termination_listeners", "query_loggers")
CAPS: Final = ("advisory_locks", "notifications", "plpgsql", "sql_reset", "sql_close_all")
_PROTOCOLS: Final = (
    *("_is_cancelling", "_wait_for_cancellation", "_request_cancel"),
    *("close_statement", "query", "copy_out"),
)


def _is_of(thing: Any, *names: str) -> bool:
    return all(callable(getattr(thing, name, None)) for name in names)


def _can_set(c: Any, name: str, value: object) -> bool:
    try:
        if getattr(c, name) is not value:
            return False
        setattr(c, name, value)
    except Exception:
        return False
    return True


def _settings(c: Any) -> Any:
    try:
        return c.get_settings()
    except Exception:
        return None


def protocol_of(c: Any) -> Any:
    """Return the protocol itself, from inside of whatever is around it; None if it is not found."""
    if BaseProtocol is None:
        return None

    def is_it(thing: Any) -> bool:
        return issubclass(type(thing), BaseProtocol)

    found = _plain(getattr(c, "_protocol", None), is_it)
    if not is_it(found):  # something around it that does not say so; its methods do
        with contextlib.suppress(Exception):
            found = found.is_connected.__self__
    return found if is_it(found) else None


def _statement_in_use(protocol: Any) -> Any:
    try:
        state = _statement_state()("", "", protocol, asyncpg.Record, False)
        state.attach()
    except Exception:
        return None
    return state if getattr(state, "closed", None) is False else None


def _guards(c: Any) -> bool:
    """Tell whether what is made from the connection ends when the count of releases goes up."""
    try:
        made = inspect.unwrap(Connection.transaction)(c)
        before = c._pool_release_ctr
        if made._con_release_ctr != before or made._connection is not c:
            return False
        made._check_conn_validity("start")
        c._pool_release_ctr = before + 1
        try:
            made._check_conn_validity("start")
        except pg.InterfaceError:
            return True
        finally:
            c._pool_release_ctr = before
    except Exception:
        return False
    return False


async def try_out(c: Any) -> None:
    """Try what could be there and work in another way, on a connection with which nothing is done.

    Nothing is sent, and nothing raised for what does not work.
    """
    inside: Inside = c._inside
    protocol = inside.protocol
    if protocol is None:
        inside.in_use = None
        return
    if inside.in_use is not None:
        try:
            await protocol.close_statement(inside.in_use, inside.no_timeout)
        except pg.InternalClientError:
            pass
        except Exception:
            _lacks(c, "Protocol.close_statement")
        else:
            _lacks(c, "Protocol.close_statement")
    try:
        if await protocol._wait_for_cancellation() is not None:
            _lacks(c, "Protocol._wait_for_cancellation")
    except Exception:
        _lacks(c, "Protocol._wait_for_cancellation")
    try:
        if protocol._is_cancelling() is not False:
            _lacks(c, "Protocol._is_cancelling")
    except Exception:
        _lacks(c, "Protocol._is_cancelling")


def _lacks(c: Any, name: str) -> None:
    if c.is_closed():  # then nothing works as it should
        return
    inside: Inside = c._inside
    inside.missing.append(name)
    if name == "Protocol.close_statement":
        inside.in_use = None


def as_ours(c: Any, kind: type, notes: Notes, pool: str) -> Any:
    """Return a connection of our class for what was opened: an agent may have put it in a wrapper.

    Raises `PoolConfigError` if it is nothing of asyncpg's.
    """
    if issubclass(type(c), kind):
        return c
    notes.say(pool, ["asyncpg.connect"])
    inner = plain_connection(c)
    if issubclass(type(inner), kind):
        return inner
    if issubclass(type(inner), Connection):
        return remade(inner, kind)
    raise PoolConfigError(
        f"asyncpg.connect has returned a {type(c).__name__}, which is no connection of asyncpg's: "
        "something has replaced it"
    )


def plain_connection(c: Any) -> Any:
    """Return a connection from inside of what an agent has put around it."""
    return _plain(c, lambda it: issubclass(type(it), Connection))


def remade(c: Any, kind: Any) -> Any:
    """Return a connection of our class for one that was made without it."""
    try:
        made = kind(c._protocol, c._transport, c._loop, c._addr, c._config, c._params)
        for name in ("listeners", *_CALLBACKS):
            setattr(made, f"_{name}", getattr(c, f"_{name}"))
        if hasattr(c, "__dict__"):  # of a subclass
            vars(made).update(vars(c))
        c._protocol.set_connection(made)
        c._aborted = True  # whoever still has it has a closed one
        made._types.is_complete = False
    except (AttributeError, TypeError) as error:
        raise PoolConfigError(
            "a connection was made without the class that connection_class= has named, and with "
            f"this asyncpg it cannot be taken over ({error}): pass connection_class on to "
            "asyncpg.connect"
        ) from error
    return made


# -- what is asked of a connection ---------------------------------------------------------------


async def settle(c: Any) -> None:
    """Wait for a cancelled operation to end; cancel one that is under way, and wait for it.

    Another task's, whose lease is over. `asyncpg.Connection.reset` would return early here, before
    the cancelled BEGIN has taken effect. Raises if something may be under way after all.
    """
    if c.is_closed():
        raise ConnectionError("the connection was closed")
    inside: Inside = c._inside
    if inside.in_use is None:
        # asyncpg waits for a cancellation first, and refuses if something is under way.
        try:
            await c.execute_own("SELECT 1")
        except pg.InFailedSQLTransactionError:
            pass
        except pg.InterfaceError as error:
            raise Doubtful(f"an operation may be under way: {error}") from error
        return
    try:
        # asyncpg refuses to close a statement in use, and at the right moment: it has waited for a
        # cancellation and found nothing under way, and has sent nothing yet.
        await inside.protocol.close_statement(inside.in_use, inside.no_timeout)
    except pg.InternalClientError:
        return
    except pg.InterfaceError:
        if c.is_closed():
            raise
    name = "_request_cancel"
    try:
        inside.protocol._request_cancel()
        name = "_wait_for_cancellation"
        await inside.protocol._wait_for_cancellation()
    except (AttributeError, TypeError) as error:
        inside.tell(f"Protocol.{name}")
        raise Doubtful(f"what is under way cannot be cancelled: {error}") from error


def may_be_cancelling(c: Any) -> bool:
    """Tell whether a cancelled operation may not have ended yet."""
    try:
        return c._inside.protocol._is_cancelling() is not False
    except (AttributeError, TypeError):
        return True


async def copy_out(c: Any, first: str, copy: str, keep: Any) -> None:
    """Send statements and a ``COPY (...) TO STDOUT``, in one round trip if that can be had."""
    inside: Inside = c._inside
    if "Protocol.copy_out" not in inside.missing and inside.protocol is not None:
        try:
            await BaseProtocol.copy_out(inside.protocol, first + copy, keep, None)
        except TypeError:  # it is called in another way: nothing was sent
            inside.tell("Protocol.copy_out")
        else:
            return
    query = copy.removeprefix("COPY (").rpartition(") TO STDOUT")[0]
    await c.execute_own(first)
    await Connection.copy_from_query(c, query, output=keep, encoding="UTF8")


def is_odd(c: Any) -> bool:
    """Tell whether asyncpg knows the server to be no PostgreSQL."""
    caps = getattr(c, "_server_caps", None)
    return any(getattr(caps, name, None) is False for name in CAPS)


def socket_of(c: Any) -> Any:
    """Return the connection's socket, if there is one to be had."""
    try:
        return c._transport.get_extra_info("socket")
    except Exception:
        return None


def queries_count(c: Any) -> int:
    """Return how many queries the connection has had; 0 if nobody counts."""
    count = getattr(c._inside.protocol, "queries_count", 0)
    return count if isinstance(count, int) else 0


def plain_resource(made: Any) -> Any:
    """Return a statement, cursor or transaction from inside of what an agent has put around it."""
    return _plain(made, lambda it: hasattr(type(it), "_con_release_ctr"))
