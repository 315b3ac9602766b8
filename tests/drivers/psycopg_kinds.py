"""What a lease of psycopg's can leave behind, beside what only SQL is needed for."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import warnings
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from tests.drivers import postgresql_kinds
from tests.drivers.postgresql_kinds import Act, Kind, there_is


class Own(psycopg.AsyncConnection[Any]):
    """A class of one's own."""

    tenant = ""


async def value(conn: Any, sql: str) -> Any:
    """Return the first value of the first row."""
    async with conn.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        await cursor.execute(sql)
        return (await cursor.fetchone())[0]


async def leave(conn: Any, kind: Kind) -> None:
    """Leave it behind."""
    await (conn.execute(kind.leave) if isinstance(kind.leave, str) else kind.leave(conn))


async def is_seen(conn: Any, kind: Kind) -> bool:
    """Tell whether it is there."""
    if isinstance(kind.seen, str):
        return bool(await value(conn, f"SELECT coalesce(({kind.seen}), false)"))
    return bool(await kind.seen(conn))


async def in_transaction(conn: Any) -> bool:
    """Tell whether one is open, or has failed."""
    return bool(conn.info.transaction_status != TransactionStatus.IDLE)


async def fail(conn: Any) -> None:
    """Have a transaction fail, and go on."""
    await conn.execute("BEGIN")
    with contextlib.suppress(psycopg.errors.DivisionByZero):
        await conn.execute("SELECT 1 / 0")


async def has_lastval(conn: Any) -> bool:
    """Tell whether a sequence was used."""
    try:
        return bool(await value(conn, "SELECT lastval()"))
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False


_next: list[float] = []


async def seed(conn: Any) -> None:
    """Know the next random number."""
    await conn.execute("SELECT setseed(0.5)")
    _next[:] = [await value(conn, "SELECT random()")]
    await conn.execute("SELECT setseed(0.5)")


async def is_seeded(conn: Any) -> bool:
    """Tell whether the next random number is the known one."""
    return [await value(conn, "SELECT random()")] == _next


# -- statements ----------------------------------------------------------------------------------


def forget(sql: str) -> Act:
    """Return what has the server forget a statement that psycopg has prepared."""

    async def act(conn: Any) -> None:
        await conn.execute(sql)  # psycopg heeds it the first time only
        await conn.execute("SELECT 17", prepare=True)
        await conn.execute(sql)

    return act


async def statement_fails(conn: Any) -> bool:
    """Tell whether a statement that psycopg has prepared is not there."""
    try:
        await conn.execute("SELECT 17", prepare=True)
    except psycopg.errors.InvalidSqlStatementName:
        return True
    return False


async def plan(conn: Any) -> None:
    """Have the server keep a plan: it does so after five."""
    for _ in range(6):
        await conn.execute("SELECT 20 + %s::int", (1,), prepare=True)


_kept: list[Any] = []


@atexit.register
def _forget() -> None:
    """Have psycopg not say, below the outcome of the tests, that a cursor was left open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        _kept.clear()


async def copy_without_end(conn: Any) -> None:
    """Leave a COPY under way, in a generator that somebody keeps."""

    async def copy() -> Any:
        query = "COPY (SELECT generate_series(1, 100000000)) TO STDOUT"
        # When it is collected, psycopg before 3.3.9 raises that the lease is over.
        with contextlib.suppress(psycopg.InterfaceError):
            async with conn.cursor().copy(query) as out:
                async for block in out:
                    yield block

    blocks = copy()
    await anext(blocks)
    _kept[:] = [blocks]


async def stream_without_end(conn: Any) -> None:
    """Leave a result half read, in a generator that somebody keeps."""
    rows = conn.cursor().stream("SELECT generate_series(1, 100000000)")
    await anext(rows)
    _kept[:] = [rows]


async def enter_pipeline(conn: Any) -> None:
    """Leave a pipeline open, with statements in it."""
    pipeline = conn.pipeline()
    await pipeline.__aenter__()
    await conn.execute("SELECT 18")
    _kept[:] = [pipeline]


async def has_pipeline(conn: Any) -> bool:
    """Tell whether it is open."""
    return bool(conn.info.pipeline_status)


async def await_notifications(conn: Any) -> None:
    """Leave a generator that waits for notifications, in a task that was cancelled."""
    await conn.execute("LISTEN here")
    task = asyncio.ensure_future(anext(conn.notifies()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def is_busy(conn: Any) -> bool:
    """Tell whether there is no answer to another query."""
    try:
        async with asyncio.timeout(5):
            return bool(await value(conn, "SELECT 18") != 18)
    except (psycopg.Error, TimeoutError):
        return True


async def declare(conn: Any) -> None:
    """Leave a cursor of the server's, held."""
    cursor = conn.cursor("held", withhold=True)
    await cursor.execute("SELECT 1")
    _kept[:] = [cursor]


# -- the object ----------------------------------------------------------------------------------


async def register_loader(conn: Any) -> None:
    """Load integers as texts."""
    conn.adapters.register_loader("int4", TextLoader)


async def loads_differently(conn: Any) -> bool:
    """Tell whether an integer is no integer."""
    return bool(await value(conn, "SELECT 1::int4") != 1)


