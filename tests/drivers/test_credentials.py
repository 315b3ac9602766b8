"""Passwords that end, on a real server whose password is changed: asyncpg and psycopg."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

import poolkit
from poolkit import ConnectFailed, Credential, Pool, PoolConfigError, PoolError
from tests.drivers.asyncpg_help import quiet, until
from tests.fakes import gone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.postgres import Server

DRIVERS: dict[str, tuple[Any, type[Exception]]] = {
    "asyncpg": (poolkit.drivers.asyncpg.create_pool, asyncpg.InvalidPasswordError),
    "psycopg": (poolkit.drivers.psycopg.create_pool, psycopg.OperationalError),
}


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio: the drivers know no other."""
    return "asyncio"


class Issuer:
    """Issues passwords for a role of the server, as an IAM service does; some come late, or not."""

    def __init__(self, server: Server, lifetime: float | None) -> None:
        self.server = server
        self.lifetime = lifetime
        self.user = "app"
        self.password = "issued0"
        self.fetched = 0
        self.error: Exception | None = None
        server.query("CREATE ROLE needs_password")
        server.query("CREATE ROLE app LOGIN PASSWORD 'issued0' IN ROLE needs_password")
        server.query("CREATE ROLE app2 LOGIN PASSWORD 'issued0' IN ROLE needs_password")

    def rotate(self, password: str, *, issue: bool = True) -> None:
        """Change the password, on the server at once."""
        self.server.query(f"ALTER ROLE {self.user} PASSWORD '{password}'")
        if issue:
            self.password = password

    async def fetch(self) -> Credential:
        """Issue what there is."""
        self.fetched += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return Credential(self.password, lifetime=self.lifetime, user=self.user)


@pytest.fixture
def issuer(own_postgres: Server) -> Iterator[Issuer]:
    """Return an issuer of passwords that end after an hour."""
    yield Issuer(own_postgres, 3600.0)
    own_postgres.query("DROP ROLE app, app2, needs_password")


@pytest.fixture(params=DRIVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name a driver."""
    name: str = request.param
    return name


def pool_of(kind: str, issuer: Issuer, options: Any = {}, **more: Any) -> Pool[Any]:  # noqa: B006
    """Return a pool of a driver's that logs in with what is issued."""
    create_pool: Any = DRIVERS[kind][0]
    server = issuer.server
    dsn = f"postgresql://{server.host}:{server.port}/postgres"
    password = poolkit.credentials(issuer.fetch, **more)
    defaults = {"min_size": 1, "max_size": 4, "connect_kwargs": {"password": password}}
    return create_pool(dsn, **{**defaults, **options})  # type: ignore[no-any-return]


async def user_of(pool: Pool[Any]) -> Any:
    """Return who the server says is logged in."""
    async with pool.acquire() as conn:
        if isinstance(conn, psycopg.AsyncConnection):
            cursor = await conn.execute("SELECT current_user::text")
            return (await cursor.fetchone())[0]  # type: ignore[index]
        return await conn.fetchval("SELECT current_user::text")


async def test_one_fetch_logs_all_connections_in(kind: str, issuer: Issuer) -> None:
    """The name may come with the password."""
    async with pool_of(kind, issuer, {"min_size": 4}) as pool:
        assert await user_of(pool) == "app"
        assert (issuer.fetched, pool.stats().connected) == (1, 4)


async def test_password_that_was_changed_early_costs_one_fetch(kind: str, issuer: Issuer) -> None:
    """The server refuses the old one; nobody is told of that."""
    async with pool_of(kind, issuer) as pool:
        issuer.rotate("issued1")
        pool.renew()
        await until(lambda: pool.stats().connected == 2)
        await quiet(pool)
        assert await user_of(pool) == "app"
        assert (issuer.fetched, pool.stats().connect_failures) == (2, 0)


async def test_connects_that_are_refused_together_share_one_fetch(
    kind: str, issuer: Issuer
) -> None:
    """Each of them logs in with what has come."""
    async with pool_of(kind, issuer) as pool:
        issuer.rotate("issued1")
        pool.resize(min_size=4)
        await until(lambda: pool.stats().connected == 4)
        assert (issuer.fetched, pool.stats().connect_failures) == (2, 0)


async def test_password_that_nobody_knows_is_fatal(kind: str, issuer: Issuer, caplog: Any) -> None:
    """With the server's own word; a password is in no message."""
    caplog.set_level(logging.DEBUG)
    refused = DRIVERS[kind][1]
    async with pool_of(kind, issuer, {"min_size": 0}) as pool:
        issuer.rotate("nobody knows", issue=False)
        with pytest.raises(ConnectFailed) as caught:
            await pool.acquire()
        assert isinstance(caught.value.__cause__, refused)
        issuer.rotate("issued1")
        for _ in range(100):
            try:
                assert await user_of(pool) == "app"
            except ConnectFailed:
                await asyncio.sleep(0.05)
            else:
                break
        else:
            pytest.fail("it does not come back")
    shown = "".join(traceback.format_exception(caught.value))
    assert "issued0" not in shown + caplog.text


async def test_refusal_while_nothing_can_be_fetched_is_told_with_both(
    kind: str, issuer: Issuer
) -> None:
    """What the server has said, and why there was no other password."""
    async with pool_of(kind, issuer) as pool:
        issuer.rotate("issued1", issue=False)
        issuer.error = RuntimeError("the service is down")
        with pytest.raises(ConnectFailed) as caught:
            async with pool.acquire(), pool.acquire():
                pass
        cause: Any = caught.value.__cause__
        assert isinstance(cause, DRIVERS[kind][1])
        assert type(cause.__cause__) is PoolError
        assert "the service is down" in str(cause.__cause__)


async def test_connections_of_another_user_take_the_place_of_the_old_ones(
    kind: str, issuer: Issuer
) -> None:
    """As a vault gives them: a name and a password that end together."""
    issuer.lifetime = 3.0
    async with pool_of(kind, issuer, {"min_size": 2}, renew_over=0.5) as pool:
        assert await user_of(pool) == "app"
        issuer.user = "app2"
        await until(lambda: gone(pool.stats()) == {"stale": 2})
        assert await user_of(pool) == "app2"
        assert pool.stats().connect_failures == 0


async def test_misconfiguration_is_told_at_once(kind: str, issuer: Issuer) -> None:
    """What is fetched is no credential."""
    create_pool: Any = DRIVERS[kind][0]
    password = poolkit.credentials(lambda: None)
    pool = create_pool("postgresql://localhost/postgres", connect_kwargs={"password": password})
    with pytest.raises(ConnectFailed) as caught:
        await pool.open()
    assert isinstance(caught.value.__cause__, PoolConfigError)


async def test_library_may_be_given_credentials_without_a_pool(issuer: Issuer) -> None:
    """They are a function that returns the password."""
    server = issuer.server
    password: Any = poolkit.credentials(issuer.fetch)
    conn = await asyncpg.connect(
        host=server.host, port=server.port, user="app", database="postgres", password=password
    )
    try:
        assert await conn.fetchval("SELECT current_user::text") == "app"
    finally:
        await conn.close()
