"""Serve the example application, and say what to try once it answers: `make demo`."""

from __future__ import annotations

import signal

# Until there is something to stop, Ctrl-C just ends this: already while the rest is imported.
signal.signal(signal.SIGINT, signal.SIG_DFL)

# ruff: noqa: E402
import asyncio
import importlib
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

import poolkit

# Without one uvicorn's log cannot be set up; and no name of a file is worth a traceback.
sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
sys.stderr = sys.stderr or sys.stdout
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

if TYPE_CHECKING:
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
TRY = """
http://{address} shows in ten seconds what a pool is for. Its database is {database}.
Ctrl-C ends it. Or try, in another terminal:

  curl http://{address}/items
  curl http://{address}/items -H 'content-type: application/json' -d '{{"name": "spade"}}'
  curl http://{address}/accounts
  curl http://{address}/transfer -H 'content-type: application/json' \\
       -d '{{"source": 1, "target": 2, "amount": 10}}'
  curl http://{address}/pool

  {python} examples/hammer.py http://{address}     50 clients at once, pooled and not

and in a browser http://{address}/poolkit, the pool's live page, or http://{address}/docs.
"""


class Server(uvicorn.Server):
    """A server that says what to try as soon as it listens."""

    def __init__(self, config: uvicorn.Config, example: Any) -> None:
        super().__init__(config)
        self.example = example
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then speak."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and sockets:
            address = "{}:{}".format(*sockets[0].getsockname())
            python = Path(sys.executable)
            shown = python.relative_to(ROOT) if python.is_relative_to(ROOT) else python
            say(TRY.format(address=address, database=self.example.pool.name, python=shown))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, the running load too; asked twice, stop at once, without a word of what it cuts."""
        if self.should_exit:
            logging.disable()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # asked a third time, this just ends
        elif self.loop is not None:
            self.loop.call_soon_threadsafe(self.example.loads.stop)
        super().handle_exit(sig, frame)


def say(words: str) -> None:
    """Print, whether anybody reads it or not: `make demo | head -1` serves as well."""
    try:
        print(words, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the end of Python would tell of it


def interrupt(*_: object) -> None:
    """End the demo; if that takes long, the next Ctrl-C just ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def load() -> Any:
    """Return the application's module, its database being there; else exit with one sentence."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    try:
        example = importlib.import_module("examples.app")
    except (poolkit.PoolError, OSError) as error:  # others are no matter of the database
        raise unusable(error) from None
    try:
        asyncio.run(prepare(example))
    except Exception as error:
        raise unusable(error, f" ({example.pool.name})") from None
    return example


async def prepare(example: Any) -> None:
    """See to the tables, by a pool that waits less long for a server than the application's."""
    async with (
        poolkit.create_pool(
            example.DATABASE_URL, max_size=1, acquire_timeout=5.0, connect_timeout=4.0
        ) as pool,
        pool.acquire() as db,
    ):
        await example.shop.create_tables(db)


def unusable(error: BaseException, name: str = "") -> SystemExit:
    """Return the end of the demo for want of a database."""
    if isinstance(error, poolkit.PoolUnavailable):
        error = error.__cause__ or error
    words = " ".join(str(error).split())
    if not isinstance(error, poolkit.PoolError):
        words = f"{type(error).__name__}: {words}"
    what = "DATABASE_URL names no database to use"
    if not os.environ.get("DATABASE_URL"):
        what = "There is no DATABASE_URL, and var/example.db cannot be used"
    return SystemExit(f"{what}: {words}{name}")


def main() -> int:
    """Bind, serve until a signal, and end whole."""
    port = sys.argv[1] if len(sys.argv) > 1 else "8000"
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, int(port)))
    except (ValueError, OverflowError):
        say(f"A port is a number up to 65535, not {port}: choose one, PORT=8001 make demo")
        return 1
    except OSError as error:
        say(f"Port {port} cannot be had ({error.strerror}): choose another, PORT=8001 make demo")
        return 1
    example = load()
    config = uvicorn.Config(
        example.app,
        lifespan="on",
        log_level="warning",
        timeout_graceful_shutdown=3,
    )
    server = Server(config, example)
    signal.signal(signal.SIGINT, interrupt)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        say("\nStopped.")
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
