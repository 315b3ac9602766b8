"""Libraries that are given a connection, or a pool, of poolkit's in place of their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiosql
import aiosqlite
import asyncpg
import asyncpg_trek
import pydantic.fields
import pytest
from asyncpg_listen import NotificationListener
from asyncpg_trek.asyncpg import AsyncpgBackend
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries
from pgvector import Vector
from pgvector.asyncpg import register_vector

import poolkit
import poolkit.compat.asyncpg
from tests.drivers.asyncpg_help import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import Postgres


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of an empty database."""
    name = postgres.create_database()
    yield postgres.dsn(name)
    postgres.drop_database(name)


def of_one(dsn: str, **options: Any) -> poolkit.Pool[Any]:
    """Return a pool of one connection, which must be as good as new in each lease."""
    return poolkit.create_pool(dsn, **{"max_size": 1, **options})


def connects(pool: poolkit.Pool[Any]) -> int:
    """Return how many connections have been opened."""
    return pool.stats().connected


# -- pgvector ------------------------------------------------------------------------------------

#: For servers without the extension: a type that is sent as pgvector's is.
STAND_IN = """
CREATE TYPE vector;
CREATE FUNCTION vector_in(cstring) RETURNS vector AS 'byteain' LANGUAGE internal STRICT IMMUTABLE;
CREATE FUNCTION vector_out(vector) RETURNS cstring AS 'byteaout' LANGUAGE internal STRICT IMMUTABLE;
CREATE FUNCTION vector_recv(internal) RETURNS vector AS 'bytearecv' LANGUAGE internal STRICT IMMUTABLE;
CREATE FUNCTION vector_send(vector) RETURNS bytea AS 'byteasend' LANGUAGE internal STRICT IMMUTABLE;
CREATE TYPE vector (
    INPUT = vector_in, OUTPUT = vector_out, RECEIVE = vector_recv, SEND = vector_send
);
"""


@pytest.fixture
async def vectors(database: str) -> str:
    """Return the DSN of a database with a vector in it."""
    conn = await asyncpg.connect(database)
    try:
        await conn.execute("CREATE EXTENSION vector")
    except asyncpg.PostgresError:
        await conn.execute(STAND_IN)
    await register_vector(conn)
    await conn.execute("CREATE TABLE items (embedding vector)")
    await conn.execute("INSERT INTO items VALUES ($1)", [1, 2, 3])
    await conn.close()
    return database


async def test_vectors_registered_in_on_connect_are_there_in_each_lease(vectors: str) -> None:
    """After a reset as well; they cost neither the connection nor a second registration."""
    async with of_one(vectors, on_connect=register_vector) as pool:
        for number in range(3):
            async with pool.acquire() as conn:
                await conn.execute("INSERT INTO items VALUES ($1)", [number, 0, 0])
                found = await conn.fetchval("SELECT embedding FROM items LIMIT 1")
                assert found == Vector([1, 2, 3])
                await conn.execute("SET search_path TO pg_catalog")  # to be reset
        assert connects(pool) == 1


async def test_vectors_registered_in_a_lease_end_with_it(vectors: str) -> None:
    """The next one gets what every connection without them gets: text."""
    async with of_one(vectors) as pool:
        async with pool.acquire() as conn:
            plain = await conn.fetchval("SELECT embedding FROM items")
            await register_vector(conn)
            assert await conn.fetchval("SELECT embedding FROM items") == Vector([1, 2, 3])
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT embedding FROM items") == plain
            assert isinstance(plain, str)


# -- aiosql --------------------------------------------------------------------------------------

QUERIES = """
-- name: create_all()#
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT);

-- name: add(id, name)!
INSERT INTO people (id, name) VALUES (:id, :name);

-- name: add_many(id, name)*!
INSERT INTO people (id, name) VALUES (:id, :name);

-- name: add_returning(id, name)<!
INSERT INTO people (id, name) VALUES (:id, :name) {returning};

-- name: everybody()
SELECT id, name FROM people ORDER BY id;

-- name: somebody(id)^
SELECT id, name FROM people WHERE id = :id;

-- name: count()$
SELECT count(*) FROM people;
"""


async def use_queries(queries: Any, of: Any) -> None:
    """Do what aiosql can do."""
    await queries.create_all(of)
    await queries.add(of, id=1, name="Ann")
    await queries.add_many(of, [{"id": 2, "name": "Bob"}, {"id": 3, "name": "Cid"}])
    assert await queries.add_returning(of, id=4, name="Dan") == 4
    assert await queries.count(of) == 4
    assert tuple(await queries.somebody(of, id=2)) == (2, "Bob")
    assert [row[1] async for row in queries.everybody(of)] == ["Ann", "Bob", "Cid", "Dan"]
    async with queries.everybody_cursor(of) as cursor:
        assert [row[0] async for row in cursor] == [1, 2, 3, 4]
    async with queries.everybody_cursor(of) as cursor:
        async for _ in cursor:
            break  # and leave the others


async def test_aiosql_queries_run_on_a_leased_asyncpg_connection(database: str) -> None:
    """All kinds of them, and the connection goes on to the next lease."""
    queries = aiosql.from_str(QUERIES.format(returning="RETURNING id"), "asyncpg")
    async with of_one(database) as pool:
        async with pool.acquire() as conn:
            await use_queries(queries, conn)
        async with pool.acquire() as conn:
            assert await queries.count(conn) == 4
        assert connects(pool) == 1


