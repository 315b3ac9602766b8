"""Leases one connection again and again, each lease leaving something else; says how that went.

    python -m tests.drivers.asyncpg_lacking_worker DSN [CHANGE]

``CHANGE`` is Python that runs before poolkit is imported. Printed is JSON: what was warned of, how
many connections it took, and what was not as it should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import sys
from typing import Any

import asyncpg

ENDLESS = "SELECT pg_sleep(600)"
DSN = sys.argv[1]
connect = asyncpg.connect  # as it is
for change in sys.argv[2:]:
    exec(change, {})  # the test's own

from poolkit import NotLeased  # noqa: E402
from poolkit.drivers.asyncpg import create_pool  # noqa: E402

#: No stall of a busy machine costs the pool a connection.
PATIENT: Any = dict(ping_timeout=30, reset_timeout=30, connect_timeout=30, acquire_timeout=60)  # noqa: C408

warned: list[str] = []
wrong: list[str] = []


class Noting(logging.Handler):
    """Keeps what is said aloud, but for what leases have left, and what that costs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        text = record.getMessage()
        event = getattr(record, "poolkit_event", None)
        if record.levelno >= logging.WARNING and event not in ("left_behind", "reset_failed"):
            warned.append(text)


logging.getLogger("poolkit").addHandler(Noting())


def check(what: str, found: object, wanted: object) -> None:
    """Note what is not as it should be."""
    if found != wanted:
        wrong.append(f"{what}: {found!r}, not {wanted!r}")


async def running(conn: Any) -> None:
    """Wait until the server is in the middle of the statement: it forgets what is cancelled before."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'"
    outside = await connect(DSN)
    try:
        while not await outside.fetchval(sql, conn.get_server_pid()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    finally:
        outside.terminate()


# -- what leases leave ---------------------------------------------------------------------------

kept: dict[str, Any] = {}
kept_pids: list[int] = []
heard: list[str] = []


async def leave_settings(conn: Any) -> None:
    """Settings, a temporary table, an advisory lock."""
    await conn.execute("SET work_mem = '3MB'; CREATE TEMP TABLE only_here (x int)")
    await conn.fetchval("SELECT pg_advisory_lock(1)")


async def leave_transaction(conn: Any) -> None:
    """A transaction that nobody ends."""
    await conn.transaction().start()
    await conn.execute("INSERT INTO t VALUES (1)")


async def leave_failed_transaction(conn: Any) -> None:
    """One that can only be rolled back."""
    await conn.transaction().start()
    with contextlib.suppress(asyncpg.DivisionByZeroError):
        await conn.fetchval("SELECT 1 / 0")


async def leave_objects(conn: Any) -> None:
    """A statement and a transaction, and a coroutine that has not begun."""
    kept_pids.append(conn.get_server_pid())
    kept["statement"] = await conn.prepare("SELECT current_setting('work_mem')")
    kept["transaction"] = conn.transaction()
    kept["coroutine"] = kept["statement"].fetchval()
    async with conn.transaction():
        kept["cursor"] = await conn.cursor("SELECT generate_series(1, 100)")
        kept["iterator"] = aiter(conn.cursor("SELECT generate_series(1, 100)", prefetch=1))
        await anext(kept["iterator"])


async def use_objects(conn: Any) -> None:
    """None of them acts on this lease's connection."""
    if not kept:
        return
    uses: dict[str, Any] = {
        "statement": lambda: kept["statement"].fetchval(),
        "transaction": lambda: kept["transaction"].start(),
        "coroutine": lambda: kept["coroutine"],
        "cursor": lambda: kept["cursor"].fetch(1),
        "iterator": lambda: anext(kept["iterator"]),
    }
    async with conn.transaction():
        for name, use in uses.items():
            try:
                check(f"kept {name}", await use(), "an error")
            except (asyncpg.InterfaceError, NotLeased):
                pass
            except AttributeError:  # so asyncpg says it of a closed connection
                check(f"closed for {name}", conn.get_server_pid() in kept_pids, False)
    kept.clear()
    gc.collect()


