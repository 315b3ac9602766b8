"""What is undone by asyncpg's own means: codecs, callbacks, attributes, forgotten statements."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from poolkit.compat import asyncpg as compat
from tests.drivers.asyncpg_help import (
    LOOPS,
    CountingProxy,
    leave_nothing,
    of_one,
    quiet,
    until,
    warnings_in,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.postgres import Postgres


@pytest.fixture(params=LOOPS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio: none of this is the loop's affair."""
    return request.param


# -- codecs --------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Any], Awaitable[None]]] = {
    "another": lambda c: c.set_type_codec(
        "jsonb", encoder=str, decoder=lambda _: "changed", schema="pg_catalog"
    ),
    "binary": lambda c: c.set_type_codec(
        "jsonb",
        encoder=bytes,
        decoder=lambda _: "changed",
        schema="pg_catalog",
        format="binary",
    ),
    "none": lambda c: c.reset_type_codec("jsonb", schema="pg_catalog"),
    "builtin": lambda c: c.set_builtin_type_codec(
        "jsonb", schema="pg_catalog", codec_name="bytea", format="binary"
    ),
    "composite": lambda c: c.set_type_codec(
        "pair", encoder=tuple, decoder=lambda _: "changed", format="tuple"
    ),
    "enumeration": lambda c: c.set_type_codec("mood", encoder=str, decoder=lambda _: "changed"),
    "failed": lambda c: c.set_type_codec(
        "jsonb", encoder=str, decoder=str, schema="pg_catalog", format="tuple"
    ),
}
VALUES = "SELECT '[1]'::jsonb, ROW(1, 2)::pair, 'so'::mood, ARRAY['[2]'::jsonb], ROW(3, 4)::pair"
TYPES = "CREATE TYPE mood AS ENUM ('so'); CREATE TYPE pair AS (a int, b int)"


async def own_codecs(conn: asyncpg.Connection) -> None:
    """Set codecs of all kinds, as ``on_connect`` does; the last ones of a type count."""
    await conn.set_type_codec("jsonb", encoder=str, decoder=len, schema="pg_catalog")
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await conn.set_type_codec("pair", encoder=tuple, decoder=list, format="tuple")
    await conn.set_type_codec("mood", encoder=str, decoder=len)
    await conn.reset_type_codec("mood")
    await conn.set_builtin_type_codec("mood", codec_name="text")


async def values(conn: Any) -> list[Any]:
    """Return what is decoded."""
    return list(await conn.fetchrow(VALUES))


@pytest.mark.parametrize("when", ["lease", "on_acquire"])
@pytest.mark.parametrize("own", [True, False])
async def test_codecs_are_undone_at_release_without_a_new_backend(
    database: str, caplog: pytest.LogCaptureFixture, own: bool, when: str
) -> None:
    """Those of the lease and those of on_acquire; those of on_connect stay."""
    changes: list[Callable[[Any], Awaitable[None]]] = []

    async def greet(conn: Any) -> None:
        for change in changes:
            await change(conn)

    setup = await asyncpg.connect(database)
    await setup.execute(TYPES)
    await setup.close()
    options: dict[str, Any] = {"on_connect": own_codecs} if own else {}
    if when == "on_acquire":
        options["on_acquire"] = greet
    for level in ("full", "none"):
        async with of_one(database, reset=level, **options) as pool:
            async with pool.acquire() as conn:
                before = await values(conn)
                assert (before[0] == [1]) == own
            for name, change in CHANGES.items():
                changes.append(change)
                if name == "failed":
                    with pytest.raises(asyncpg.InterfaceError):
                        async with pool.acquire() as conn:
                            await greet(conn)
                else:
                    async with pool.acquire() as conn:
                        if when == "lease":
                            await greet(conn)
                        assert await values(conn) != before or name == "none"
                changes.clear()
                async with pool.acquire() as conn:
                    assert await values(conn) == before
            assert pool.stats().connected == 1
    assert not warnings_in(caplog)


async def test_codec_set_by_a_child_after_the_release_is_undone(dsn: str) -> None:
    """It was on its way when the lease ended."""
    async with of_one(dsn) as pool:
        async with pool.acquire() as conn:
            await conn.fetchval("SELECT '[1]'::jsonb")
            child = asyncio.ensure_future(CHANGES["another"](conn))
            await asyncio.sleep(0)
        await asyncio.wait([child])
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT '[1]'::jsonb") == "[1]"