async def set_row_factory(conn: Any) -> None:
    """Have rows be dicts."""
    conn.row_factory = dict_row


async def has_row_factory(conn: Any) -> bool:
    """Tell whether rows are dicts."""
    return isinstance(await (await conn.execute("SELECT 1 AS x")).fetchone(), dict)


async def set_cursor_factory(conn: Any) -> None:
    """Have the client bind parameters."""
    conn.cursor_factory = psycopg.AsyncClientCursor


async def has_cursor_factory(conn: Any) -> bool:
    """Tell whether it does."""
    return isinstance(conn.cursor(), psycopg.AsyncClientCursor)


async def set_autocommit(conn: Any) -> None:
    """Have statements begin transactions."""
    await conn.set_autocommit(False)


async def begins_by_itself(conn: Any) -> bool:
    """Tell whether statements begin transactions."""
    return not conn.autocommit


async def set_isolation(conn: Any) -> None:
    """Have transactions be serializable."""
    await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)


async def has_isolation(conn: Any) -> bool:
    """Tell whether they are."""
    return conn.isolation_level is not None


async def set_read_only(conn: Any) -> None:
    """Have transactions write nothing."""
    await conn.set_read_only(True)


async def has_read_only(conn: Any) -> bool:
    """Tell whether they may not write."""
    return conn.read_only is not None


async def set_threshold(conn: Any) -> None:
    """Prepare nothing."""
    conn.cursor().connection.prepare_threshold = None


async def has_threshold(conn: Any) -> bool:
    """Tell whether nothing is prepared."""
    return conn.prepare_threshold is None


_heard: list[object] = []


async def add_notice_handler(conn: Any) -> None:
    """Add one."""
    conn.add_notice_handler(_heard.append)


async def add_notify_handler(conn: Any) -> None:
    """Add one."""
    conn.add_notify_handler(_heard.append)


async def heard_of(conn: Any) -> bool:
    """Do what handlers are called for, and tell whether one was."""
    _heard.clear()
    await conn.execute("LISTEN here; DO $$BEGIN RAISE WARNING 'x'; END$$; NOTIFY here")
    await conn.execute("UNLISTEN here")
    return bool(_heard)


async def keep_backlog(conn: Any) -> None:
    """Leave a notification that nobody has asked for yet."""
    await conn.execute("LISTEN here; NOTIFY here")
    await conn.execute("SELECT 1")


async def has_backlog(conn: Any) -> bool:
    """Tell whether there is one."""
    async for _ in conn.notifies(timeout=0):
        return True
    return False


async def set_attribute(conn: Any) -> None:
    """Set one."""
    conn.tenant = "alice"


async def has_attribute(conn: Any) -> bool:
    """Look for it."""
    return bool(conn.tenant)


_OF_OTHERS = {kind.name: kind for kind in postgresql_kinds.KINDS}


def _of_transaction(name: str) -> Kind:
    return Kind(name, _OF_OTHERS[name].leave, in_transaction)


_SQL = tuple(
    kind
    for kind in postgresql_kinds.KINDS
    if isinstance(kind.leave, str) and isinstance(kind.seen, str)
)
KINDS = (
    *_SQL,
    _of_transaction("open transaction"),
    _of_transaction("open large object"),
    Kind("failed transaction", fail, in_transaction, at_once=False, to_set_up=False),
    Kind("`currval`, `lastval`", "SELECT nextval('s')", has_lastval, to_set_up=False),
    Kind(
        "`setseed`",
        seed,
        is_seeded,
        _OF_OTHERS["`setseed`"].note,
        to_set_up=False,
        at_once=False,
    ),
    # Statements.
    Kind(
        "plans of prepared statements",
        plan,
        there_is("pg_prepared_statements WHERE statement = 'SELECT 20 + $1::int' AND NOT from_sql"),
        _OF_OTHERS["plans of cached statements"].note,
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
    Kind("unfinished `copy()`", copy_without_end, is_busy, at_once=False, to_set_up=False),
    Kind("unfinished `stream()`", stream_without_end, is_busy, at_once=False, to_set_up=False),
    Kind("open `pipeline()`", enter_pipeline, has_pipeline, to_set_up=False),
    Kind(
        "abandoned `notifies()`",
        await_notifications,
        there_is("pg_listening_channels()"),
        at_once=False,
        to_set_up=False,
    ),
    Kind("server cursor `withhold`", declare, there_is("pg_cursors WHERE name = 'held'")),
    # The object.
    Kind("`adapters`", register_loader, loads_differently),
    Kind("`row_factory`", set_row_factory, has_row_factory),
    Kind("`cursor_factory`", set_cursor_factory, has_cursor_factory),
    Kind("`set_autocommit()`", set_autocommit, begins_by_itself),
    Kind("`set_isolation_level()`", set_isolation, has_isolation),
    Kind("`set_read_only()`", set_read_only, has_read_only),
    Kind("`prepare_threshold`", set_threshold, has_threshold),
    Kind("`add_notice_handler()`", add_notice_handler, heard_of),
    Kind("`add_notify_handler()`", add_notify_handler, heard_of, at_once=False),
    Kind("notifications not asked for", keep_backlog, has_backlog, at_once=False, to_set_up=False),
    Kind("attribute of a class of one's own", set_attribute, has_attribute),
)
