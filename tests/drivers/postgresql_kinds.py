"""What a lease of PostgreSQL's can leave behind: how it is left, and how the next one would see it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

Act = Callable[[Any], Awaitable[object]]


class Own(asyncpg.Connection):
    """Has room for attributes."""

    __slots__ = ("__dict__",)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of state. Texts are SQL: to be executed, or a question with the answer true."""

    name: str
    leave: str | Act
    seen: str | Act
    #: Why it may stay, for whom that is so.
    note: str = ""
    #: Whether it is seen at once, by whoever has left it: not if looking spoils the connection.
    at_once: bool = True
    #: Whether there is a sense in having it from ``on_connect``.
    to_set_up: bool = True


async def leave(conn: Any, kind: Kind) -> None:
    """Leave it behind."""
    await (conn.execute(kind.leave) if isinstance(kind.leave, str) else kind.leave(conn))


async def is_seen(conn: Any, kind: Kind) -> bool:
    """Tell whether it is there."""
    if isinstance(kind.seen, str):
        return bool(await conn.fetchval(f"SELECT coalesce(({kind.seen}), false)"))
    return bool(await kind.seen(conn))


# -- the questions -------------------------------------------------------------------------------


def is_set(name: str, value: str) -> str:
    """Return the question whether a setting has this value."""
    return f"current_setting('{name}', true) = '{value}'"


def there_is(what: str) -> str:
    """Return the question whether a query has rows."""
    return f"SELECT count(*) > 0 FROM {what}"


async def in_transaction(conn: Any) -> bool:
    """Tell whether one is open, or has failed."""
    return bool(conn.is_in_transaction())


# -- callbacks and such --------------------------------------------------------------------------

_heard: list[object] = []


def _hear(*what: object) -> None:
    _heard.append(what)


async def heard_of(conn: Any) -> bool:
    """Do what callbacks are called for, and tell whether one was."""
    _heard.clear()
    with contextlib.suppress(asyncpg.InFailedSQLTransactionError):
        await conn.execute("DO $$BEGIN RAISE WARNING 'x'; END$$; NOTIFY here")
    for _ in range(3):  # asyncpg has the loop call them
        await asyncio.sleep(0)
    return bool(_heard)


async def add_log_listener(conn: Any) -> None:
    """Add one."""
    conn.add_log_listener(_hear)


async def add_query_logger(conn: Any) -> None:
    """Add one."""
    conn.add_query_logger(_hear)


async def add_listener(conn: Any) -> None:
    """Add one."""
    await conn.add_listener("here", _hear)


async def add_termination_listener(conn: Any) -> None:
    """Add one."""
    conn.add_termination_listener(_ends)


def _ends(_: object) -> None:
    """Be there."""


async def has_termination_listener(conn: Any) -> bool:
    """Tell whether it is there: its event would end the connection."""
    slot = getattr(conn, "_poolkit_slot", None)
    c = conn if slot is None else slot.connection
    return any(call.cb is _ends for call in c._termination_listeners)


async def set_codec(conn: Any) -> None:
    """Decode json in a way of its own."""
    await conn.set_type_codec("json", encoder=str, decoder=lambda _: True, schema="pg_catalog")


async def set_builtin_codec(conn: Any) -> None:
    """Decode json in a way of its own."""
    await conn.set_builtin_type_codec("json", codec_name="bytea", schema="pg_catalog")


async def decodes_differently(conn: Any) -> bool:
    """Tell whether json is decoded in another way than by asyncpg."""
    return bool(await conn.fetchval("SELECT '0'::json") != "0")


async def set_attribute(conn: Any) -> None:
    """Set one."""
    conn.tenant = "alice"


async def has_attribute(conn: Any) -> bool:
    """Look for it."""
    return hasattr(conn, "tenant")


async def fail(conn: Any) -> None:
    """Have a transaction fail, and go on."""
    await conn.execute("BEGIN")
    with contextlib.suppress(asyncpg.DivisionByZeroError):
        await conn.execute("SELECT 1 / 0")


async def has_lastval(conn: Any) -> bool:
    """Tell whether a sequence was used."""
    try:
        return bool(await conn.fetchval("SELECT lastval()"))
    except asyncpg.ObjectNotInPrerequisiteStateError:
        return False


_next: list[float] = []


