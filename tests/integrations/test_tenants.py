"""``examples/tenants.py``: two tenants, one table, row-level security on a real PostgreSQL."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

import poolkit.fastapi
from tests.postgres import Postgres

EXAMPLES = Path(__file__).parents[2] / "examples"
REQUESTS = 200


@pytest.fixture
def tenants(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the example."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module("tenants")
    del sys.modules["tenants"]


@pytest.fixture
def url(postgres: Postgres, tenants: Any) -> Iterator[str]:
    """Return a database with the example's table and roles, for its login, which owns nothing."""
    name = postgres.create_database()
    for role in ("web", "app"):
        postgres.query(f"DROP ROLE IF EXISTS {role}")
        postgres.query(f"CREATE ROLE {role} {'LOGIN' if role == 'app' else 'NOLOGIN'}")
    for statement in tenants.TABLES.split(";\n"):
        if statement.strip():
            postgres.query(statement, database=name)
    yield postgres.dsn(name, user="app")
    postgres.drop_database(name)
    for role in ("app", "web"):
        postgres.query(f"DROP ROLE {role}")


def add_endpoints(app: FastAPI, TenantDb: Any) -> dict[int, asyncio.Event]:  # noqa: N803
    """Add some that fail, and some that wait to be cancelled; return what tells that they wait."""
    slow = {n: asyncio.Event() for n in range(REQUESTS)}

    @app.post("/fails")
    async def fail(text: str, db: TenantDb) -> None:
        await db.execute("INSERT INTO note (text) VALUES ($1)", text)
        await db.execute("SELECT 1 / 0")

    @app.post("/slow/{n}")
    async def wait(n: int, text: str, db: TenantDb) -> None:
        await db.execute("INSERT INTO note (text) VALUES ($1)", text)
        slow[n].set()
        await db.execute("SELECT pg_sleep(600)")

    @app.get("/bare")
    async def bare(db: poolkit.fastapi.Connection[asyncpg.Connection]) -> list[Any]:
        return [tuple(row) for row in await db.fetch("SELECT tenant, text FROM note")]

    return slow


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_nobody_reads_anothers_row(
    postgres: Postgres, tenants: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 requests at once: some write, some read, some fail, some are cancelled in mid-query."""
    monkeypatch.setenv("DATABASE_URL", url)
    app = tenants.make_app()
    slow = add_endpoints(app, tenants.TenantDb)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)
    written: dict[str, set[str]] = {"ada": set(), "grace": set()}

    async def one(n: int) -> None:
        tenant = ("ada", "grace")[n % 2]
        headers, params = {"api-key": f"key-of-{tenant}"}, {"text": f"{tenant} {n}"}
        match n // 2 % 5:
            case 0 | 1:
                answer = await client.post("/notes", headers=headers, params=params)
                assert answer.status_code == 200
                written[tenant].add(params["text"])
            case 2:
                answer = await client.get("/notes", headers=headers)
                assert all(text.startswith(f"{tenant} ") for text in answer.json())
            case 3:
                answer = await client.post("/fails", headers=headers, params=params)
                assert answer.status_code == 500
            case 4:
                task = asyncio.create_task(
                    client.post(f"/slow/{n}", headers=headers, params=params)
                )
                await slow[n].wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        # And afterwards, on whichever connection: only one's own, and nothing without a role.
        answer = await client.get("/notes", headers=headers)
        assert all(text.startswith(f"{tenant} ") for text in answer.json())
        assert (await client.get("/bare")).status_code == 500

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(client)
        await stack.enter_async_context(app.router.lifespan_context(app))
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for n in range(REQUESTS):
                group.create_task(one(n))
        for tenant, texts in written.items():
            answer = await client.get("/notes", headers={"api-key": f"key-of-{tenant}"})
            assert set(answer.json()) == texts
            assert len(texts) == REQUESTS * 2 // 5 // 2
        assert (await client.get("/notes", headers={"api-key": "?"})).status_code == 401
        pool = app.state.poolkit
        assert pool.stats().leased == 0
        assert pool.stats().connected <= 10
