"""An `AsyncEngine` over a pool of poolkit's: what people write with SQLAlchemy, on both drivers."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
import trio
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

import poolkit
from poolkit.sqlalchemy import create_async_engine
from tests.drivers.asyncpg_help import PATIENCE, until
from tests.proxy import Proxy
from tests.sqlalchemy.conftest import Database, at_rest, opened, terminate

if TYPE_CHECKING:
    from pathlib import Path

INSERT = sa.text("INSERT INTO t VALUES (:x)")
COUNT = sa.text("SELECT count(*) FROM t")


class Base(DeclarativeBase):
    """Mapped classes."""


class Item(Base):
    """A row."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    extra: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class Hero(SQLModel, table=True):
    """A row of SQLModel's."""

    id: int | None = Field(default=None, primary_key=True)
    name: str


# -- Core, AsyncSession, SQLModel ----------------------------------------------------------------


async def test_core_commits_and_rolls_back(engine: AsyncEngine, database: Database) -> None:
    """A block of ``begin()`` commits; one that raises leaves nothing."""
    async with engine.begin() as conn:
        await conn.execute(INSERT, {"x": 1})
    with pytest.raises(ZeroDivisionError):
        async with engine.begin() as conn:
            await conn.execute(INSERT, {"x": 2})
            raise ZeroDivisionError
    async with engine.connect() as conn:
        await conn.execute(INSERT, {"x": 3})
    assert database.rows() == [1]


async def test_orm_writes_reads_and_keeps_json(engine: AsyncEngine, database: Database) -> None:
    """Mapped classes make the round trip, dictionaries among their values."""
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)
        await conn.run_sync(Base.metadata.create_all)
    new_session = async_sessionmaker(engine, expire_on_commit=False)
    async with new_session() as session, session.begin():
        session.add(Item(id=1, name="spade", extra={"of": ["steel", 2]}))
    async with new_session() as session:
        item = await session.get(Item, 1)
        assert item is not None
        assert (item.name, item.extra) == ("spade", {"of": ["steel", 2]})
        await session.delete(item)
        await session.rollback()
    assert database.query("SELECT count(*) FROM item") == [(1,)]


async def test_sqlmodel_writes_and_reads(engine: AsyncEngine) -> None:
    """SQLModel's own session, with ``exec``."""
    async with engine.begin() as conn:
        await conn.run_sync(SQLModel.metadata.drop_all)
        await conn.run_sync(SQLModel.metadata.create_all)
    async with SQLModelSession(engine) as session:
        session.add(Hero(name="Deadpond"))
        await session.commit()
    async with SQLModelSession(engine) as session:
        heroes = (await session.exec(select(Hero))).all()
        assert [hero.name for hero in heroes] == ["Deadpond"]


