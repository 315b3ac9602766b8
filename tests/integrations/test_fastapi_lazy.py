"""`lazy`: a connection that is acquired when it is first needed, and shared by the whole request."""

import asyncio
import re
from typing import Annotated, Any

import aiosqlite
import anyio
import pytest
from anyio.lowlevel import checkpoint
from fastapi import Depends, FastAPI, HTTPException

import poolkit.fastapi
from poolkit import NotLeased, PoolTimeout
from poolkit.fastapi import Connection, Lazy, LazyConnection, Transaction
from tests.integrations.live import (
    SQLitePool,
    Watch,
    create_pool,
    nothing_is_lost,
    serve,
    until,
)

Db = Lazy[aiosqlite.Connection]
Conn = Connection[aiosqlite.Connection]
Tx = Transaction[aiosqlite.Connection]


def acquired(pool: SQLitePool) -> int:
    """Count the acquires so far."""
    return pool.stats().direct + pool.stats().waited


async def user(db: Db) -> None:
    """Authenticate: a block in a dependency."""
    async with db as conn:
        await conn.execute_fetchall("SELECT 1")


User = Annotated[None, Depends(user)]


async def test_nothing_is_acquired_unless_it_is_needed(app: FastAPI, pool: SQLitePool) -> None:
    """Not for an invalid request, not for a refused one, not for one that needs no database."""

    async def member(db: Db, key: str = "") -> LazyConnection[aiosqlite.Connection]:
        if not key:
            raise HTTPException(401)
        return db

    @app.get("/")
    async def read(db: Db, number: int, member: Annotated[object, Depends(member)]) -> bool:
        return db is member

    async with serve(app) as client:
        assert (await client.get("/?number=x&key=1")).status == 422
        assert (await client.get("/?number=1")).status == 401
        assert (await client.get("/?number=1&key=1")).json is True
        assert acquired(pool) == 0
        await nothing_is_lost(pool)


async def test_block_holds_a_connection_for_as_long_as_it_lasts(
    app: FastAPI, pool: SQLitePool
) -> None:
    """Between two blocks nothing is held: there is time for somebody else's answer."""
    leased: list[int] = []

    def note() -> None:
        leased.append(pool.stats().leased)

    @app.get("/")
    async def read(db: Db, _: User) -> Any:
        note()
        async with db as conn:
            note()
            async with db as same:
                assert same is conn
            note()
            rows = await conn.execute_fetchall("SELECT 1")
        note()
        async with db as another:
            note()
            rows = await another.execute_fetchall("SELECT 2")
        with pytest.raises(NotLeased, match=r"GET /.*read.*at the end of a block"):
            await conn.execute("SELECT 3")
        return rows

    async with serve(app) as client:
        assert (await client.get("/")).json == [[2]]
        assert leased == [0, 1, 1, 0, 1]
        assert acquired(pool) == 3
        await nothing_is_lost(pool)


async def test_awaited_connection_is_held_to_the_end_of_the_endpoint(
    app: FastAPI, pool: SQLitePool
) -> None:
    """And no longer: it is back before the response starts."""
    leased: list[int] = []

    @app.get("/")
    async def read(db: Db) -> None:
        conn = await db
        async with db as same:
            assert same is conn
        assert await db is conn
        await conn.execute_fetchall("SELECT 1")
        leased.append(pool.stats().leased)

    watch = Watch(app, pool)
    async with serve(watch) as client:
        assert (await client.get("/")).status == 200
        assert leased == [1]
        assert watch.seen[0] == ("start", 0)
        assert acquired(pool) == 1
        await nothing_is_lost(pool)


async def test_release_gives_back_before_the_end(app: FastAPI, pool: SQLitePool) -> None:
    """Awaited or not, once or twice; afterwards the next use acquires again."""

    @app.get("/")
    async def read(db: Db) -> list[int]:
        conn = await db
        await conn.execute_fetchall("SELECT 1")
        db.release()
        leased = [pool.stats().leased]
        with pytest.raises(NotLeased, match=r"by release\(\)"):
            await conn.execute("SELECT 1")
        await db.release()
        await db
        leased.append(pool.stats().leased)
        await db.release()
        return [*leased, pool.stats().leased]

    async with serve(app) as client:
        assert (await client.get("/")).json == [0, 1, 0]
        await nothing_is_lost(pool)


async def test_connection_given_back_by_hand_is_acquired_anew(
    app: FastAPI, pool: SQLitePool
) -> None:
    """`Pool.release` works on it as on any other; nobody is given the dead handle."""

    @app.get("/")
    async def read(db: Db) -> Any:
        pool.release(await db)
        assert pool.stats().leased == 0
        async with db as conn:
            return await conn.execute_fetchall("SELECT 1")

    async with serve(app) as client:
        assert (await client.get("/")).json == [[1]]
        await nothing_is_lost(pool)


@pytest.mark.parametrize("which", ["connection", "transaction"])
async def test_lease_lives_to_the_longest_use(app: FastAPI, pool: SQLitePool, which: str) -> None:
    """What `connection` or `transaction` holds no block and no release takes away."""

    async def uses(db: Db, conn: Any) -> list[int]:
        assert await db is conn
        async with db as same:
            assert same is conn
        await db.release()
        await conn.execute_fetchall("SELECT 1")
        return [acquired(pool), pool.stats().leased]

    @app.get("/connection")
    async def connection(_: User, db: Db, conn: Conn) -> list[int]:
        return await uses(db, conn)

    @app.get("/transaction")
    async def transaction(_: User, conn: Tx, db: Db) -> list[int]:
        assert conn.in_transaction
        return await uses(db, conn)

    async with serve(app) as client:
        # One in the block of `user`, which is over when the endpoint's begins.
        assert (await client.get(f"/{which}")).json == [2, 1]
        await nothing_is_lost(pool)


