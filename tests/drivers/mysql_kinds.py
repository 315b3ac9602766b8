"""What a lease of MySQL's can leave behind: how it is left, and how the next one would see it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncmy
from asyncmy.cursors import SSCursor

from tests.drivers.asyncmy_help import execute, value
from tests.drivers.postgresql_kinds import Act, Kind

_kept: list[Any] = []


async def leave(conn: Any, kind: Kind) -> None:
    """Leave it behind."""
    if not isinstance(kind.leave, str):
        await kind.leave(conn)
        return
    for statement in kind.leave.split(";"):
        await execute(conn, statement)


async def is_seen(conn: Any, kind: Kind) -> bool:
    """Tell whether it is there."""
    if isinstance(kind.seen, str):
        return bool(await value(conn, f"SELECT COALESCE(({kind.seen}), 0)"))
    return bool(await kind.seen(conn))


def works(sql: str) -> Act:
    """Return the question whether a statement does."""

    async def act(conn: Any) -> bool:
        try:
            await execute(conn, sql)
        except asyncmy.Error:
            return False
        return True

    return act


def fails(sql: str) -> Act:
    """Return the question whether a statement does."""

    async def act(conn: Any) -> bool:
        return not await works(sql)(conn)

    return act


async def in_transaction(conn: Any) -> bool:
    """Tell whether one is open."""
    return bool(conn.get_transaction_status())


async def prepare(conn: Any) -> None:
    """Prepare a statement by asyncmy; the server counts them from 1."""
    _kept[:] = [await conn.prepare("SELECT 4711")]


async def has_statement(conn: Any) -> bool:
    """Tell whether the server knows the statement's number."""
    number = _kept[0]._statement_id
    statement = asyncmy.connection.PreparedStatement(conn.cursor().connection, number, 0)
    try:
        return bool((await statement.execute()).rows == ((4711,),))
    except asyncmy.Error:
        return False


async def read_half(conn: Any) -> None:
    """Leave a result half read, in a cursor that somebody keeps."""
    cursor = conn.cursor(SSCursor)
    await cursor.execute("SELECT seq FROM seq_1_to_1000000")
    await cursor.fetchone()
    _kept[:] = [cursor]


async def read_first(conn: Any) -> None:
    """Leave results unread."""
    await conn.cursor().execute("SELECT 5; SELECT 6; SELECT 7")


async def run_on(conn: Any) -> None:
    """Leave a statement under way, in a task."""
    _kept[:] = [asyncio.ensure_future(_run(conn))]
    await asyncio.sleep(0.05)


async def _run(conn: Any) -> None:
    with contextlib.suppress(asyncmy.Error):
        await conn.cursor().execute("SELECT SLEEP(600)")


async def cancelled(conn: Any) -> None:
    """Cancel a statement."""
    task = asyncio.ensure_future(conn.cursor().execute("SELECT SLEEP(600)"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])


async def is_confused(conn: Any) -> bool:
    """Tell whether there is no answer to a question, or another question's."""
    try:
        async with asyncio.timeout(5):
            return bool(await value(conn, "SELECT 18") != 18)
    except (asyncmy.Error, TimeoutError):
        return True


async def turn_autocommit_off(conn: Any) -> None:
    """Turn it off by asyncmy's method."""
    await conn.autocommit(False)


async def begins_by_itself(conn: Any) -> bool:
    """Tell whether statements begin transactions."""
    return not conn.get_autocommit()


async def set_encoding(conn: Any) -> None:
    """Have asyncmy encode texts in another way than the server expects."""
    inner = conn.cursor().connection
    inner._charset, inner._encoding = "latin1", "cp1252"


async def is_encoded(conn: Any) -> bool:
    """Tell whether it does."""
    return bool(conn.cursor().connection._encoding != "utf8")


async def set_decoder(conn: Any) -> None:
    """Have integers be something else."""
    inner = conn.cursor().connection
    inner._decoders = {**inner._decoders, 3: lambda _: "integer", 8: lambda _: "integer"}


async def decodes_differently(conn: Any) -> bool:
    """Tell whether they are."""
    return bool(await value(conn, "SELECT 1") != 1)


