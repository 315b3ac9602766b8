"""Send requests to the example from 50 clients at once, and say how that went.

``python examples/hammer.py [http://127.0.0.1:8000] [--clients 50] [--requests 40]``

Each client sends its requests one after the other on one keep-alive connection. Needs nothing but
Python. Exits with 1 if any request has failed, or if money was made or lost.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit


class Client:
    """A keep-alive connection that knows enough of HTTP/1.1 for the example."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer's JSON; raise for any status but 200 and 201."""
        sent = b"" if body is None else json.dumps(body).encode()
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: example\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(sent)}\r\n\r\n".encode()
            + sent
        )
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        text = await self.reader.readexactly(int(headers["content-length"]))
        if head[0].split()[1] not in ("200", "201"):
            raise RuntimeError(f"{head[0]}: {text.decode()}")
        return json.loads(text)


Request = tuple[str, str, Any]


def move(n: int) -> dict[str, int]:
    """Return the n-th transfer: every other one takes back what the one before has moved."""
    source, target = (1, 2) if n % 2 else (2, 1)
    return {"source": source, "target": target, "amount": 1}


ROUTES: dict[str, Callable[[int], Request]] = {
    "GET  /items": lambda _: ("GET", "/items", None),
    "GET  /unpooled/items": lambda _: ("GET", "/unpooled/items", None),
    "POST /items": lambda n: ("POST", "/items", {"name": f"item {n}"}),
    "POST /transfer": lambda n: ("POST", "/transfer", move(n)),
}


async def hammer(clients: list[Client], requests: int, route: str) -> bool:
    """Send requests from all clients at once, print a row of the table, tell if all went well."""
    seconds: list[float] = []
    failures: list[Exception] = []

    async def send(client: Client) -> None:
        for n in range(requests):
            start = time.perf_counter()
            try:
                await client.request(*ROUTES[route](n))
            except (OSError, EOFError, RuntimeError) as error:
                failures.append(error)
            seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*map(send, clients))
    rate = len(seconds) / (time.perf_counter() - start)
    seconds.sort()
    p50, p99 = (seconds[int(len(seconds) * part)] * 1000 for part in (0.5, 0.99))
    row = f"{route:22} {rate:>12,.0f} {len(failures):>9} {p50:>10.1f} {p99:>10.1f}"
    print(row, failures[0] if failures else "", flush=True)
    return not failures


async def main() -> int:
    """Hammer each route in turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=40, help="of each client, for each route")
    given = parser.parse_args()
    address = urlsplit(given.url)
    try:
        clients = [
            Client(*await asyncio.open_connection(address.hostname, address.port or 80))
            for _ in range(given.clients)
        ]
    except OSError as error:
        print(f"nobody answers at {given.url} ({error}): start the example with `make demo`")
        return 1
    first = clients[0]

    async def money() -> int:
        return sum(account["balance"] for account in await first.request("GET", "/accounts"))

    before = await money()
    print(f"{given.clients} clients at once, {given.requests} requests each")
    print(f"{'':22} {'requests/s':>12} {'failures':>9} {'p50 ms':>10} {'p99 ms':>10}")
    fine = [await hammer(clients, given.requests, route) for route in ROUTES]
    after, stats = await money(), await first.request("GET", "/pool")
    print(f"money in all accounts: {before} before, {after} after")
    print(
        f"connections opened: {stats['connected']} by the pool since its start, "
        f"{given.clients * given.requests} without it just now"
    )
    return 0 if all(fine) and before == after else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
