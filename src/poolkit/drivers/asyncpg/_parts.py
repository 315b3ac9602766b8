"""Which undocumented parts of asyncpg a connection has, examined before they are used.

An agent may have replaced a part, and another version of asyncpg may lack it. `missing_of_class`
looks at a class when a driver is made; `examine` and `try_out` look at each connection when it is
opened. poolkit does without a missing part, at the cost that `COSTS` names.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import exceptions as pg

from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._costs import COSTS

if TYPE_CHECKING:
    from collections.abc import Callable

#: Attributes of a connection, each a set of callbacks.
CALLBACKS: Final = ("_log_listeners", "_termination_listeners", "_query_loggers")
#: Flags by which asyncpg says what the server can do.
CAPABILITIES: Final = ("advisory_locks", "notifications", "plpgsql", "sql_reset", "sql_close_all")

_METHODS: Final = frozenset(
    {"_unwrap", "_get_statement", "_prepare", "_executemany", "_copy_out", "_introspect_type"}
    | {"_introspect_types", "_drop_local_statement_cache", "_drop_local_type_cache"}
    | {"_drop_global_statement_cache", "_drop_global_type_cache", "_mark_stmts_as_closed"}
    | {"_cancel_current_command"}
)
_PROTOCOL_METHODS: Final = (
    *("_is_cancelling", "_wait_for_cancellation", "_request_cancel"),
    *("close_statement", "query", "copy_out"),
)
_SETTINGS_METHODS: Final = (
    *("remove_python_codec", "add_python_codec", "set_builtin_type_codec", "register_data_types"),
)
_CACHE_METHODS: Final = (
    *("get_max_size", "get_max_lifetime", "iter_statements", "clear", "_on_remove"),
)


def missing_of_class(kind: type) -> list[str]:
    """Return the names in `COSTS` that a class of connections, or asyncpg's modules, lack."""
    missing = [
        name
        for name in COSTS
        if name.startswith("Connection._")
        and name.partition(".")[2] in _METHODS
        and not callable(getattr(kind, name.partition(".")[2], None))
    ]
    if unwrapped.ConnectionProxy is object:
        missing.append("connection._ConnectionProxy")
    if unwrapped.cancel_request() is None:
        missing.append("connect_utils._cancel")
    if unwrapped.BaseProtocol is None:
        missing.append("protocol.BaseProtocol")
    if unwrapped.statement_state_class() is None:
        missing.append("protocol.PreparedStatementState")
    if unwrapped.no_timeout() is None:
        missing.append("protocol.NO_TIMEOUT")
    return missing


@dataclasses.dataclass(slots=True)
class Parts:
    """The undocumented parts of one connection that are as poolkit knows them."""

    #: The names in `COSTS` of the parts that are not.
    missing: list[str]
    #: The protocol without its wrappers; None if it was not found.
    protocol: Any
    #: Sends a text by the simple protocol, past the wrappers of agents; None: it cannot be had.
    send_query: Callable[..., Any] | None
    #: The state of a statement that asyncpg refuses to close, as it is in use.
    statement_in_use: Any
    #: Whether what was made from the connection ends when its `_pool_release_ctr` goes up.
    has_release_count: bool
    #: Whether asyncpg keeps the outermost transaction in `_top_xact`.
    has_top_transaction: bool
    #: Whether all callbacks can be listed.
    has_callbacks: bool
    #: Whether asyncpg's cached statements can be listed.
    has_statements: bool
    #: Whether type codecs can be set back.
    has_codecs: bool
    #: asyncpg's `execute`; None if an agent, or a class of the user's, sees what it sends.
    execute: Any
    #: Whether asyncpg caches statements.
    is_caching: bool
    #: The role that has logged in.
    login: str
    #: What asyncpg takes for no timeout.
    no_timeout: Any
    #: Warns, once, of a part that turns out to be missing later.
    report_missing: Callable[[str], None] = lambda _: None


