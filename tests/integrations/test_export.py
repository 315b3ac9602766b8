"""``examples/export.py``: a table of any size is streamed in the same memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.postgres import Postgres

EXAMPLES = Path(__file__).parents[2] / "examples"
#: More than the noise of an event loop, and a tenth of what the rows take.
ROOM = 2_000_000

#: Asks the example, without a server, for few rows and then for many; prints what it took.
MEASURE = """
import asyncio, json, sys, tracemalloc
import asyncpg, export

FILL = "INSERT INTO line (text) SELECT repeat('x', 200) FROM generate_series(1, $1)"

async def get(app):
    got, rows = 0, 0

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        nonlocal got, rows
        if message["type"] == "http.response.body":
            got += len(message["body"])
            rows += message["body"].count(b"\\n")
        else:
            assert message["status"] == 200
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "GET", "path": "/export", "headers": [], "query_string": b""}
    tracemalloc.start()
    await app({**scope, "app": app}, receive, send)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"rows": rows, "bytes": got, "peak": peak}

async def main():
    app, found = export.make_app(), []
    async with app.router.lifespan_context(app):
        db = await asyncpg.connect(sys.argv[1])
        await db.execute("CREATE TABLE line (id bigint GENERATED ALWAYS AS IDENTITY, text text)")
        await db.execute(FILL, 1_000)
        await get(app)  # imports, and caches that are filled once
        found.append(await get(app))
        await db.execute(FILL, 99_000)
        found.append(await get(app))
        await db.close()
    print(json.dumps(found))

asyncio.run(main())
"""


def test_hundred_thousand_rows_take_no_more_memory_than_a_thousand(postgres: Postgres) -> None:
    """The cursor gives them 500 at a time, and nothing keeps them."""
    name = postgres.create_database()
    url = postgres.dsn(name)
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *filter(None, sys.path)]),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, url],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        postgres.drop_database(name)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)
    assert (few["rows"], many["rows"]) == (1_000, 100_000)
    assert many["bytes"] > 20_000_000
    assert many["peak"] < few["peak"] + ROOM, (few, many)
