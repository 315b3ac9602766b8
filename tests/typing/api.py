"""Never run, only checked: what a type checker must know of the public surface."""

from __future__ import annotations

import os
import pathlib
from typing import Any, assert_type

import aiosqlite
import asyncpg
import psycopg
import pydantic
import sqlalchemy
from starlette import datastructures

import poolkit
from poolkit.drivers.asyncpg import Missed, Notification
from poolkit.drivers.sqlite import Connection as ThreadsConnection
from poolkit.drivers.stream import Stream


async def typed_by_the_driver() -> None:
    """The connection has the library's own type, from acquire to transaction."""
    pool = poolkit.drivers.aiosqlite.create_pool("app.db", max_size=5, acquire_timeout=None)
    async with pool.acquire(timeout=0.5) as conn:
        assert_type(conn, aiosqlite.Connection)
    conn = await pool.acquire()
    assert_type(conn, aiosqlite.Connection)
    await pool.release(conn)
    pool.release(conn)
    async with pool.transaction() as conn:
        assert_type(conn, aiosqlite.Connection)
    async with poolkit.transaction(conn) as same:
        assert_type(same, aiosqlite.Connection)
    threads = poolkit.drivers.sqlite.create_pool("app.db")
    async with threads.acquire() as other:
        assert_type(other, ThreadsConnection)
    streams = poolkit.drivers.stream.create_pool("host", 7, ping=(b"ping", b"pong"), max_size=3)
    async with streams.acquire() as stream:
        assert_type(stream, Stream)
        assert_type(await stream.receive(), bytes)
    poolkit.drivers.stream.create_pool("host", 7, ping=b"ping")  # type: ignore[arg-type]


async def listens() -> None:
    """What is heard has to be told from what was missed."""
    pool = poolkit.drivers.asyncpg.create_pool("postgresql://h/d")
    async with poolkit.drivers.asyncpg.listener(pool, buffer_size=10) as listen:
        async with listen("a", "b") as notes:
            assert_type(await anext(notes), Notification | Missed)
        async for note in listen("a"):
            if isinstance(note, Missed):
                assert_type(note.dropped, int)
                print(note.payload)  # type: ignore[attr-defined]
            else:
                assert_type(note.payload, str)
    poolkit.drivers.psycopg.listener(pool)  # type: ignore[arg-type]


async def from_a_url() -> None:
    """A URL tells nothing about types."""
    async with poolkit.create_pool("sqlite:///app.db", max_size=5) as pool:
        assert_type(pool, poolkit.Pool[Any])
        assert_type(pool.stats(), poolkit.PoolStats)
        assert_type(pool.leases(), list[poolkit.LeaseInfo])
        assert_type(pool.is_open, bool)
        assert_type(pool.stats().wait_times - pool.stats().use_times, poolkit.Histogram)
        assert_type(pool.stats().create_times.percentile(0.5), float | None)
        assert_type(poolkit.advise(pool.stats(), since=pool.stats()), poolkit.Advice)
        assert_type(poolkit.prometheus.Collector(pool), poolkit.prometheus.Collector)
        assert_type(await pool.aclose(grace=1.0), list[poolkit.LeaseInfo])


def given_as_an_object(secret: pydantic.SecretStr, dsn: pydantic.PostgresDsn) -> None:
    """URL objects, secrets and paths are taken at each door; None is not."""
    url = sqlalchemy.make_url("sqlite:///app.db")
    for given in (secret, dsn, url, datastructures.URL("sqlite:///app.db"), pathlib.Path("app.db")):
        poolkit.create_pool(given)
        poolkit.drivers.aiosqlite.create_pool(given)
        poolkit.drivers.sqlite.create_pool(given)
        poolkit.drivers.asyncpg.create_pool(given)
    poolkit.create_pool(os.environ.get("DATABASE_URL"))  # type: ignore[arg-type]
    poolkit.drivers.sqlite.create_pool(None)  # type: ignore[arg-type]


async def reset_asyncpg(conn: asyncpg.Connection) -> None:
    """Reset by a function."""
    await conn.execute("RESET ALL")


async def reset_psycopg(conn: psycopg.AsyncConnection[Any]) -> None:
    """Reset by a function."""
    await conn.execute("RESET ALL")


