"""The example application, served by uvicorn in a process of its own: what `make demo` shows."""

import contextlib
import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no socket can be handed to a process on Windows"
)
ROOT = Path(__file__).parents[2]
CLIENTS = 50


class Example(NamedTuple):
    """A running example."""

    port: int
    database: Path

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request; return the status and the JSON of the answer."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(conn):
            headers = {"Content-Type": "application/json"}
            conn.request(method, path, None if body is None else json.dumps(body), headers)
            answer = conn.getresponse()
            return answer.status, json.loads(answer.read())

    def transfer(self, source: int, target: int, amount: int) -> tuple[int, Any]:
        """Order a transfer."""
        order = {"source": source, "target": target, "amount": amount}
        return self.request("POST", "/transfer", order)

    def balances(self) -> dict[int, int]:
        """Return what the file says that the accounts hold, by a connection of the test's own."""
        with contextlib.closing(sqlite3.connect(self.database)) as conn:
            return dict(conn.execute("SELECT id, balance FROM account"))


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    """Start the example; stop it, and see that it has ended whole."""
    database, log = tmp_path / "made on start" / "example.db", tmp_path / "log"
    # It is given a socket that listens already, so a client that is early waits in its queue.
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as output:
        command = ["uvicorn", "app:app", "--app-dir", "examples", "--fd", str(listener.fileno())]
        with subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "POOLKIT_EXAMPLE_DB": str(database)},
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=output,
        ) as server:
            try:
                example = Example(listener.getsockname()[1], database)
                assert example.request("GET", "/pool")[0] == 200, log.read_text()
                yield example
            finally:
                server.terminate()
    said = log.read_text()
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


def test_fifty_clients_on_five_connections_all_succeed(example: Example) -> None:
    """Nobody fails, every row is in the file, and no money is made or lost."""
    requests = 10
    before = example.balances()
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "examples" / "hammer.py")),
            *(f"http://127.0.0.1:{example.port}", "--clients", str(CLIENTS)),
            *("--requests", str(requests)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    with contextlib.closing(sqlite3.connect(example.database)) as conn:
        rows = conn.execute("SELECT name, count(*) FROM item GROUP BY name").fetchall()
    assert dict(rows) == {f"item {n}": CLIENTS for n in range(requests)}
    assert sum(example.balances().values()) == sum(before.values()) == 3000
    status, items = example.request("GET", "/items")
    assert (status, items[0]["id"]) == (200, CLIENTS * requests)
    _, stats = example.request("GET", "/pool")
    assert stats["capacity"] == 5
    assert stats["size"] <= 5
    assert stats["leased"] == stats["waiting"] == stats["timed_out"] == 0
    assert stats["direct"] + stats["waited"] > 3 * CLIENTS * requests


def test_transfer_moves_all_of_it_or_nothing(example: Example) -> None:
    """A transfer that cannot be done is refused in words, and changes no account."""
    assert example.transfer(1, 2, 10)[0] == 200
    moved = {1: 990, 2: 1010, 3: 1000}
    assert example.balances() == moved
    assert example.transfer(1, 2, 10_000) == (409, {"detail": "insufficient funds"})
    assert example.transfer(1, 9, 10) == (404, {"detail": "there is no account 9"})
    assert example.transfer(9, 1, 10) == (404, {"detail": "there is no account 9"})
    assert example.transfer(1, 2, -10)[0] == 422
    assert example.balances() == moved
    assert [account["balance"] for account in example.request("GET", "/accounts")[1]] == [
        *moved.values()
    ]


def test_items_are_listed_with_and_without_the_pool(example: Example) -> None:
    """What one request adds the next one sees, by whatever connection."""
    assert example.request("POST", "/items", {"name": "spade"}) == (201, {"id": 1, "name": "spade"})
    for path in ("/items", "/unpooled/items"):
        assert example.request("GET", path) == (200, [{"id": 1, "name": "spade"}])