async def test_a_session_takes_a_connection_when_it_needs_one(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """With its first statement, and gives it back with each commit."""
    async with AsyncSession(engine) as session:
        assert pool.stats().leased == 0
        await session.execute(COUNT)
        assert pool.stats().leased == 1
        await session.commit()
        assert pool.stats().leased == 0


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # psycopg's
async def test_savepoints_and_streams(engine: AsyncEngine, database: Database) -> None:
    """What is rolled back inside stays undone; rows come from a server-side cursor."""
    async with engine.begin() as conn:
        outer = await conn.begin_nested()
        await conn.execute(INSERT, [{"x": 1}, {"x": 2}])
        inner = await conn.begin_nested()
        await conn.execute(INSERT, {"x": 3})
        await inner.rollback()
        await outer.commit()
    async with engine.connect() as conn:
        nested = await conn.begin_nested()
        await conn.execute(INSERT, {"x": 4})
        await nested.commit()
        await conn.rollback()
    assert database.rows() == [1, 2]
    async with engine.connect() as conn:
        select = sa.text("SELECT x FROM t ORDER BY x")
        result = await conn.stream(select)
        assert [row.x async for row in result] == [1, 2]
        for size in (1, None):
            result = await conn.stream(select)
            assert (await result.fetchmany(size))[0] == (1,)
        assert await (await conn.stream(select)).all() == [(1,), (2,)]
        result = await conn.stream(select)
        assert await result.fetchone() == (1,)  # and is left there
    del result
    gc.collect()


async def test_an_error_of_the_database_is_sqlalchemys(
    engine: AsyncEngine, database: Database
) -> None:
    """And costs nothing but its transaction."""
    async with engine.begin() as conn:
        await conn.execute(sa.text("DROP TABLE IF EXISTS u"))
        await conn.execute(sa.text("CREATE TABLE u (x int PRIMARY KEY)"))
    with pytest.raises(sa.exc.IntegrityError):
        async with engine.begin() as conn:
            for _ in range(2):
                await conn.execute(sa.text("INSERT INTO u VALUES (1)"))
    with pytest.raises(sa.exc.DBAPIError):
        async with engine.connect() as conn:
            await conn.execute(sa.text("SELECT nonsense FROM nowhere"))
    assert database.query("SELECT count(*) FROM u") == [(0,)]
    async with engine.connect() as conn:
        assert await conn.scalar(COUNT) == 0


async def test_autocommit_is_that_of_one_engine(
    pool: poolkit.Pool[Any], database: Database
) -> None:
    """Two engines and the pool's own users share connections; each has its own transactions."""
    auto = create_async_engine(pool, isolation_level="AUTOCOMMIT")
    plain = create_async_engine(pool)
    for x in (1, 2):  # on the second round the connection is known to all of them
        async with auto.connect() as conn:
            await conn.execute(INSERT, {"x": x})
        await at_rest(pool)
        async with plain.connect() as conn:
            await conn.execute(INSERT, {"x": -x})
        await at_rest(pool)
        async with pool.acquire() as own:
            await own.execute(f"INSERT INTO t VALUES ({10 * x})")
        await at_rest(pool)
    assert pool.stats().size == 1
    assert database.rows() == [1, 2, 10, 20]


async def test_rows_are_tuples_whatever_the_pool_makes_of_them(on_sqlite: Database) -> None:
    """A pool may have a row_factory of its own."""
    async with poolkit.drivers.aiosqlite.create_pool(
        on_sqlite.url.removeprefix("sqlite:///"),
        row_factory=lambda _, row: {"row": row},
        max_size=1,
    ) as pool:
        for _ in range(2):
            async with create_async_engine(pool).connect() as conn:
                assert (await conn.execute(sa.text("SELECT 1, 2"))).all() == [(1, 2)]
            async with pool.acquire() as own:
                assert list(await own.execute_fetchall("SELECT 1")) == [{"row": (1,)}]


# -- one limit -----------------------------------------------------------------------------------


async def test_the_sixth_session_waits_and_five_connections_serve_all(database: Database) -> None:
    """A limit of 5 and no overflow: what ``pool_size=5, max_overflow=0`` is meant to be."""
    async with opened(database, max_size=5, max_overflow=0) as pool:
        engine = create_async_engine(pool)
        holding = [AsyncSession(engine) for _ in range(5)]
        for session in holding:
            await session.execute(COUNT)
        assert pool.stats().leased == 5

        async def sixth() -> Any:
            async with AsyncSession(engine) as session:
                return await session.scalar(COUNT)

        waiting = asyncio.create_task(sixth())
        await until(lambda: pool.stats().waiting == 1)
        assert pool.stats().size == 5
        await holding[0].close()
        assert await waiting == 0
        for session in holding[1:]:
            await session.close()
        await asyncio.gather(*(sixth() for _ in range(20)))
        assert pool.stats().connected == 5


async def test_a_timeout_is_poolkits_and_sqlalchemys(database: Database) -> None:
    """So that what catches either goes on catching it; it says who holds what, and where."""
    async with opened(database, max_size=1, acquire_timeout=0.3) as pool:
        engine = create_async_engine(pool)
        async with engine.connect():
            with pytest.raises(sa.exc.TimeoutError) as caught:
                await AsyncSession(engine).execute(COUNT)
        assert isinstance(caught.value, poolkit.PoolTimeout)
        assert isinstance(caught.value, poolkit.sqlalchemy.PoolTimeout)
        assert "no connection within 0.3 s" in str(caught.value)
        assert "test_engine.py" in str(caught.value)


async def test_a_lease_is_that_of_the_users_line(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """Not of SQLAlchemy's internals, though its synchronous code has a stack of its own."""
    async with AsyncSession(engine) as session:
        await session.execute(COUNT)
        (lease,) = pool.leases()
    assert "test_engine.py" in lease.place
    assert "test_a_lease_is_that_of_the_users_line" in lease.place
    assert not any("sqlalchemy/" in place.replace("tests/sqlalchemy/", "") for place in lease.stack)


async def test_on_acquire_greets_each_checkout(database: Database) -> None:
    """With the connection that SQLAlchemy gets, in the task of its user."""
    greeted = []

    async def greet(conn: Any) -> None:
        await conn.execute("SELECT 1")
        greeted.append(asyncio.current_task())

    async with opened(database, on_acquire=greet) as pool:
        engine = create_async_engine(pool)
        for _ in range(2):
            async with engine.connect() as conn:
                assert await conn.scalar(COUNT) == 0
    assert greeted == [asyncio.current_task()] * 2


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"pool_size": 5}, "max_size="),
        ({"max_overflow": 0}, "max_overflow="),
        ({"pool_recycle": 3600}, "max_lifetime="),
        ({"pool_timeout": 30}, "acquire_timeout="),
        ({"pool_use_lifo": True}, "last"),
        ({"poolclass": sa.pool.NullPool}, "leave it out"),
        ({"pool": None}, "leave it out"),
        ({"creator": print}, "connect_kwargs="),
        ({"async_creator": print}, "on_connect="),
        ({"url": "postgresql://me:sekret@host/db"}, "knows its database"),
        ({"connect_args": {"password": "sekret"}}, "poolkit opens the connections"),
    ],
)
def test_what_the_pool_decides_is_refused_with_its_name_there(
    option: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """No option of SQLAlchemy's is silently ignored, and no secret shown."""
    pool = poolkit.create_pool(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(poolkit.PoolConfigError) as caught:
        create_async_engine(pool, **option)
    assert next(iter(option)) in str(caught.value)
    assert says in str(caught.value)
    assert "sekret" not in str(caught.value)


def test_it_takes_a_pool_and_nothing_else(tmp_path: Path) -> None:
    """A URL is what SQLAlchemy takes there; a thread's connections have no dialect."""
    with pytest.raises(poolkit.PoolConfigError, match="given a str: give it a pool"):
        create_async_engine("sqlite+aiosqlite://")  # type: ignore[arg-type]
    threads = poolkit.create_pool(f"sqlite+threads:///{tmp_path}/x.db")
    with pytest.raises(poolkit.PoolConfigError, match=r"ThreadsDriver.*aiosqlite"):
        create_async_engine(threads)


def test_an_unknown_option_is_sqlalchemys_to_refuse(tmp_path: Path) -> None:
    """By its name."""
    pool = poolkit.create_pool(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(TypeError, match="pool_sise"):
        create_async_engine(pool, pool_sise=5)


def test_pre_ping_is_the_pools_health_check(tmp_path: Path) -> None:
    """Asked of a pool that never pings it would be a promise nobody keeps."""
    url = f"sqlite:///{tmp_path}/x.db"
    create_async_engine(poolkit.create_pool(url), pool_pre_ping=True)
    create_async_engine(poolkit.create_pool(url, ping_after=None), pool_pre_ping=False)
    with pytest.raises(poolkit.PoolConfigError, match="ping_after=0"):
        create_async_engine(poolkit.create_pool(url, ping_after=None), pool_pre_ping=True)


async def test_do_connect_is_refused(pool: poolkit.Pool[Any]) -> None:
    """A listener for it would set what nobody reads."""
    engine = create_async_engine(pool)
    sa.event.listen(engine.sync_engine, "do_connect", lambda *_: None)
    with pytest.raises(poolkit.PoolConfigError, match="connect_kwargs"):
        await engine.connect()
    assert pool.stats().leased == 0


URLS = {
    "postgresql://me:sekret@db.example:5433/shop": "me@db.example:5433/shop",
    "postgresql://m%40e:sekret@db.example/shop": "m%40e@db.example:5432/shop",
    "postgresql://db.example/shop?user=me&password=sekret": "me@db.example:5432/shop",
    "postgresql://me@[::1]:5433/shop": "me@[::1]:5433/shop",
    "postgresql://me:sekret@one:1,two:2/shop": "me@/shop?host=one%3A1&host=two%3A2",
    "postgresql:///shop?host=/run/sock&user=me": "me@/shop?host=%2Frun%2Fsock%3A5432",
    "postgresql://db.example": "db.example:5432",
}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("dsn", URLS)
def test_engine_url_names_user_and_database_and_no_password(
    dsn: str, driver: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For those who look there, and for logs."""
    for name in ("PGUSER", "PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level("DEBUG"):
        pool = poolkit.create_pool(dsn.replace("postgresql", f"postgresql+{driver}"))
        engine = create_async_engine(pool, echo_pool="debug")
    shown = engine.url.render_as_string(hide_password=False)
    assert shown == f"postgresql+{driver}://{URLS[dsn]}"
    assert engine.url.password is None
    assert "sekret" not in f"{engine!r} {engine.pool.status()} {caplog.text}"
    assert engine.dialect.driver == driver


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_engine_url_has_the_user_that_is_given_otherwise(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument of the library's goes before the DSN, and that before the environment."""
    monkeypatch.setenv("PGUSER", "of_environment")
    create_pool = getattr(poolkit.drivers, driver).create_pool
    of_environment = create_pool("postgresql://host/shop")
    assert create_async_engine(of_environment).url.username == "of_environment"
    of_arguments = create_pool(
        "postgresql://other:sekret@host/shop", connect_kwargs={"user": "me", "password": "sekret"}
    )
    assert create_async_engine(of_arguments).url.username == "me"


def test_asyncio_is_named_under_trio(tmp_path: Path) -> None:
    """Instead of an error from the depth of a greenlet."""

    async def main() -> None:
        pool = poolkit.create_pool(f"sqlite:///{tmp_path}/x.db")
        await create_async_engine(pool).connect()

    with pytest.raises(poolkit.PoolConfigError, match="runs on asyncio only"):
        trio.run(main)


async def test_a_closed_pool_says_so(on_sqlite: Database) -> None:
    """The engine may be made before the pool is opened."""
    pool = poolkit.create_pool(on_sqlite.url)
    engine = create_async_engine(pool)
    with pytest.raises(poolkit.PoolClosed, match="not open"):
        await engine.connect()
    async with pool, engine.connect() as conn:
        assert await conn.scalar(COUNT) == 0


def test_it_is_imported_when_first_used() -> None:
    """`import poolkit` brings no SQLAlchemy."""
    program = (
        "import sys, poolkit; before = 'sqlalchemy' in sys.modules;"
        "poolkit.sqlalchemy.create_async_engine; print(before, {'asyncpg', 'psycopg'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False set()"


@pytest.mark.parametrize("module", ["sqlalchemy", "greenlet"])
def test_what_is_not_installed_is_named(module: str) -> None:
    """SQLAlchemy 2.1 alone brings no greenlet."""
    program = (
        f"import sys, poolkit; sys.modules[{module!r}] = None\n"
        "try: poolkit.sqlalchemy\n"
        "except poolkit.PoolConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert module in done.stdout
    assert "pip install 'poolkit[sqlalchemy]'" in done.stdout


# -- status, dispose, the health check -----------------------------------------------------------


async def test_status_and_counts_are_the_pools(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """In poolkit's words, and by the methods of SQLAlchemy's QueuePool that monitors call."""
    stand_in: Any = engine.pool
    async with engine.connect():
        assert "1 leased" in engine.pool.status()
        assert pool.name in engine.pool.status()
        counts = stand_in.checkedout(), stand_in.checkedin(), stand_in.size(), stand_in.overflow()
        assert counts == (1, 0, 5, -4)
        assert stand_in.timeout() == 10.0


async def test_dispose_replaces_the_connections_and_leaves_the_pool_open(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """Idle ones now; those in use when they come back, and until then they work."""
    async with engine.connect() as conn, engine.connect():
        before = pool.stats().connected
        await engine.dispose()
        assert await conn.scalar(COUNT) == 0
    await at_rest(pool)
    async with engine.connect() as conn:
        assert await conn.scalar(COUNT) == 0
    assert pool.stats().connected > before
    assert pool.stats().retired["stale"] == 2


async def test_dispose_beside_another_loop_does_nothing(
    engine: AsyncEngine, pool: poolkit.Pool[Any]
) -> None:
    """SQLAlchemy's users call it from anywhere at the end of a program."""
    async with engine.connect():
        pass
    await at_rest(pool)
    await asyncio.to_thread(lambda: asyncio.run(engine.dispose()))
    assert sum(pool.stats().retired.values()) == 0
    async with engine.connect() as conn:
        assert await conn.scalar(COUNT) == 0


async def test_what_is_in_use_is_not_pinged(
    on_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that a session has just given back was heard from."""
    pings = []

    async def ping(self: Any, c: Any) -> None:
        pings.append(c)

    monkeypatch.setattr(type(on_server.module.from_url(on_server.url)), "ping", ping)
    async with opened(on_server, max_size=1, ping_after=0.2, ping_every=None) as pool:
        engine = create_async_engine(pool)
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + 0.5:
            async with engine.connect() as conn:
                await conn.scalar(COUNT)
    assert pings == []


async def test_an_idle_connection_that_the_server_has_ended_is_not_handed_out(
    on_server: Database,
) -> None:
    """Neither by the pool's ping nor by what the driver learns by itself."""
    async with opened(on_server, max_size=1, ping_after=0) as pool:
        engine = create_async_engine(pool, pool_pre_ping=True)
        async with engine.connect() as conn:
            first = await conn.scalar(sa.text("SELECT pg_backend_pid()"))
        await asyncio.to_thread(on_server.query, f"SELECT pg_terminate_backend({first})")
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("SELECT pg_backend_pid()")) != first


async def test_a_checkout_that_asked_the_server_nothing_at_its_end_is_no_sign_of_life(
    on_server: Database,
) -> None:
    """In autocommit nothing is sent there: what was cut meanwhile is not handed out unasked."""
    address = urlsplit(on_server.url)
    with Proxy(str(address.hostname), address.port or 0) as proxy:
        behind = on_server._replace(url=proxy.through(on_server.url))
        limits: dict[str, float] = {"ping_after": 0.01, "ping_timeout": 0.1, "reset_timeout": 0.1}
        async with opened(behind, max_size=1, **limits) as pool:
            engine = create_async_engine(pool, isolation_level="AUTOCOMMIT")
            async with engine.connect() as conn:
                await conn.scalar(COUNT)
                await asyncio.to_thread(proxy.hole_old)
                await asyncio.sleep(0.02)
            async with asyncio.timeout(PATIENCE), engine.connect() as conn:
                assert await conn.scalar(COUNT) == 0


async def test_one_dead_connection_has_the_others_pinged(
    on_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SQLAlchemy would replace them all, poolkit looks which of them are alive."""
    pinged = []
    driver: Any = type(on_server.module.from_url(on_server.url))
    ping = driver.ping

    async def noted(self: Any, c: Any) -> None:
        pinged.append(self.server_pid(c))
        await ping(self, c)

    monkeypatch.setattr(driver, "ping", noted)
    async with opened(on_server, max_size=2, min_size=2, ping_after=None, ping_every=None) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as one, engine.connect() as two:
            pids = [await c.scalar(sa.text("SELECT pg_backend_pid()")) for c in (one, two)]
        async with engine.connect() as conn:
            dying = await conn.scalar(sa.text("SELECT pg_backend_pid()"))
            await terminate(on_server, dying)
            with pytest.raises(sa.exc.DBAPIError) as caught:
                await conn.execute(sa.text("SELECT 1"))
            assert caught.value.connection_invalidated
        (other,) = {*pids} - {dying}
        await at_rest(pool)
        async with engine.connect() as one, engine.connect() as two:
            now = {await c.scalar(sa.text("SELECT pg_backend_pid()")) for c in (one, two)}
        assert other in now
        assert dying not in now
        assert pinged == [other]
