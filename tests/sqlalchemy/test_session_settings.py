"""Settings and a role in each transaction of a session, by SQLAlchemy's own event."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

from typing import Annotated, Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI, Header
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as sqlalchemys

import poolkit
from poolkit import PoolConfigError
from poolkit.fastapi import session_with
from poolkit.sqlalchemy import create_async_engine, session_dependency
from poolkit.sqlalchemy._local import set_in_each_transaction
from tests.integrations.live import serve
from tests.sqlalchemy.conftest import Database, opened

TENANT = sa.text("SELECT current_setting('app.tenant', true), current_user::text")
INSERT = sa.text("INSERT INTO t VALUES (1)")


async def tenant(tenant: Annotated[str, Header()] = "42") -> dict[str, str]:
    """Depend on the request."""
    return {"app.tenant": tenant, "app.other": "it's \\ and $1 :name ☃"}


async def seen(session: AsyncSession) -> list[Any]:
    """Return tenant and role."""
    return list((await session.execute(TENANT)).one())


@pytest.mark.parametrize("kind", ["of the pool", "of a maker"])
async def test_each_transaction_of_a_session_has_the_settings(
    on_postgresql: Database, kind: str
) -> None:
    """Also the one after a commit, or a rollback; a savepoint has them, and nobody else."""
    async with opened(on_postgresql, max_size=1) as pool:
        made: Any = session_with(settings=tenant, role="pg_monitor")
        if kind == "of a maker":
            maker = async_sessionmaker(create_async_engine(pool), expire_on_commit=False)
            made = session_dependency(maker, settings=tenant, role="pg_monitor")
        app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

        @app.get("/")
        async def ask(session: Annotated[AsyncSession, Depends(made)]) -> list[Any]:
            found = [await seen(session)]
            await session.commit()
            found.append(await seen(session))
            await session.rollback()
            async with session.begin_nested():
                found.append(await seen(session))
            found.append(await seen(session))
            other = await session.execute(sa.text("SELECT current_setting('app.other')"))
            assert other.scalar_one() == "it's \\ and $1 :name ☃"
            return found

        @app.get("/plain")
        async def plain(session: poolkit.fastapi.Session) -> list[Any]:
            return await seen(session)

        async with serve(app) as client:
            for _ in range(2):
                assert (await client.get("/")).json == [["42", "pg_monitor"]] * 4
                value, role = (await client.get("/plain")).json
                assert not value
                assert role != "pg_monitor"


async def test_settings_do_not_make_a_transaction_where_there_is_none(
    on_postgresql: Database,
) -> None:
    """A session that does nothing takes no connection; and what fails rolls back."""
    async with opened(on_postgresql) as pool:
        app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
        Tenant = Annotated[AsyncSession, Depends(session_with(settings={"app.tenant": "1"}))]  # noqa: N806

        @app.get("/idle")
        async def idle(session: Tenant) -> int:
            return pool.stats().leased

        @app.get("/fails")
        async def fails(session: Tenant) -> None:
            await session.execute(INSERT)
            raise ValueError

        async with serve(app) as client:
            assert (await client.get("/idle")).json == 0
            assert (await client.get("/fails")).status == 500
        assert on_postgresql.rows() == []


async def test_role_that_there_is_not_is_an_error_of_the_first_statement(
    on_postgresql: Database,
) -> None:
    """It says no values, and costs no connection; the next session is as it should be."""
    async with opened(on_postgresql, max_size=1) as pool:
        app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

        async def role(role: Annotated[str, Header()]) -> str:
            return role

        made = session_with(settings=tenant, role=role)

        @app.get("/")
        async def ask(session: Annotated[AsyncSession, Depends(made)]) -> list[Any]:
            try:
                return await seen(session)
            except sa.exc.DBAPIError as error:
                await session.rollback()
                return ["does not exist" in str(error) and "$1 :name" not in str(error)]

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            app.dependency_overrides[poolkit.fastapi.pool] = lambda: pool
            for name, found in (("nobody_here", [True]), ("pg_monitor", ["42", "pg_monitor"])):
                assert (await client.get("/", headers={"role": name})).json() == found
        assert pool.stats().connected == 1


def test_same_settings_are_the_same_dependency() -> None:
    """As those of `transaction_with`; without any, it is `session`."""
    assert session_with() is poolkit.fastapi.session
    assert session_with(settings=tenant) is session_with(settings=tenant)
    assert session_with(settings={"app.a": 1}) is not session_with(settings={"app.a": True})
    with pytest.raises(PoolConfigError, match="cannot be the name"):
        session_with(settings={"a b": "1"})


async def test_database_without_settings_is_named(on_sqlite: Database) -> None:
    """When a transaction begins, and not by showing everybody everything."""
    async with opened(on_sqlite) as pool:
        await refused(pool, session_with(settings={"app.tenant": "1"}), "'sqlite': its trans")


async def test_session_in_autocommit_is_refused(on_postgresql: Database) -> None:
    """There the role would end with the statement that sets it."""
    async with opened(on_postgresql) as pool:
        engine = create_async_engine(pool).execution_options(isolation_level="AUTOCOMMIT")
        maker = async_sessionmaker(engine, expire_on_commit=False)
        made = session_dependency(maker, role="pg_monitor")
        await refused(pool, made, "is in AUTOCOMMIT")


async def refused(pool: poolkit.Pool[Any], session: Any, said: str) -> None:
    """Have a request fail with its first statement."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    errors: list[BaseException] = []

    @app.get("/")
    async def ask(session: Annotated[AsyncSession, Depends(session)]) -> None:
        try:
            await session.execute(sa.text("SELECT 1"))
        except PoolConfigError as error:
            errors.append(error)
            raise

    async with serve(app) as client:
        assert (await client.get("/")).status == 500
    (error,) = errors
    assert said in str(error)


@pytest.mark.parametrize("how", ["autocommit", "encoding"])
async def test_session_without_its_settings_does_nothing(on_psycopg: Database, how: str) -> None:
    """If they could not be set, and the error is caught, what follows fails as well."""
    options: Any = {"isolation_level": "AUTOCOMMIT"} if how == "autocommit" else {}
    given = "in Latin-1 there is no ☃"

    async with opened(on_psycopg, connect_kwargs={"client_encoding": "latin1"}) as pool:
        engine = create_async_engine(pool).execution_options(**options)
        async with async_sessionmaker(engine)() as session:
            set_in_each_transaction(session, settings={"app.tenant": given})
            for _ in range(2):
                with pytest.raises((PoolConfigError, UnicodeEncodeError)):
                    await session.execute(INSERT)
                for _ in range(2):
                    with pytest.raises(sa.exc.PendingRollbackError):
                        await session.execute(INSERT)
                await session.rollback()
    assert on_psycopg.rows() == []


async def test_engine_of_anybodys_has_settings_as_well(on_postgresql: Database) -> None:
    """The event is SQLAlchemy's, and knows nothing of poolkit."""
    url = on_postgresql.url.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemys(url)
    maker = async_sessionmaker(engine, expire_on_commit=False)
    app = FastAPI()
    made = session_dependency(maker, settings=tenant, role="pg_monitor")

    @app.get("/")
    async def ask(session: Annotated[AsyncSession, Depends(made)]) -> list[Any]:
        found = await seen(session)
        await session.commit()
        return found + await seen(session)

    try:
        async with serve(app) as client:
            assert (await client.get("/")).json == ["42", "pg_monitor"] * 2
    finally:
        await engine.dispose()
