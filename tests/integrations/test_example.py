"""The example application, served by uvicorn in a process of its own: what `make demo` shows.

Every test runs on SQLite and on PostgreSQL.
"""

import contextlib
import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.postgres import Postgres

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no socket can be handed to a process on Windows"
)
ROOT = Path(__file__).parents[2]
CLIENTS = 50


class Example(NamedTuple):
    """A running example."""

    port: int
    outside: Callable[[str], list[Any]]
    """Runs a query on a connection of the test's own."""
    empty: str
    """How the items are deleted, and counted from one again."""

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request; return the status and the JSON of the answer."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(conn):
            headers = {"Content-Type": "application/json", **headers}
            conn.request(method, path, None if body is None else json.dumps(body), headers)
            answer = conn.getresponse()
            return answer.status, json.loads(answer.read())

    def transfer(self, source: int, target: int, amount: int) -> tuple[int, Any]:
        """Order a transfer."""
        order = {"source": source, "target": target, "amount": amount}
        return self.request("POST", "/transfer", order)

    def balances(self) -> dict[int, int]:
        """Return what the accounts hold, as seen from outside."""
        return dict(self.outside("SELECT id, balance FROM account"))


class Database(NamedTuple):
    """Where the example is to have its data."""

    url: str
    query: Callable[[str], list[Any]]
    empty: str


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def where(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Return an empty database of either kind."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("example") / "an example.db"

        def query(sql: str) -> list[Any]:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
                return conn.execute(sql).fetchall()

        yield Database(f"sqlite:///{path}", query, "DELETE FROM item")
    else:
        server: Postgres = request.getfixturevalue("postgres")
        name = server.create_database()
        empty = "TRUNCATE item RESTART IDENTITY"
        yield Database(server.dsn(name), lambda sql: server.query(sql, database=name), empty)
        server.drop_database(name)


@pytest.fixture(scope="module")
def started(where: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    """Start the example; stop it, and see that it has ended whole."""
    log = tmp_path_factory.mktemp("example") / "log"
    # It is given a socket that listens already, so a client that is early waits in its queue.
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as output:
        command = ["uvicorn", "examples.app:app", "--fd", str(listener.fileno())]
        with subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": where.url},
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=output,
        ) as server:
            try:
                example = Example(listener.getsockname()[1], where.query, where.empty)
                assert example.request("GET", "/pool")[0] == 200, log.read_text()
                yield example
            finally:
                server.terminate()
    said = log.read_text()
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


@pytest.fixture
def example(started: Example) -> Example:
    """Return the example with nothing in its database but the three accounts it begins with."""
    started.outside(started.empty)
    started.outside("UPDATE account SET balance = 1000")
    return started


def test_fifty_clients_on_five_connections_all_succeed(example: Example) -> None:
    """Nobody fails, every row is in the database, and no money is made or lost."""
    requests = 3
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
    rows = example.outside("SELECT name, count(*) FROM item GROUP BY name")
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
    assert example.transfer(1, 1, 10)[0] == 200
    assert example.transfer(1, 2, -10)[0] == 422
    assert example.balances() == moved
    assert [account["balance"] for account in example.request("GET", "/accounts")[1]] == [
        *moved.values()
    ]


def test_invalid_item_costs_no_connection(example: Example) -> None:
    """It is refused before one is acquired; the probes take none either."""

    def acquired() -> int:
        stats = example.request("GET", "/pool")[1]
        return int(stats["direct"] + stats["waited"])

    before = acquired()
    assert example.request("POST", "/items", {"nom": "spade"})[0] == 422
    assert example.request("GET", "/livez") == (200, {"status": "alive"})
    assert example.request("GET", "/readyz") == (200, {"status": "ready"})
    assert acquired() == before
    assert example.request("POST", "/items", {"name": "spade"})[0] == 201
    assert acquired() == before + 1


def test_items_are_listed_with_and_without_the_pool(example: Example) -> None:
    """What one request adds the next one sees, by whatever connection."""
    assert example.request("POST", "/items", {"name": "spade"}) == (201, {"id": 1, "name": "spade"})
    for path in ("/items", "/unpooled/items"):
        assert example.request("GET", path) == (200, [{"id": 1, "name": "spade"}])


def test_page_and_its_parts_are_served(example: Example) -> None:
    """The page with the button, the pool's own, and what they ask for."""
    conn = http.client.HTTPConnection("127.0.0.1", example.port, timeout=30)
    with contextlib.closing(conn):
        for path in (
            "/",
            "/page.js",
            "/performance.md",
            "/poolkit",
            "/poolkit/page.js",
            "/poolkit/page.css",
        ):
            conn.request("GET", path)
            answer = conn.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True), path
            assert answer.getheader("Server-Timing") == (
                'pool;dur=0.0;desc="wait", db;dur=0.0;desc="held"'
            )
    status, state = example.request("GET", "/poolkit/state")
    assert status == 200
    assert len(state["slots"]) == 5


def test_loads_measure_with_and_without_the_pool(example: Example) -> None:
    """They end by themselves, and leave the application's own pool as it was."""
    status, pooled = example.request("POST", "/loads/pooled")
    assert status == 200
    status, unpooled = example.request("POST", "/loads/unpooled")
    assert status == 200
    assert (pooled["opened"], pooled["failed"], pooled["most"]) == (5, 0, 5)
    assert pooled["requests"] > 5
    assert unpooled["opened"] >= unpooled["requests"] > 5  # some may be cut off by the limit
    assert unpooled["opening"] > pooled["opening"] > 0
    assert unpooled["alone"] > 0
    _, free = example.request("POST", "/loads/overload")
    _, limited = example.request("POST", "/loads/overload?max_waiting=10")
    assert (free["refused"], free["accepted"]) == (0, free["came"])
    assert free["served"] > 0
    assert limited["came"] == limited["refused"] + limited["accepted"]
    assert 0 < limited["served"] <= limited["accepted"] < limited["came"]
    status, line = example.request("POST", "/loads/line?seconds=0.5")
    assert (status, line["out_of_turn"], line["holding"]) == (200, 0, [])
    assert line["most"] >= 7
    stats = example.request("GET", "/pool")[1]
    assert stats["leased"] == stats["waiting"] == 0


@pytest.mark.parametrize("load", ["pooled", "unpooled", "line", "overload"])
def test_load_is_started_only_from_this_machine(example: Example, load: str) -> None:
    """By POST: no page of another site starts one in a browser, whatever name it gives itself."""
    path = f"/loads/{load}"
    for headers in (
        {"Host": "shop.example"},
        {"Origin": "http://shop.example"},
        {"Origin": "null"},
    ):
        assert example.request("POST", path, **headers)[0] == 403, headers
    if load != "line":  # which may be looked at
        assert example.request("GET", path)[0] == 405


@pytest.mark.parametrize("query", ["line?seconds=11", "line?seconds=nan", "overload?max_waiting=0"])
def test_load_that_is_too_long_is_refused(example: Example, query: str) -> None:
    """Nothing is started."""
    assert example.request("POST", f"/loads/{query}")[0] == 422
