"""Tenants who share a table, and cannot read each other's rows: docs/howto/row-level-security.md.

DATABASE_URL=postgresql://app@db.example/shop uvicorn --factory tenants:make_app
"""

import os
from typing import Annotated

import asyncpg
from fastapi import Depends, FastAPI, Header, HTTPException

import poolkit

#: For the owner of the database to run, once. `app` is who the program logs in as.
TABLES = """
    CREATE TABLE note (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL DEFAULT current_setting('app.tenant') CHECK (tenant <> ''),
        text text NOT NULL
    );
    ALTER TABLE note ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own_rows ON note USING (tenant = current_setting('app.tenant'));
    GRANT SELECT, INSERT ON note TO web;
    ALTER ROLE app NOINHERIT;
    GRANT web TO app;
"""

#: In a real program a table, or a token that you verify.
TENANTS = {"key-of-ada": "ada", "key-of-grace": "grace"}


async def tenant(api_key: Annotated[str, Header()]) -> dict[str, str]:
    """Return what the policies ask for; nothing is acquired for a stranger."""
    if api_key not in TENANTS:
        raise HTTPException(401)
    return {"app.tenant": TENANTS[api_key]}


TenantDb = Annotated[
    asyncpg.Connection,
    Depends(poolkit.fastapi.transaction_with(settings=tenant, role="web")),
]


def make_app() -> FastAPI:
    """Return the application."""
    pool = poolkit.create_pool(os.environ["DATABASE_URL"], max_size=10, max_waiting=1000)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.post("/notes")
    async def write(text: str, db: TenantDb) -> None:
        await db.execute("INSERT INTO note (text) VALUES ($1)", text)

    @app.get("/notes")
    async def read(db: TenantDb) -> list[str]:
        # No WHERE: the policy is one.
        return [text for (text,) in await db.fetch("SELECT text FROM note ORDER BY id")]

    return app