async def seed(conn: Any) -> None:
    """Know the next random number."""
    await conn.execute("SELECT setseed(0.5)")
    _next[:] = [await conn.fetchval("SELECT random()")]
    await conn.execute("SELECT setseed(0.5)")


async def is_seeded(conn: Any) -> bool:
    """Tell whether the next random number is the known one."""
    return [await conn.fetchval("SELECT random()")] == _next


# -- statements ----------------------------------------------------------------------------------


def forget(sql: str) -> Act:
    """Return what has the server forget a statement that asyncpg has cached."""

    async def act(conn: Any) -> None:
        assert await conn.fetchval("SELECT 17") == 17
        await conn.execute(sql)

    return act


async def statement_fails(conn: Any) -> bool:
    """Tell whether a statement that asyncpg has cached is not there."""
    try:
        return bool(await conn.fetchval("SELECT 17") != 17)
    except asyncpg.InvalidSQLStatementNameError:
        return True


_kept: list[object] = []


async def prepare_with_a_name(conn: Any) -> None:
    """Keep it: asyncpg closes a statement that nobody has."""
    _kept[:] = [await conn.prepare("SELECT 19", name="mine")]


async def plan(conn: Any) -> None:
    """Have the server keep a plan: it does so after five."""
    for _ in range(6):
        await conn.fetchval("SELECT 20 + $1::int", 1)


async def copy_without_end(conn: Any) -> None:
    """Leave a COPY under way, in a task that goes on."""
    begun = asyncio.Event()

    async def take(_: bytes) -> None:
        begun.set()
        await asyncio.sleep(0)

    copy = asyncio.ensure_future(
        conn.copy_from_query("SELECT generate_series(1, 1000000000)", output=take)
    )
    copy.add_done_callback(lambda copy: copy.cancelled() or copy.exception())
    await begun.wait()


async def is_busy(conn: Any) -> bool:
    """Tell whether there is no answer to another query."""
    try:
        return bool(await conn.fetchval("SELECT 18") != 18)
    except (asyncpg.InterfaceError, asyncpg.InternalClientError):
        return True


