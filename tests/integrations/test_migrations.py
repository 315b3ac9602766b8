"""The programs of ``examples/migrations``, each started under uvicorn in a process of its own."""

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Forking, forking
from tests.postgres import Postgres

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="no socket can be handed to a process on Windows"
)
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "migrations"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py"))
Request = Callable[[str, str], tuple[int, Any]]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return an empty database of the kind that the program wants."""
    if "asyncpg" not in request.node.name:
        yield f"sqlite:///{tmp_path}/items.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create_database()
    yield server.dsn(name)
    server.drop_database(name)


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """Return a socket that listens for all programs, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(scope="module")
def interpreter(listener: socket.socket) -> Iterator[Forking]:
    """Return an interpreter that has imported what the programs need, but for poolkit."""
    modules = ("aiosqlite", "asyncpg", "databases", "fastapi", "sqlalchemy.ext.asyncio", "uvicorn")
    with forking(*modules, pass_fds=[listener.fileno()]) as interpreter:
        yield interpreter


@pytest.fixture
def running(
    interpreter: Forking, listener: socket.socket, url: str, tmp_path: Path
) -> Callable[[str], contextlib.AbstractContextManager[Request]]:
    """Return what starts a program; it is stopped in the end, and has ended whole."""
    port = listener.getsockname()[1]

    def request(method: str, path: str) -> tuple[int, Any]:
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
        with contextlib.closing(conn):
            conn.request(method, path)
            answer = conn.getresponse()
            return answer.status, json.loads(answer.read())

    @contextlib.contextmanager
    def running(program: str) -> Iterator[Request]:
        server = interpreter.start(
            tmp_path,
            *("-m", "uvicorn", f"examples.migrations.{program}:app"),
            *("--fd", str(listener.fileno())),
            paths=[ROOT / "src", ROOT],
            DATABASE_URL=url,
        )
        try:
            yield request
        finally:
            os.kill(server.pid, signal.SIGTERM)
            said = "\n".join(server.wait()[1:])
        assert "Application shutdown complete" in said
        assert "Traceback" not in said

    return running


def test_each_program_is_there_before_and_after() -> None:
    """And said so in the page beside them."""
    page = (FOLDER / "README.md").read_text()
    names = {program.rsplit("_", 1)[0] for program in PROGRAMS}
    assert len(names) == 5
    assert sorted(f"{name}_{when}" for name in names for when in ("before", "after")) == PROGRAMS
    for name in names:
        assert f"| `{name}` |" in page


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_answers(
    program: str, running: Callable[[str], contextlib.AbstractContextManager[Request]]
) -> None:
    """The same, before and after; and what comes after serves fifty clients at once.

    (`create_engine_before` would not: the threads that wait for a connection are those by which one
    would be given back, until a request fails after the thirty seconds of ``pool_timeout``.)
    """
    with running(program) as request:
        if program.startswith("async_session"):
            assert request("GET", "/items") == (200, {"number": 1})
            expected: Any = {"number": 1}
        else:
            assert request("GET", "/items") == (200, [])
            assert request("POST", "/items?name=spade") == (200, {"id": 1, "name": "spade"})
            expected = [{"id": 1, "name": "spade"}]
        with ThreadPoolExecutor(50 if program.endswith("after") else 3) as clients:
            answers = list(clients.map(lambda _: request("GET", "/items"), range(100)))
        assert answers == [(200, expected)] * 100
