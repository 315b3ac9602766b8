"""A small load generator for HTTP/1.1: so many connections, each asking again once it is answered.

It counts and times, and parses no more of an answer than it must. In a process of its own, so that
it takes nothing from the server but processor: ``python -m benchmarks.load PORT PATH CONNECTIONS
SECONDS`` prints requests, failures, seconds, and percentiles in milliseconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from benchmarks.rounds import percentile

HOST = "127.0.0.1"


class Client(asyncio.Protocol):
    """One connection that asks again and again."""

    def __init__(self, request: bytes, end: float) -> None:
        self.request = request
        self.end = end
        self.took: list[float] = []
        self.failed = 0
        self.done = asyncio.get_running_loop().create_future()
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._begin = time.perf_counter()
        self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Take note of the answer once it is whole; ask again."""
        self._seen += data
        head, separator, body = self._seen.partition(b"\r\n\r\n")
        if not separator:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.took.append(now - self._begin)
        self.failed += b" 200 " not in head[:16]
        self._seen = b""
        if now < self.end:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        """Stop."""
        if not self.done.done():
            self.done.set_result(None)


async def main(port: int, path: str, connections: int, seconds: float) -> None:
    """Put that load on a server and print what came of it."""
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    begin = time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: Client(request, begin + seconds), HOST, port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    took = [each for client in clients for each in client.took]
    said = {
        "rate": len(took) / (time.perf_counter() - begin),
        "failed": sum(client.failed for client in clients),
        "p50": 1000 * percentile(took, 50),
        "p99": 1000 * percentile(took, 99),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