async def test_aiosql_acquires_from_a_pool_by_itself(database: str) -> None:
    """Given a pool, it acquires and releases for each query."""
    queries = aiosql.from_str(QUERIES.format(returning="RETURNING id"), "asyncpg")
    async with of_one(database) as pool:
        await use_queries(queries, pool)
        assert (pool.stats().leased, connects(pool)) == (0, 1)


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+threads"])
async def test_aiosql_queries_run_on_a_leased_sqlite_connection(
    scheme: str, tmp_path: Path
) -> None:
    """All kinds of them, and the connection goes on to the next lease."""
    queries = aiosql.from_str(QUERIES.format(returning=""), "aiosqlite")
    async with of_one(f"{scheme}:///{tmp_path}/app.db") as pool:
        async with pool.acquire() as conn:
            await use_queries(queries, conn)
        async with pool.acquire() as conn:
            assert await queries.count(conn) == 4
        assert connects(pool) == 1


# -- langgraph -----------------------------------------------------------------------------------


async def test_langgraph_keeps_its_checkpoints_on_a_leased_connection(tmp_path: Path) -> None:
    """What it saves in one lease is there in the next; its statements are each committed."""
    async with of_one(f"sqlite:///{tmp_path}/app.db") as pool:
        saved: Any = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
        async with pool.acquire() as conn:
            saver = AsyncSqliteSaver(conn)
            checkpoint = empty_checkpoint()
            saved = await saver.aput(saved, checkpoint, {"step": 1}, {})
            await saver.aput_writes(saved, [("channel", "value")], "task")
        async with pool.acquire() as conn:
            saver = AsyncSqliteSaver(conn)
            found = await saver.aget_tuple(saved)
            assert found is not None
            assert found.checkpoint["id"] == checkpoint["id"]
            assert found.pending_writes == [("task", "channel", "value")]
            thread = {"configurable": {"thread_id": "1"}}
            assert [one.config async for one in saver.alist(thread)] == [saved]
            await saver.adelete_thread("1")
        async with aiosqlite.connect(tmp_path / "app.db") as outside:
            async with outside.execute("SELECT count(*) FROM checkpoints") as cursor:
                assert await cursor.fetchone() == (0,)
        assert connects(pool) == 1


# -- pgqueuer ------------------------------------------------------------------------------------


#: It says that it runs with older ones, and does not.
new_pydantic = pytest.mark.skipif(
    not hasattr(pydantic.fields.FieldInfo, "default_factory_takes_validated_data"),
    reason="pgqueuer needs pydantic 2.10",
)


@new_pydantic
async def test_pgqueuer_works_on_a_leased_connection(database: str) -> None:
    """Its queue is installed and filled, and its listener ends with the lease."""
    heard: list[Any] = []
    async with of_one(database) as pool:
        async with pool.acquire() as conn:
            driver = AsyncpgDriver(conn)
            await Queries(driver).install()
            await Queries(driver).enqueue("send", b"1")
            await driver.add_listener("channel", heard.append)
            await driver.notify("channel", "first")
            await until(lambda: heard)
        async with pool.acquire() as conn:
            driver = AsyncpgDriver(conn)
            await driver.notify("channel", "second")
            (sizes,) = await Queries(driver).queue_size()
            assert (sizes.entrypoint, sizes.count) == ("send", 1)
        assert heard == ["first"]


@new_pydantic
async def test_pgqueuer_works_on_a_pool_that_is_as_asyncpgs(database: str) -> None:
    """It keeps a connection of the pool's for its listener, and gives it back at its end."""
    heard: list[Any] = []
    async with poolkit.compat.asyncpg.create_pool(database, min_size=1, max_size=2) as pool:
        async with AsyncpgPoolDriver(pool) as driver:
            await Queries(driver).install()
            await Queries(driver).enqueue("send", b"1")
            await driver.add_listener("channel", heard.append)
            await driver.notify("channel", "first")
            await until(lambda: heard)
            assert pool.get_size() - pool.get_idle_size() == 1
        await until(lambda: pool.get_size() == pool.get_idle_size())
        await pool.execute("NOTIFY channel, 'second'")
        assert heard == ["first"]


# -- asyncpg-listen ------------------------------------------------------------------------------


async def test_asyncpg_listen_takes_a_pools_acquire_for_connecting(database: str) -> None:
    """It closes its connection at the end, which gives that back: nobody else releases it."""
    heard: asyncio.Queue[Any] = asyncio.Queue()
    async with of_one(database, max_size=2) as pool:
        listener = NotificationListener(pool.acquire)
        listening = asyncio.create_task(listener.run({"channel": heard.put}))
        await until(lambda: pool.stats().leased)
        async with asyncio.timeout(PATIENCE), pool.acquire() as conn:
            while heard.empty():  # it may not have begun to listen
                await conn.execute("NOTIFY channel, 'first'")
        listening.cancel()
        await asyncio.wait([listening])
        await until(lambda: not pool.stats().leased)
        async with pool.acquire(), pool.acquire():
            pass


# -- asyncpg-trek --------------------------------------------------------------------------------


async def test_asyncpg_trek_migrates_on_a_leased_connection(database: str, tmp_path: Path) -> None:
    """In transactions that it begins itself; one that fails is undone whole."""
    (tmp_path / "20260101_initial_up_one.sql").write_text("CREATE TABLE one (x int)")
    (tmp_path / "20260102_one_up_two.sql").write_text("CREATE TABLE two (x int); SELECT 1/0")
    async with of_one(database) as pool:

        async def migrate(target: str) -> None:
            async with pool.acquire() as conn:
                backend = AsyncpgBackend(conn)
                planned = await asyncpg_trek.plan(
                    backend, tmp_path, target, asyncpg_trek.Direction.up
                )
                await asyncpg_trek.execute(backend, planned)

        await migrate("one")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await migrate("two")
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT count(*) FROM one") == 0
            assert await conn.fetchval("SELECT to_regclass('two')") is None
        assert connects(pool) == 1
