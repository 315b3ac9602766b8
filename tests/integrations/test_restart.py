"""A rolling restart: on SIGTERM a real uvicorn finishes what it has begun, and closes its pool."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from subprocess import PIPE
from typing import TYPE_CHECKING

import asyncpg
import httpx
import pytest

from tests.proxy import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import Postgres

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to catch"),
    pytest.mark.parametrize(
        "anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")], indirect=True
    ),
]

SHOP = """
    import asyncio, os
    import fastapi
    import poolkit

    pool = poolkit.create_pool(os.environ["SHOP"], max_size=3, name="shop", acquire_timeout=100)
    app = fastapi.FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/slow")
    async def slow(conn: poolkit.fastapi.Connection, tasks: fastapi.BackgroundTasks) -> int:
        tasks.add_task(afterwards)
        return await conn.fetchval("SELECT 1 FROM pg_advisory_xact_lock_shared(1)")

    @app.get("/numbers")
    async def numbers() -> tuple[int, int]:
        return pool.stats().leased, pool.stats().waiting

    async def afterwards() -> None:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO done VALUES (1)")
"""


@contextlib.contextmanager
def serving(folder: Path, dsn: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the shop in a process of its own, on a socket that exists already."""
    (folder / "shop.py").write_text(textwrap.dedent(SHOP))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        command = [sys.executable, "-m", "uvicorn", "shop:app", "--fd", str(listener.fileno())]
        process = subprocess.Popen(
            [*command, "--timeout-graceful-shutdown", "100"],
            cwd=folder,
            env={**os.environ, "SHOP": dsn},
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        port = listener.getsockname()[1]
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


PLAIN = """
    import asyncio, sys
    import fastapi, uvicorn

    app = fastapi.FastAPI()

    @app.get("/")
    async def wait() -> str:
        print("begun", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        return "done"

    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


async def test_sigterm_has_new_clients_refused_while_open_requests_are_finished(
    tmp_path: Path,
) -> None:
    """So whatever sends them has to know before: `docs/howto/operate.md` has a pause for that."""
    (tmp_path / "plain.py").write_text(textwrap.dedent(PLAIN))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "plain.py", str(port)), cwd=tmp_path, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(100), httpx.AsyncClient(timeout=100) as client:
            while not await is_listening(port):  # noqa: ASYNC110  # it is another process's
                await asyncio.sleep(0.01)
            request = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/"))
            assert await process.stdout.readline() == b"begun\n"
            process.send_signal(signal.SIGTERM)
            while await is_listening(port):  # noqa: ASYNC110  # it is another process's
                await asyncio.sleep(0.01)
            assert not request.done()
            process.stdin.write(b"\n")
            assert (await request).json() == "done"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def is_listening(port: int) -> bool:
    """Connect, and hang up."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def until(outside: asyncpg.Connection, query: str, wanted: int) -> None:
    """Ask the server until it gives the answer."""
    async with asyncio.timeout(100):
        while await outside.fetchval(query) != wanted:  # noqa: ASYNC110  # it is another process's
            await asyncio.sleep(0.01)


def read_until(process: subprocess.Popen[str], word: str | None = None) -> str:
    """Return what a process says until it has said this, or all that it says to its end."""
    said = ""
    for line in process.stderr or ():
        said += line
        if word is not None and word in line:
            return said
    assert word is None, said
    return said


async def test_sigterm_lets_requests_and_background_tasks_finish(
    tmp_path: Path, postgres: Postgres
) -> None:
    """Those that wait for a connection, too; then the server knows of no connection any more."""
    name = postgres.create_database()
    dsn = postgres.dsn(name)
    outside = await asyncpg.connect(dsn)
    try:
        await outside.execute("CREATE TABLE done (x int)")
        with serving(tmp_path, dsn) as (process, url):
            async with httpx.AsyncClient(base_url=url, timeout=100) as client:
                assert (await client.get("/slow")).json() == 1
                await outside.execute("SELECT pg_advisory_lock(1)")
                requests = [asyncio.create_task(client.get("/slow")) for _ in range(9)]
                while (await client.get("/numbers")).json() != [3, 6]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                log = await asyncio.to_thread(read_until, process, "Shutting down")
                assert not any(request.done() for request in requests)
                await outside.execute("SELECT pg_advisory_unlock(1)")
                answers = [(await request).status_code for request in requests]
            log += await asyncio.to_thread(read_until, process)
            await asyncio.to_thread(process.wait)
        assert answers == [200] * 9
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in log
        assert "Application shutdown complete" in log
        assert await outside.fetchval("SELECT count(*) FROM done") == 10
        mine = "datname = current_database() AND pid <> pg_backend_pid()"
        await until(outside, f"SELECT count(*) FROM pg_stat_activity WHERE {mine}", 0)
    finally:
        await outside.close()
        postgres.drop_database(name)
