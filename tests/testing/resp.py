"""A server that speaks Redis's protocol: one that is installed, or a few commands of one, here.

``sh scripts/test-tools.sh redis-server`` installs one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from typing import TYPE_CHECKING

from tests.proxy import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: What is started, where there is one.
PROGRAMS = ("redis-server", "valkey-server")


@contextlib.asynccontextmanager
async def redis_server() -> AsyncIterator[int]:
    """Run a server; what is given is its port."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        async with SmallServer().running() as port:
            yield port
        return
    port = free_port()
    arguments = ("--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(HOST, port)
                    writer.close()
                    break
                await asyncio.sleep(0.01)
        yield port
    finally:
        process.terminate()
        await process.wait()


class SmallServer:
    """Knows the commands that the test needs, of version 2 of the protocol."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Listen on a port, which is given."""
        server = await asyncio.start_server(self._serve, HOST, 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, database = next(self._ids), 0
        self._writers[number] = writer
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while command := await self._read(reader):
                name, *args = command
                if name in ("PING", "RESET"):
                    answer = "+PONG" if name == "PING" else "+RESET"
                    database = database if name == "PING" else 0
                elif name == "SELECT":
                    database, answer = int(args[0]), "+OK"
                elif name == "BLPOP":
                    if not await self._hangs_up(reader):
                        continue
                    return
                elif name == "CLIENT":
                    answer = self._client(number, database, *args)
                else:
                    answer = f"-ERR unknown command '{name}'"
                writer.write(answer.encode() + b"\r\n")
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            del self._writers[number]
            self._tasks.discard(task)
            writer.close()

    @staticmethod
    async def _hangs_up(reader: asyncio.StreamReader) -> bool:
        return await reader.read(1) == b""

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> list[str]:
        line = await reader.readline()
        command = []
        for _ in range(int(line[1:] or 0)):
            size = int((await reader.readline())[1:])
            command.append((await reader.readexactly(size + 2))[:-2].decode())
        return [command[0].upper(), *command[1:]] if command else []

    def _client(self, number: int, database: int, what: str, *args: str) -> str:
        if what == "ID":
            return f":{number}"
        if what == "KILL":
            if (writer := self._writers.get(int(args[1]))) is not None:
                writer.transport.abort()
            return ":1"
        if what in ("INFO", "LIST"):
            shown = [number] if what == "INFO" else list(self._writers)
            text = "\n".join(f"id={one} db={database}" for one in shown)
            return f"${len(text)}\r\n{text}"
        return "+OK"