KINDS = (
    # Rights.
    Kind("`SET ROLE`", "SET ROLE pg_monitor", "current_user = 'pg_monitor'"),
    Kind(
        "`set_config('role', ...)`",
        "SELECT set_config('role', 'pg_monitor', false)",
        "current_user = 'pg_monitor'",
    ),
    Kind(
        "`SET SESSION AUTHORIZATION`",
        "SET SESSION AUTHORIZATION pg_monitor",
        "session_user = 'pg_monitor'",
    ),
    Kind(
        "`session_replication_role`",
        "SET session_replication_role = replica",
        is_set("session_replication_role", "replica"),
    ),
    Kind("`row_security`", "SET row_security = off", is_set("row_security", "off")),
    # Settings.
    Kind("`search_path`", "SET search_path TO nowhere", is_set("search_path", "nowhere")),
    Kind(
        "a setting with a dot, `app.tenant`",
        "SET app.tenant = 'alice'",
        is_set("app.tenant", "alice"),
    ),
    Kind(
        "the same by `set_config()`",
        "SELECT set_config('app.tenant', 'bob', false)",
        is_set("app.tenant", "bob"),
    ),
    Kind("time zone", "SET TIME ZONE 'Asia/Tokyo'", is_set("timezone", "Asia/Tokyo")),
    Kind(
        "`statement_timeout`",
        "SET statement_timeout = 54321",
        is_set("statement_timeout", "54321ms"),
    ),
    Kind(
        "`application_name`", "SET application_name = 'alice'", is_set("application_name", "alice")
    ),
    Kind("`client_encoding`", "SET client_encoding = latin1", is_set("client_encoding", "LATIN1")),
    Kind(
        "`client_min_messages`",
        "SET client_min_messages = error",
        is_set("client_min_messages", "error"),
    ),
    Kind(
        "`standard_conforming_strings`",
        "SET standard_conforming_strings = off",
        is_set("standard_conforming_strings", "off"),
    ),
    Kind(
        "`default_transaction_read_only`",
        "SET default_transaction_read_only = on",
        is_set("transaction_read_only", "on"),
        at_once=False,
    ),
    Kind(
        "`SET SESSION CHARACTERISTICS`",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        is_set("default_transaction_isolation", "serializable"),
    ),
    Kind(
        "`plan_cache_mode`",
        "SET plan_cache_mode = force_generic_plan",
        is_set("plan_cache_mode", "force_generic_plan"),
    ),
    # Transactions.
    Kind("open transaction", "BEGIN", in_transaction),
    Kind("failed transaction", fail, in_transaction, at_once=False, to_set_up=False),
    Kind("`SET LOCAL`", "BEGIN; SET LOCAL app.tenant = 'carol'", is_set("app.tenant", "carol")),
    Kind(
        "`SET TRANSACTION READ ONLY`",
        "BEGIN; SAVEPOINT s; SET TRANSACTION READ ONLY",
        is_set("transaction_read_only", "on"),
    ),
    Kind(
        "`LOCK TABLE`",
        "BEGIN; LOCK TABLE t",
        there_is("pg_locks WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock'"),
    ),
    Kind("open large object", "BEGIN; SELECT lo_open(lo_create(0), 131072)", in_transaction),
    # Objects of the session.
    Kind(
        "temporary table",
        "CREATE TEMP TABLE mine AS SELECT 1 AS x",
        "to_regclass('pg_temp.mine') IS NOT NULL",
    ),
    Kind(
        "temporary table in front of a real one",
        "CREATE TEMP TABLE t (x int)",
        "to_regclass('pg_temp.t') IS NOT NULL",
    ),
    Kind(
        "temporary view",
        "CREATE TEMP VIEW mine AS SELECT 1 AS x",
        "to_regclass('pg_temp.mine') IS NOT NULL",
    ),
    Kind(
        "function in `pg_temp`",
        "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        there_is("pg_proc WHERE pronamespace = pg_my_temp_schema()"),
    ),
    Kind(
        "type in `pg_temp`",
        "CREATE TYPE pg_temp.mine AS ENUM ('x')",
        there_is("pg_type WHERE typnamespace = pg_my_temp_schema()"),
    ),
    Kind(
        "cursor `WITH HOLD`",
        "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        there_is("pg_cursors WHERE name = 'held'"),
    ),
    Kind(
        "advisory lock of the session",
        "SELECT pg_advisory_lock(1)",
        there_is("pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
    ),
    Kind(
        "advisory lock of a transaction",
        "BEGIN; SELECT pg_advisory_xact_lock(1)",
        there_is("pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
    ),
    Kind("`LISTEN`", "LISTEN here", there_is("pg_listening_channels()"), at_once=False),
    Kind("`currval`, `lastval`", "SELECT nextval('s')", has_lastval, to_set_up=False),
    Kind(
        "`setseed`",
        seed,
        is_seeded,
        "no command of the server undoes it; `gen_random_uuid()` does not depend on it",
        to_set_up=False,
        at_once=False,
    ),
    # Statements.
    Kind(
        "`PREPARE`", "PREPARE mine AS SELECT 1", there_is("pg_prepared_statements WHERE from_sql")
    ),
    Kind(
        "statement prepared with a name by asyncpg",
        prepare_with_a_name,
        there_is("pg_prepared_statements WHERE name = 'mine'"),
    ),
    Kind(
        "plans of cached statements",
        plan,
        there_is("pg_prepared_statements WHERE statement = 'SELECT 20 + $1::int' AND NOT from_sql"),
        "what a cache is for: a plan holds no values, and for another role there is another one",
        to_set_up=False,
    ),
    Kind("`DISCARD ALL`", forget("DISCARD ALL"), statement_fails, to_set_up=False, at_once=False),
    Kind(
        "`DEALLOCATE ALL`",
        forget("DEALLOCATE ALL"),
        statement_fails,
        to_set_up=False,
        at_once=False,
    ),
    Kind("unfinished `COPY`", copy_without_end, is_busy, at_once=False, to_set_up=False),
    # Of asyncpg's.
    Kind("type codec", set_codec, decodes_differently),
    Kind("built-in type codec", set_builtin_codec, decodes_differently),
    Kind("`add_listener`", add_listener, heard_of, at_once=False),
    Kind("`add_log_listener`", add_log_listener, heard_of),
    Kind("`add_query_logger`", add_query_logger, heard_of),
    Kind("`add_termination_listener`", add_termination_listener, has_termination_listener),
    Kind("attribute of a class of one's own", set_attribute, has_attribute),
)