def settings_of_the_driver() -> None:
    """They are keywords of both doors."""
    poolkit.create_pool("postgresql://", reset="transaction", pooler="session", ssl=True)
    poolkit.create_pool("sqlite:///app.db", busy_timeout=1.0, row_factory=dict)
    poolkit.create_pool("postgresql://", reset="auto")
    poolkit.create_pool("postgresql://", reset="ful")  # type: ignore[arg-type]
    poolkit.create_pool("postgresql://", reset=reset_asyncpg)
    poolkit.create_pool("postgresql+psycopg://", reset=reset_psycopg)
    poolkit.drivers.asyncpg.create_pool("postgresql://", reset=reset_asyncpg)
    poolkit.drivers.psycopg.create_pool("postgresql://", reset=reset_psycopg)
    poolkit.drivers.psycopg.create_pool(reset=reset_asyncpg)  # type: ignore[arg-type]
    poolkit.create_pool("sqlite:///app.db", busy_timeout="1")  # type: ignore[arg-type]


async def _first(conn: asyncpg.Connection) -> str:
    return str(await conn.fetchval("SELECT 1"))


async def _of_another_library(conn: aiosqlite.Connection) -> None: ...


async def postgresql() -> None:
    """The connection is asyncpg's, with its own methods."""
    pool = poolkit.drivers.asyncpg.create_pool(
        "postgresql://host/db", max_size=3, reset="transaction", connect_kwargs={"ssl": True}
    )
    assert_type(pool, poolkit.Pool[asyncpg.Connection])
    async with pool.transaction(isolation="serializable") as conn:
        assert_type(conn, asyncpg.Connection)
        await conn.execute("SELECT $1", 1)
    assert_type(await pool.run(_first, isolation="serializable"), str)
    assert_type(await pool.run(lambda conn: conn.fetchval("SELECT 1")), Any)
    async for attempt in pool.attempts(retries=5):
        assert_type(attempt, poolkit.Attempt[asyncpg.Connection])
        async with attempt as conn:
            assert_type(conn, asyncpg.Connection)
    await pool.run(_of_another_library)  # type: ignore[arg-type]
    of_psycopg = poolkit.drivers.psycopg.create_pool("host=h", prepare_threshold=None)
    assert_type(of_psycopg, poolkit.Pool[psycopg.AsyncConnection[Any]])
    poolkit.drivers.asyncpg.create_pool("postgresql://", reset="ful")  # type: ignore[arg-type]


class MyDriver:
    """Nothing to inherit from."""

    async def connect(self) -> int:
        """Connect."""
        return 1

    def is_dead(self, c: int) -> bool:
        """Tell."""
        return c < 0

    async def reset(self, c: int) -> None:
        """Reset."""

    async def ping(self, c: int) -> None:
        """Ping."""

    async def close(self, c: int) -> None:
        """Close."""

    def terminate(self, c: int) -> None:
        """Terminate."""


async def own_driver() -> None:
    """A structural driver gives the pool its type."""
    pool = poolkit.Pool(MyDriver(), min_size=1, max_size=10)
    assert_type(pool, poolkit.Pool[int])
    async with pool.acquire() as conn:
        assert_type(conn, int)
    pool.resize(min_idle=2, max_size=3)
    pool.renew()
    assert_type(await pool.open(wait=False), poolkit.Pool[int])
    await pool.wait(timeout=1.0)
    assert_type(await pool.check(), int)
    assert_type(pool.stats() - pool.stats(), poolkit.PoolStats)


async def passwords() -> None:
    """Credentials are fetched by any function."""

    async def fetch() -> poolkit.Credential:
        return poolkit.Credential("secret", lifetime=900)

    credentials = poolkit.credentials(fetch, refresh_before=60)
    assert_type(credentials, poolkit.Credentials)
    assert_type(await credentials(), str)
    poolkit.credentials(lambda: "secret")
    poolkit.Credential("secret", "app")  # type: ignore[call-arg, arg-type]


def wrong_options() -> None:
    """What does not exist is an error before it runs."""
    poolkit.Pool(MyDriver(), max_sise=3)  # type: ignore[call-arg]
    poolkit.Pool(MyDriver(), max_size="3")  # type: ignore[arg-type]
    poolkit.create_pool("sqlite:///x", pool_size=3)  # type: ignore[call-arg]
