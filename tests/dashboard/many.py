"""An application for several processes: `uvicorn --workers 4 tests.dashboard.many:app`.

``MANY`` is a folder: ``MANY/snapshots`` is the processes' own, and what is held is held until there
is a file ``MANY/go``.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI

import poolkit.fastapi
from poolkit import Pool
from poolkit.testing import FakeDriver

N = 3
FOLDER = Path(os.environ["MANY"])
pool: Pool[Any] = Pool(FakeDriver(), min_size=1, max_size=N, name="shop")
app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
app.include_router(
    poolkit.fastapi.router(
        metrics=True, dashboard=True, public=True, workers_folder=FOLDER / "snapshots"
    )
)
tasks: set[asyncio.Task[None]] = set()


@app.post("/count")
async def count(db: Annotated[Any, Depends(poolkit.fastapi.connection)]) -> int:
    """Have a connection, and return whose it was."""
    return os.getpid()


@app.post("/hold")
async def hold() -> int:
    """Hold a connection, and return whose it is."""
    held = asyncio.Event()

    async def hold_it() -> None:
        async with pool.acquire(label="nightly import"):
            held.set()
            while not (FOLDER / "go").exists():  # noqa: ASYNC110  # another process's
                await asyncio.sleep(0.05)

    task = asyncio.create_task(hold_it())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    await held.wait()
    return os.getpid()