async def test_block_of_a_dependency_is_not_ended_by_another(
    app: FastAPI, pool: SQLitePool
) -> None:
    """A dependency that yields inside its block has the connection to its end."""
    ended: list[Any] = []

    async def own(db: Db) -> Any:
        async with db as conn:
            yield conn
            ended.append(await conn.execute_fetchall("SELECT 1"))

    @app.get("/")
    async def read(own: Annotated[Any, Depends(own, scope="function")], db: Db) -> bool:
        async with db as conn:
            assert conn is own
        await db
        await db.release()
        return pool.stats().leased == 1

    async with serve(app) as client:
        assert (await client.get("/")).json is True
        assert ended == [[(1,)]]
        await nothing_is_lost(pool)


async def test_tasks_that_use_it_at_once_share_one_connection(app: FastAPI, database: Any) -> None:
    """The first acquires, the others wait for the same; the last one to leave gives it back."""
    pool = create_pool(database, max_size=1, acquire_timeout=None)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)
    seen: list[int] = []

    @app.get("/")
    async def read(db: Db) -> int:
        async def use() -> None:
            async with db as conn:
                seen.append(id(conn))
                await conn.execute_fetchall("SELECT 1")
            if len(seen) < 3:
                assert pool.stats().leased == 1

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(use)
        return pool.stats().leased

    async with serve(app) as client:
        async with pool.acquire():
            request = asyncio.create_task(client.get("/"))
            await until(lambda: pool.stats().waiting)
            for _ in range(10):
                await checkpoint()
            assert pool.stats().waiting == 1
        assert (await request).json == 0
        assert len(set(seen)) == 1
        assert acquired(pool) == 2
        assert pool.stats().idle + pool.stats().recycling == 1


async def test_task_cancelled_while_it_acquires_leaves_the_place_to_the_next(
    app: FastAPI, database: Any
) -> None:
    """Whoever waits for the same connection acquires it instead."""
    pool = create_pool(database, max_size=1, acquire_timeout=None)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)
    scopes: list[anyio.CancelScope] = []

    @app.get("/")
    async def read(db: Db) -> Any:
        results: list[Any] = []

        async def use() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                async with db as conn:
                    results.append(await conn.execute_fetchall("SELECT 1"))

        async with anyio.create_task_group() as group:
            group.start_soon(use)
            group.start_soon(use)
        return results

    async with serve(app) as client:
        async with pool.acquire():
            request = asyncio.create_task(client.get("/"))
            await until(lambda: pool.stats().waiting == 1 and len(scopes) == 2)
            scopes[0].cancel()
            await until(lambda: pool.stats().cancelled == 1 and pool.stats().waiting == 1)
        assert (await request).json == [[[1]]]
        await until(lambda: pool.stats().idle == 1)


async def test_tasks_that_wait_for_it_at_once_wait_no_longer_than_one(
    app: FastAPI, database: Any
) -> None:
    """The deadline of the second is its own, though it has waited for the first."""
    pool = create_pool(database, max_size=1, acquire_timeout=0.3)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)
    waits: list[float] = []

    @app.get("/")
    async def read(db: Db) -> None:
        async def use() -> None:
            with pytest.raises(PoolTimeout) as caught:
                await db
            [seconds] = re.findall(r"no connection within (\S+) s", str(caught.value))
            waits.append(float(seconds))

        async with anyio.create_task_group() as group:
            group.start_soon(use)
            group.start_soon(use)

    async with serve(app) as client, pool.acquire():
        assert (await client.get("/")).status == 200
    assert waits[0] == 0.3
    assert waits[1] < 0.1


async def test_use_after_the_endpoint_is_a_clear_error(app: FastAPI, database: Any) -> None:
    """A task that outlives the request is told so, and gets nothing, not even what it waited for."""
    pool = create_pool(database, max_size=1, acquire_timeout=None)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)
    errors: list[NotLeased] = []
    tasks: list[asyncio.Task[None]] = []

    @app.get("/")
    async def start(db: Db) -> None:
        async def late() -> None:
            try:
                await db
            except NotLeased as error:
                errors.append(error)

        tasks.append(asyncio.create_task(late()))
        while not pool.stats().waiting:
            await checkpoint()
        tasks.append(asyncio.create_task(late()))

    async with serve(app) as client:
        async with pool.acquire():
            assert (await client.get("/")).status == 200
        await asyncio.gather(*tasks)
        assert len(errors) == 2
        assert "GET /" in str(errors[0])
        assert "poolkit.fastapi.pool" in str(errors[0])
        await until(lambda: pool.stats().idle == 1)
        assert pool.stats().leased == 0


async def test_request_that_fails_gives_back(app: FastAPI, pool: SQLitePool) -> None:
    """An error in a block, or with an awaited connection, costs no slot."""

    @app.get("/block")
    async def block(db: Db) -> None:
        async with db as conn:
            await conn.execute("no SQL")

    @app.get("/awaited")
    async def awaited(db: Db) -> None:
        await (await db).execute("no SQL")

    async with serve(app) as client:
        for path in ("/block", "/awaited"):
            assert (await client.get(path)).status == 500
            await nothing_is_lost(pool)


def test_it_says_what_it_is(pool: SQLitePool) -> None:
    """The repr has the pool and the state, and no password."""
    from poolkit.fastapi._request import RequestLeases

    held = RequestLeases({"type": "http", "method": "GET", "path": "/"})
    assert repr(held.lease(pool, None)) == "<connection of pool 'test' for GET ?: not held>"
