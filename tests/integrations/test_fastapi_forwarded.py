"""An endpoint sends requests on to an application, in its own: each has a lease of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import aiosqlite
import anyio
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request

import poolkit.fastapi
from tests.integrations.live import SQLitePool, nothing_is_lost, serve

Tx = poolkit.fastapi.Transaction[aiosqlite.Connection]
Pool = Annotated[Any, Depends(poolkit.fastapi.pool)]


@pytest.fixture
def batch(app: FastAPI) -> FastAPI:
    """Let the application have requests in one: by a copy of the scope, or the scope itself."""

    async def forward(request: Request, scope: Any, name: str) -> int:
        path = f"/items/{name}"
        scope.update(path=path, raw_path=path.encode(), query_string=b"")
        statuses: list[int] = []

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        await app(scope, request.receive, send)
        return statuses[0]

    @app.get("/items/{name}")
    async def add(name: str, conn: Tx) -> None:
        assert conn.in_transaction
        await conn.execute("INSERT INTO items (name) VALUES (?)", (name,))
        if name == "bad":
            raise HTTPException(400)

    @app.get("/copies")
    async def copies(request: Request, _: Pool) -> list[int]:
        return [await forward(request, {**request.scope}, name) for name in ("a", "bad", "b")]

    @app.get("/itself")
    async def itself(request: Request, _: Pool) -> list[int]:
        return [await forward(request, request.scope, name) for name in ("a", "bad", "b")]

    @app.get("/at-once")
    async def at_once(request: Request, _: Pool) -> list[int]:
        found = dict.fromkeys(("a", "bad", "b"), 0)

        async def one(name: str) -> None:
            found[name] = await forward(request, {**request.scope}, name)

        async with anyio.create_task_group() as group:
            for name in found:
                group.start_soon(one, name)
        return [*found.values()]

    return app


@pytest.mark.parametrize("path", ["/copies", "/itself", "/at-once"])
async def test_request_in_another_one_has_its_own_transaction(
    batch: FastAPI, pool: SQLitePool, outside: Callable[[str], list[Any]], path: str
) -> None:
    """It would be none at all after the first one had ended."""
    async with serve(batch) as client:
        assert (await client.get(path)).json == [200, 400, 200]
        assert outside("SELECT name FROM items ORDER BY name") == [("a",), ("b",)]
        await nothing_is_lost(pool)