async def leave_callbacks(conn: Any) -> None:
    """Callbacks of each kind."""
    await conn.add_listener("here", lambda conn, *_: heard.append(type(conn).__name__))
    conn.add_log_listener(lambda *_: heard.append("log"))
    conn.add_termination_listener(lambda *_: None)
    conn.add_query_logger(lambda *_: heard.append("query"))
    await conn.execute("NOTIFY here")
    for _ in range(3):  # asyncpg calls them from the loop
        await asyncio.sleep(0)
    check("callbacks", len(heard) > 0, True)
    heard.clear()


async def leave_codec(conn: Any) -> None:
    """A codec for json, and a statement that was prepared for it."""
    await conn.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    check("codec", await conn.fetchval("SELECT '[1]'::json"), [1])


async def forget_statements(conn: Any) -> None:
    """The server has none of asyncpg's statements any more."""
    await conn.fetch("DEALLOCATE ALL")


async def prepare_in_sql(conn: Any) -> None:
    """A statement that asyncpg does not know."""
    await conn.execute("PREPARE mine AS SELECT 1")


async def cancel(conn: Any) -> None:
    """A transaction whose statement is cancelled."""

    async def work() -> None:
        async with conn.transaction():
            await conn.execute(ENDLESS)

    task = asyncio.create_task(work())
    await running(conn)
    task.cancel()
    await asyncio.wait([task])
    check("cancelled", task.cancelled(), True)


async def leave_running(conn: Any) -> None:
    """An operation of another task."""
    kept_running.append(asyncio.create_task(conn.execute(ENDLESS)))
    await running(conn)


async def end_block_in_sql(conn: Any) -> None:
    """A block whose transaction is ended by hand."""
    with contextlib.suppress(Exception):
        async with conn.transaction():
            await conn.execute("COMMIT")


async def nothing(conn: Any) -> None:
    """Nothing more."""


kept_running: list[asyncio.Task[Any]] = []
ACTS = [
    *(nothing, leave_settings, leave_transaction, leave_failed_transaction, leave_objects),
    *(leave_callbacks, leave_codec, forget_statements, prepare_in_sql, cancel, leave_running),
    *(end_block_in_sql, nothing),
]


async def look(conn: Any, after: str) -> None:
    """Check that nothing of the last lease is there."""
    check(f"in transaction after {after}", conn.is_in_transaction(), False)
    asked = {
        "SHOW work_mem": "4MB",
        "SELECT to_regclass('pg_temp.only_here')::text": None,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()": 0,
        "SELECT count(*) FROM pg_listening_channels()": 0,
        "SELECT count(*) FROM pg_prepared_statements WHERE from_sql": 0,
        "SELECT count(*) FROM t": 0,
        "SELECT '[1]'::json": "[1]",
    }
    for sql, answer in asked.items():
        check(f"{sql} after {after}", await conn.fetchval(sql), answer)
    async with conn.transaction():
        check("rows", len(await conn.fetch("SELECT generate_series(1, $1)", 3)), 3)
    await conn.executemany("SELECT $1::int", [(1,), (2,)])
    await asyncio.sleep(0)
    check(f"callbacks after {after}", heard, [])
    heard.clear()


async def main() -> None:
    """Lease one connection for each act."""
    pids = set()
    after = "nothing"
    instances: set[bool] = set()
    given = {"command_timeout": 300}
    async with create_pool(DSN, max_size=1, connect_kwargs=given, **PATIENT) as pool:
        for act in ACTS:
            async with pool.acquire() as conn:
                instances.add(isinstance(conn, asyncpg.Connection))
                pids.add(conn.get_server_pid())
                await look(conn, after)
                await use_objects(conn)
                await act(conn)
            after = act.__name__
        for task in kept_running:
            await asyncio.wait([task], timeout=10)
            check("left running", task.done(), True)
            task.exception()  # what it ends with is nobody's concern
        try:
            async with pool.transaction() as conn:
                with contextlib.suppress(asyncpg.DivisionByZeroError):
                    await conn.execute("SELECT 1 / 0")
        except asyncpg.InFailedSQLTransactionError:
            pass
        else:
            wrong.append("a commit that was a rollback is told to nobody")
        async with pool.acquire() as conn:
            pids.add(conn.get_server_pid())
            await look(conn, "a failed transaction")
        kept_running.clear()
    said = {"warned": warned, "connections": len(pids), "wrong": wrong}
    print(json.dumps({**said, "instances": sorted(instances)}))


if __name__ == "__main__":
    asyncio.run(main())