async def test_codecs_of_a_connection_made_elsewhere_are_not_guessed(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows what its connector has set: it is replaced if a lease changes one."""

    async def connect(_: Any, **__: Any) -> Any:
        conn = await asyncpg.connect(dsn)
        await own_jsonb(conn)
        return conn

    async def own_jsonb(conn: Any) -> None:
        await conn.set_type_codec(
            "jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
        )

    async with compat.create_pool("anything", min_size=1, max_size=1, connect=connect) as pool:
        async with pool.acquire() as conn:
            await CHANGES["another"](conn)
        assert await pool.fetchval("SELECT '[1]'::jsonb") == [1]
        assert pool.stats().connected == 2


async def test_statements_of_a_leases_codecs_are_ended_by_the_reset(
    postgres: Postgres, dsn: str
) -> None:
    """And not one by one in the way of the next user."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn)) as pool:
            async with pool.acquire() as conn:
                await CHANGES["another"](conn)
                for number in range(5):
                    await conn.fetchval(f"SELECT {number}")
            await quiet(pool)
            async with pool.acquire() as conn:
                before = proxy.trips
                assert await conn.fetchval("SELECT 0") == 0
                assert proxy.trips - before == 2


class Naming(asyncpg.Connection):
    """Names types in its own way."""

    async def set_type_codec(self, typename: str, **how: Any) -> None:
        """Set it for a type of PostgreSQL's."""
        await super().set_type_codec(typename.lower(), schema="pg_catalog", **how)


async def test_codecs_of_ones_own_class_are_undone_or_not_guessed(dsn: str) -> None:
    """What on_connect has set through it cannot be set again, so the connection is replaced."""

    async def upper(conn: Any) -> None:
        await conn.set_type_codec("TEXT", encoder=str, decoder=str.upper)

    async def title(conn: Any) -> None:
        await conn.set_type_codec("TEXT", encoder=str, decoder=str.title)

    for own, answer in ((None, "ab"), (upper, "AB")):
        given = {"connection_class": Naming}
        pool: Any = of_one(dsn, on_connect=own, connect_kwargs=given, reset="transaction")
        async with pool:
            for _ in range(2):
                async with pool.acquire() as conn:
                    assert await conn.fetchval("SELECT 'ab'::text") == answer
                    await title(conn)
                    assert await conn.fetchval("SELECT 'ab'::text") == "Ab"


# -- callbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["full", "transaction"])
async def test_callbacks_of_on_acquire_are_undone_and_nobody_is_blamed(
    dsn: str, caplog: pytest.LogCaptureFixture, level: Any
) -> None:
    """Only what the lease itself has left is said; a conditional one does not reach the next."""
    heard: list[str] = []

    async def greet(conn: Any) -> None:
        if is_loud:
            await conn.add_listener("here", lambda *_: heard.append("notification"))
            conn.add_log_listener(lambda *_: heard.append("log"))
            conn.add_query_logger(lambda *_: heard.append("query"))
            conn.add_termination_listener(lambda *_: heard.append("end"))

    is_loud = True
    async with of_one(dsn, reset=level, on_acquire=greet) as pool:
        for turn in range(3):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                await conn.execute("DO $$BEGIN RAISE WARNING 'x'; END$$; NOTIFY here")
                await until(lambda: {*heard} == {"notification", "log", "query"})
            await quiet(pool)
            assert not warnings_in(caplog), turn
            heard.clear()
        async with pool.acquire() as conn:
            conn.add_log_listener(print)
        await quiet(pool)
        (said,) = warnings_in(caplog)
        assert said.startswith("1 log listener w")
        is_loud = False
        heard.clear()
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid
            await conn.execute("DO $$BEGIN RAISE WARNING 'x'; END$$; NOTIFY here")
            assert await conn.fetch("SELECT pg_listening_channels()") == []
        await quiet(pool)
    await asyncio.sleep(0)
    assert heard == []


async def test_nobody_is_blamed_for_an_on_acquire_that_failed_half_way(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller's line has left nothing behind."""

    async def greet(conn: Any) -> None:
        await conn.add_listener("here", print)
        await conn.fetchval("SELECT 1 / 0")

    async with of_one(dsn, on_acquire=greet) as pool:
        for _ in range(2):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await pool.acquire()
            await quiet(pool)
    assert not warnings_in(caplog)


# -- attributes ----------------------------------------------------------------------------------


class Own(asyncpg.Connection):
    """Has a place for an attribute, and a value for another one."""

    __slots__ = ("__dict__", "slot")
    tenant = "nobody"


async def test_attributes_of_ones_own_class_die_with_the_lease(dsn: str) -> None:
    """Those of on_connect stay."""

    async def set_up(conn: Any) -> None:
        conn.number = 1

    given = {"connection_class": Own}
    for level in ("full", "transaction", "none"):
        pool: Any = of_one(dsn, reset=level, on_connect=set_up, connect_kwargs=given)
        async with pool:
            async with pool.acquire() as conn:
                conn.tenant = conn.slot = conn.new = conn.number = "alice"
                assert (conn.tenant, conn.slot, conn.number) == ("alice",) * 3
            async with pool.acquire() as conn:
                assert (conn.tenant, conn.number) == ("nobody", 1)
                assert not hasattr(conn, "slot")
                assert not hasattr(conn, "new")
            assert pool.stats().connected == 1


# -- statements that the server has forgotten -------------------------------------------------------

FORGETTING: dict[str, Callable[[Any], Awaitable[object]]] = {
    "DISCARD ALL": lambda c: c.execute("DISCARD ALL"),
    "discard": lambda c: c.execute(" discard /* all of it */ all"),
    "DEALLOCATE ALL": lambda c: c.execute("DEALLOCATE ALL"),
    "in the middle": lambda c: c.execute("SELECT 1; deallocate prepare all; SELECT 2"),
    "and failed": lambda c: c.execute("DEALLOCATE ALL; SELECT 1 / 0"),
    "fetched": lambda c: c.fetch("DEALLOCATE ALL"),
    "after nothing": lambda c: c.fetch(";discard all"),
    "with a comment": lambda c: c.fetch("discard/**/all"),
    "with a line of comment": lambda c: c.fetch("deallocate -- them\n all"),
    "prepared": lambda c: _run(c, "DEALLOCATE ALL"),
    "in a DO": lambda c: c.execute("DO $$BEGIN EXECUTE 'DEALLOCATE ALL'; END$$"),
}


async def _run(conn: Any, sql: str) -> None:
    await (await conn.prepare(sql)).fetch()


@pytest.mark.parametrize("level", ["full", "full+prepared", "transaction", "none", leave_nothing])
@pytest.mark.parametrize("how", FORGETTING)
async def test_next_lease_prepares_anew_what_the_server_has_forgotten(
    dsn: str, caplog: pytest.LogCaptureFixture, how: str, level: Any
) -> None:
    """Its first query would fail otherwise; the backend is the same."""
    async with of_one(dsn, reset=level) as pool:
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            await conn.fetchval("SELECT 17")
            named = await conn.prepare("SELECT 18", name="named")
            assert await named.fetchval() == 18
            try:
                await FORGETTING[how](conn)
            except asyncpg.DivisionByZeroError:
                assert how == "and failed"
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT 17") == 17
                assert conn.get_server_pid() == pid
    assert not warnings_in(caplog)


async def test_on_connect_may_have_the_server_forget_statements(dsn: str) -> None:
    """The first lease prepares anew."""

    async def set_up(conn: asyncpg.Connection) -> None:
        await conn.fetchval("SELECT 17")
        await conn.execute("DISCARD ALL")

    async with of_one(dsn, reset="transaction", on_connect=set_up) as pool:
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 17") == 17


class Sql:
    """A statement that is no string."""

    text = "SELECT 1; SELECT 2"


class Generous(asyncpg.Connection):
    """Takes and returns what it likes."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a list."""
        return [await super().execute(getattr(query, "text", query), *args, **kwargs)]


async def test_class_of_ones_own_may_take_and_return_what_it_likes(dsn: str) -> None:
    """Nobody looks into what is no text."""
    pool: Any = of_one(dsn, connect_kwargs={"connection_class": Generous})
    async with pool, pool.acquire() as conn:
        assert await conn.execute(Sql()) == ["SELECT 1"]
        assert await conn.execute("SELECT 1; SELECT 2") == ["SELECT 1"]