def variable(name: str, setting: str, seen: str | None = None, label: str = "") -> Kind:
    """Return the kind that is a variable of the session."""
    shown = seen or setting.strip("'")
    return Kind(label or f"`{name}`", f"SET {name} = {setting}", f"@@{name} = '{shown}'")


KINDS = [
    Kind("`USE`", "USE information_schema", "DATABASE() = 'information_schema'"),
    Kind("`SET ROLE`", "SET ROLE poolkit_reader", "CURRENT_ROLE() = 'poolkit_reader'"),
    Kind("`SET NAMES`", "SET NAMES latin1", "@@character_set_client = 'latin1'"),
    variable("character_set_results", "latin1"),
    variable("collation_connection", "utf8mb4_bin"),
    variable("sql_mode", "'ANSI_QUOTES'"),
    variable("time_zone", "'+03:00'"),
    variable("lc_time_names", "de_DE"),
    variable("foreign_key_checks", "0"),
    variable("unique_checks", "0"),
    variable("sql_safe_updates", "1"),
    variable("sql_select_limit", "7"),
    variable("lock_wait_timeout", "77"),
    variable("innodb_lock_wait_timeout", "77"),
    variable("wait_timeout", "77"),
    variable("max_statement_time", "77", "77.000000"),
    variable("group_concat_max_len", "77"),
    variable("auto_increment_increment", "7"),
    variable("default_storage_engine", "MyISAM"),
    variable("completion_type", "'CHAIN'"),
    variable("profiling", "1"),
    variable("timestamp", "77", "77.000000"),
    variable("insert_id", "77"),
    variable("last_insert_id", "77"),
    Kind("`SET autocommit = 0`", "SET autocommit = 0", "@@autocommit = 0"),
    Kind("`autocommit(False)` of asyncmy", turn_autocommit_off, begins_by_itself),
    Kind(
        "`SET SESSION TRANSACTION ISOLATION LEVEL`",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "@@tx_isolation = 'SERIALIZABLE'",
    ),
    Kind(
        "`SET SESSION TRANSACTION READ ONLY`",
        "SET SESSION TRANSACTION READ ONLY",
        "@@tx_read_only",
    ),
    Kind(
        "`SET TRANSACTION READ ONLY`, for the next one",
        "SET TRANSACTION READ ONLY",
        fails("INSERT INTO other VALUES (1)"),
        to_set_up=False,
    ),
    Kind("user variable", "SET @tenant = 'alice'", "@tenant = 'alice'"),
    Kind("open transaction", "START TRANSACTION;INSERT INTO t VALUES (2)", in_transaction),
    Kind("open transaction of XA", "XA START 'poolkit'", in_transaction),
    Kind(
        "row locks",
        "START TRANSACTION;SELECT * FROM t FOR UPDATE",
        in_transaction,
    ),
    Kind("temporary table", "CREATE TEMPORARY TABLE mine (x INT)", works("SELECT * FROM mine")),
    Kind(
        "temporary table in front of a real one",
        "CREATE TEMPORARY TABLE t (y INT)",
        works("SELECT y FROM t"),
    ),
    Kind("`LOCK TABLES`", "LOCK TABLES t READ", fails("SELECT * FROM other")),
    Kind("`GET_LOCK()`", "DO GET_LOCK('poolkit', 0)", "IS_USED_LOCK('poolkit') IS NOT NULL"),
    Kind("`HANDLER ... OPEN`", "HANDLER t OPEN AS h", works("HANDLER h READ FIRST")),
    Kind("`PREPARE`", "PREPARE mine FROM 'SELECT 1'", works("EXECUTE mine")),
    Kind("statement prepared by asyncmy", prepare, has_statement, to_set_up=False),
    Kind("result half read, by an unbuffered cursor", read_half, is_confused, at_once=False),
    Kind("results of several statements, unread", read_first, is_confused, at_once=False),
    Kind("statement under way, in a task", run_on, is_confused, at_once=False, to_set_up=False),
    Kind("statement cancelled", cancelled, is_confused, to_set_up=False),
    Kind("encoding of asyncmy's texts", set_encoding, is_encoded),
    Kind("decoders of asyncmy's", set_decoder, decodes_differently),
]