def examine(c: Any, kind: type) -> Parts:
    """Look at a connection that is being made, of a subclass of ``kind``; raises nothing."""
    missing = missing_of_class(kind)
    protocol = unwrapped.protocol_of(c)
    if protocol is None and unwrapped.BaseProtocol is not None:
        missing.append("Connection._protocol")
    if not _has_methods(getattr(c, "_transport", None), "get_extra_info"):
        missing.append("Connection._transport")

    def has(name: str, kind: type) -> bool:
        found = isinstance(getattr(c, name, None), kind)
        if not found:
            missing.append(f"Connection.{name}")
        return found

    callbacks = [has("_listeners", dict)] + [has(name, set) for name in CALLBACKS]
    has_top_transaction = _can_set(c, "_top_xact", None)  # None before the first transaction
    if not has_top_transaction:
        missing.append("Connection._top_xact")
    has_release_count = _ends_with_release_count(c)
    if not has_release_count:
        missing.append("Connection._pool_release_ctr")
    has_statements = _has_methods(getattr(c, "_stmt_cache", None), *_CACHE_METHODS)
    if not has_statements:
        missing.append("Connection._stmt_cache")
    has_statements &= has("_stmts_to_close", set)
    has("_stmt_cache_enabled", bool)
    capabilities = getattr(c, "_server_caps", None)
    if not all(isinstance(getattr(capabilities, name, None), bool) for name in CAPABILITIES):
        missing.append("Connection._server_caps")
    login = getattr(getattr(c, "_params", None), "user", None)
    if not isinstance(login, str):
        missing.append("Connection._params")
        login = str(getattr(_settings(c), "session_authorization", ""))
    statement_in_use = send_query = None
    if protocol is not None:
        statement_in_use = _statement_in_use(protocol)
        missing += _missing_of_protocol(c, protocol)
        if statement_in_use is None and "protocol.PreparedStatementState" not in missing:
            missing.append("protocol.PreparedStatementState")
        query = getattr(unwrapped.BaseProtocol, "query", None)
        if "Protocol.query" not in missing and callable(query):
            send_query = functools.partial(query, protocol)
    of_codecs = ("ConnectionSettings.", "Connection._introspect", "Connection._drop_local")
    return Parts(
        missing,
        protocol,
        send_query,
        statement_in_use,
        has_release_count,
        has_top_transaction,
        all(callbacks) and "Connection._unwrap" not in missing,
        has_statements and "Connection._mark_stmts_as_closed" not in missing,
        has_statements and not any(name.startswith(of_codecs) for name in missing),
        _unseen_execute(c, kind, protocol) if all(callbacks) else None,
        getattr(c, "_stmt_cache_enabled", True) is True,
        login,
        unwrapped.no_timeout(),
    )


def _unseen_execute(c: Any, kind: type, protocol: Any) -> Any:
    if (
        not unwrapped.is_as_written(kind, "execute")
        or getattr(c, "_protocol", None) is not protocol
    ):
        return None
    query = inspect.getattr_static(type(protocol), "query", None)
    is_unseen = query is getattr(unwrapped.BaseProtocol, "query", None)
    return unwrapped.Connection.execute if is_unseen else None


def _missing_of_protocol(c: Any, protocol: Any) -> list[str]:
    settings = _settings(c)
    missing = [
        f"ConnectionSettings.{name}"
        for name in _SETTINGS_METHODS
        if not _has_methods(settings, name)
    ]
    missing += [
        f"Protocol.{name}" for name in _PROTOCOL_METHODS if not _has_methods(protocol, name)
    ]
    if not isinstance(getattr(protocol, "queries_count", None), int):
        missing.append("Protocol.queries_count")
    return missing


def _has_methods(thing: Any, *names: str) -> bool:
    return all(callable(getattr(thing, name, None)) for name in names)


def _can_set(c: Any, name: str, value: object) -> bool:
    """Tell whether an attribute has a value and may be assigned; assigns that value again."""
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


def _statement_in_use(protocol: Any) -> Any:
    """Return a state that asyncpg takes for a statement in use; None if it cannot be made."""
    try:
        state = unwrapped.statement_state_class()("", "", protocol, asyncpg.Record, False)
        state.attach()
    except Exception:
        return None
    return state if getattr(state, "closed", None) is False else None


def _ends_with_release_count(c: Any) -> bool:
    """Tell whether what is made from a connection ends when its `_pool_release_ctr` goes up."""
    try:
        made = inspect.unwrap(unwrapped.Connection.transaction)(c)
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
    """Call the parts that may be there and behave otherwise, on a connection nobody has used yet.

    Sends nothing, and raises nothing: a part that fails is noted as missing.
    """
    parts: Parts = c._parts
    protocol = parts.protocol
    if protocol is None:
        parts.statement_in_use = None
        return
    if parts.statement_in_use is not None:
        try:
            await protocol.close_statement(parts.statement_in_use, parts.no_timeout)
        except pg.InternalClientError:
            pass  # as it should be: the statement is in use
        except Exception:
            _note_missing(c, "Protocol.close_statement")
        else:
            _note_missing(c, "Protocol.close_statement")
    try:
        if await protocol._wait_for_cancellation() is not None:
            _note_missing(c, "Protocol._wait_for_cancellation")
    except Exception:
        _note_missing(c, "Protocol._wait_for_cancellation")
    try:
        if protocol._is_cancelling() is not False:
            _note_missing(c, "Protocol._is_cancelling")
    except Exception:
        _note_missing(c, "Protocol._is_cancelling")


def _note_missing(c: Any, name: str) -> None:
    if c.is_closed():  # then every part fails
        return
    parts: Parts = c._parts
    parts.missing.append(name)
    if name == "Protocol.close_statement":
        parts.statement_in_use = None
