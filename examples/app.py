"""A small shop on SQLite or PostgreSQL: items to list and add, accounts to move money between.

Start it with ``make demo``, or ``uvicorn examples.app:app``. Then try::

    curl localhost:8000/items
    curl localhost:8000/items    -H 'content-type: application/json' -d '{"name": "spade"}'
    curl localhost:8000/accounts
    curl localhost:8000/transfer -H 'content-type: application/json' \
         -d '{"source": 1, "target": 2, "amount": 10}'     # and then 10000, or target 9
    curl localhost:8000/pool
    curl localhost:8000/readyz

    python examples/hammer.py       # 50 clients at once: five connections are enough

and in a browser http://localhost:8000/, which shows in ten seconds what a pool is for, beside the
pool's live page, http://localhost:8000/poolkit.

``DATABASE_URL`` says where the data is, ``postgresql://user:password@host/database`` for example.
By default that is ``var/example.db``, a SQLite file: no server is needed.
"""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

import poolkit
from examples import loads
from examples.database import DATABASE_URL, shop
from poolkit.dashboard import ServerTiming
from poolkit.fastapi import Connection, Lazy, Transaction

pool = poolkit.create_pool(DATABASE_URL, max_size=5)

# What an endpoint asks for: a connection; one in a transaction that commits when it returns; or one
# that is acquired when it is first needed, so that an order that makes no sense costs none.
Db = Connection[shop.Connection]
DbTransaction = Transaction[shop.Connection]
LazyDb = Lazy[shop.Connection]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the pool and see to the tables; close the pool at the end."""
    async with poolkit.fastapi.lifespan(pool)(app) as state:
        async with pool.acquire() as db:
            await shop.create_tables(db)
        yield state


app = FastAPI(title="poolkit's example", lifespan=lifespan)
app.add_middleware(ServerTiming)
# Everybody may look, as this is an example: elsewhere give it dependencies=[Depends(an_admin)].
app.include_router(poolkit.fastapi.router(health=True, dashboard=True, public=True))
app.include_router(loads.router)  # what the page at / measures

Number = Annotated[int, Field(gt=0, lt=2**31)]


class NewItem(BaseModel):
    """An item to be added."""

    name: str


class Transfer(BaseModel):
    """An order to move money."""

    source: Number
    target: Number
    amount: Number


HERE = Path(__file__).parent


@app.get("/", include_in_schema=False)
async def show_page() -> FileResponse:
    """Return the page that shows what a pool is for."""
    return FileResponse(HERE / "page.html")


@app.get("/page.js", include_in_schema=False)
async def show_script() -> FileResponse:
    """Return what the page does."""
    return FileResponse(HERE / "page.js", media_type="text/javascript")


@app.get("/performance.md", include_in_schema=False)
async def show_tables() -> FileResponse:
    """Return the tables that the page names."""
    return FileResponse(loads.TABLES, media_type="text/plain; charset=utf-8")


@app.get("/items")
async def list_items(db: Db) -> list[dict[str, Any]]:
    """Return the latest items."""
    return await shop.list_items(db)


@app.get("/unpooled/items")
async def list_items_unpooled() -> list[dict[str, Any]]:
    """Return the same by a connection for this request only: cheap with SQLite, not elsewhere."""
    async with shop.connect(DATABASE_URL) as db:
        return await shop.list_items(db)


@app.post("/items", status_code=201)
async def add_item(item: NewItem, db: LazyDb) -> dict[str, Any]:
    """Add an item: a single statement needs no transaction."""
    async with db as conn:
        return await shop.add_item(conn, item.name)


@app.get("/accounts")
async def list_accounts(db: Db) -> list[dict[str, Any]]:
    """Return all accounts."""
    return await shop.list_accounts(db)


@app.post("/transfer")
async def transfer(order: Transfer, db: DbTransaction) -> list[dict[str, Any]]:
    """Move money: all of it or nothing, for an exception undoes what was done before it."""
    changes = (order.source, -order.amount), (order.target, order.amount)
    # Everybody takes the accounts in the same order, or two could wait for each other for ever.
    for account, change in sorted(changes):
        balance = await shop.change_balance(db, account, change)
        if balance is None:
            raise HTTPException(404, f"there is no account {account}")
        if balance < 0:
            raise HTTPException(409, "insufficient funds")
    return await shop.list_accounts(db)


@app.get("/pool")
async def show_pool(
    pool: Annotated[poolkit.Pool[Any], Depends(poolkit.fastapi.pool)],
) -> dict[str, Any]:
    """Return what the pool tells of itself; this takes no connection."""
    stats = pool.stats()
    return {"size": stats.size, **dataclasses.asdict(stats)}
