"""What asyncpg does not document may change, or an agent may replace it: the pool does without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from poolkit.drivers.asyncpg._costs import COSTS
from tests.drivers.asyncpg_renamed import renamed
from tests.forked import Forking, forking

ROOT = Path(__file__).resolve().parents[2]
WORKER = "tests.drivers.asyncpg_lacking_worker"

#: One connection is enough for all leases but for those that this names.
AT_NO_CONNECTION: Final = 1
#: Without these, one lease of the worker's, or two, cost their connection; without the guard, or
#: without the transaction, nearly all do.
CONNECTIONS: Final = {
    **dict.fromkeys(COSTS, 2),
    **dict.fromkeys(
        [
            *("connection._ConnectionProxy", "protocol.NO_TIMEOUT", "Protocol.query"),
            *("Connection._get_statement", "Connection._executemany", "Connection._copy_out"),
            *("Connection._drop_global_statement_cache", "Connection._drop_global_type_cache"),
            *("Connection._transport", "Connection._params", "Connection._server_caps"),
            *("Connection._stmt_cache_enabled", "Protocol.copy_out", "Protocol.queries_count"),
            "connect_utils._cancel",
        ],
        AT_NO_CONNECTION,
    ),
    **dict.fromkeys(["Connection._stmt_cache", "Connection._stmts_to_close"], 3),
    **dict.fromkeys(["Connection._top_xact", "Connection._pool_release_ctr"], 14),
}
#: The compiled code itself needs these under their names: see the other test.
NEEDED: Final = {
    *("Protocol._is_cancelling", "Protocol._wait_for_cancellation", "asyncpg.connect"),
    "Connection._cancel_current_command",
}


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Forking]:
    """Return an interpreter that has imported neither asyncpg nor poolkit."""
    with forking() as interpreter:
        yield interpreter


@pytest.fixture
def leases(interpreter: Forking, dsn: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return what runs the worker, and returns what it says."""

    def run(*changes: str, path: Path | None = None) -> dict[str, Any]:
        paths = [*([path] if path else []), ROOT / "src", ROOT]
        done = interpreter.run(tmp_path, "-m", WORKER, dsn, *changes, paths=paths)
        assert done.returncode == 0, done.err
        said: dict[str, Any] = json.loads(done.out.splitlines()[-1])
        return said

    return run


@pytest.mark.parametrize("member", sorted(set(COSTS) - NEEDED))
def test_member_of_another_name_is_done_without(
    leases: Callable[..., dict[str, Any]], tmp_path: Path, member: str
) -> None:
    """Connections open, nothing reaches the next lease, and one warning names it with its cost."""
    name = member.replace("connection.", "Connection.")
    said = leases(path=renamed(tmp_path, name))
    assert said["wrong"] == []
    (warning,) = said["warned"]
    assert f"{member} ({COSTS[member]})" in warning
    assert warning.count(" (") == 1
    assert said["connections"] == CONNECTIONS[member]
    assert said["instances"] == [member != "connection._ConnectionProxy"]


def test_nothing_is_said_of_asyncpg_as_it_is(leases: Callable[..., dict[str, Any]]) -> None:
    """All is as expected: one connection serves all leases, whatever they leave."""
    said = leases()
    assert said == {"warned": [], "connections": 1, "wrong": [], "instances": [True]}


_PROXY: Final = """
import asyncpg, asyncpg.protocol
class Proxy:
    def __init__(self, inside):
        self.__dict__["inside"] = inside
    def __getattr__(self, name):
        return getattr(self.inside, name)
    def __setattr__(self, name, value):
        setattr(self.inside, name, value)
"""
_WRAPT: Final = "import asyncpg, asyncpg.protocol, wrapt"

#: What is done to asyncpg before the pool is made; of which members is warned; connections.
CHANGES: Final[dict[str, tuple[str, list[str], int]]] = {
    "protocol in wrapt's proxy": (
        f"""{_WRAPT}
made = asyncpg.protocol.Protocol
asyncpg.protocol.Protocol = lambda *a, **k: wrapt.ObjectProxy(made(*a, **k))""",
        [],
        1,
    ),
    "protocol in two proxies": (
        f"""{_WRAPT}
made = asyncpg.protocol.Protocol
asyncpg.protocol.Protocol = lambda *a: wrapt.ObjectProxy(wrapt.ObjectProxy(made(*a)))""",
        [],
        1,
    ),
    "protocol in a proxy that does not say so": (
        f"""{_PROXY}
made = asyncpg.protocol.Protocol
asyncpg.protocol.Protocol = lambda *a: Proxy(made(*a))""",
        [],
        1,
    ),
    "protocol's methods wrapped": (
        f"""{_WRAPT}
for name in ("query", "bind_execute", "bind_execute_many", "execute", "bind", "prepare"):
    wrapt.wrap_function_wrapper(
        asyncpg.protocol, "Protocol." + name, lambda f, i, a, k: f(*a, **k)
    )""",
        [],
        1,
    ),
    "connect wrapped": (
        f"{_WRAPT}\nwrapt.wrap_function_wrapper(asyncpg, 'connect', lambda f, i, a, k: f(*a, **k))",
        [],
        1,
    ),
    "connect gives a proxy": (
        f"""{_WRAPT}
async def connect(f, i, a, k):
    return wrapt.ObjectProxy(await f(*a, **k))
wrapt.wrap_function_wrapper(asyncpg, "connect", connect)""",
        ["asyncpg.connect"],
        1,
    ),
    "connect hides its arguments": (
        """
import asyncpg
made = asyncpg.connect
asyncpg.connect = lambda *args, **kwargs: made(*args, **kwargs)""",
        [],
        1,
    ),
    "connect hides its arguments wherever it is": (
        """
import asyncpg
made = asyncpg.connect
asyncpg.connect = asyncpg.connection.connect = lambda *args, **kwargs: made(*args, **kwargs)""",
        [],
        1,
    ),
    "connect forgets the class": (
        """
import asyncpg
made = asyncpg.connect
asyncpg.connect = lambda dsn, *, connection_class, **k: made(dsn, **k)""",
        ["asyncpg.connect"],
        2,
    ),
    "methods of the connection wrapped": (
        f"""{_WRAPT}
names = "execute executemany fetch fetchval fetchrow prepare transaction cursor get_reset_query"
for name in (names + " reset set_type_codec reset_type_codec add_listener").split():
    wrapt.wrap_function_wrapper(
        "asyncpg.connection", "Connection." + name, lambda f, i, a, k: f(*a, **k)
    )""",
        [],
        1,
    ),
    "methods of the connection replaced": (
        """
import asyncpg
def wrap(f):
    async def inner(*args, **kwargs):
        return await f(*args, **kwargs)
    return inner
for name in ("execute", "fetch", "_execute", "_executemany", "_prepare", "prepare"):
    setattr(asyncpg.Connection, name, wrap(getattr(asyncpg.Connection, name)))""",
        [],
        1,
    ),
    "statements and cursors wrapped": (
        f"""{_WRAPT}
async def call(f, i, a, k):
    return await f(*a, **k)
for where in ("prepared_stmt PreparedStatement.fetch", "prepared_stmt PreparedStatement.fetchval",
              "cursor Cursor.fetch", "cursor CursorIterator.__anext__",
              "transaction Transaction.start", "transaction Transaction.commit"):
    module, name = where.split()
    wrapt.wrap_function_wrapper("asyncpg." + module, name, call)""",
        [],
        1,
    ),
    "statements replaced, and made by a plain function": (
        """
import asyncpg
from asyncpg.prepared_stmt import PreparedStatement
fetchval = PreparedStatement.fetchval
PreparedStatement.fetchval = lambda self, *a, **k: fetchval(self, *a, **k)""",
        [],
        1,
    ),
    "what is made in a proxy": (
        f"""{_WRAPT}
wrapt.wrap_function_wrapper(
    "asyncpg.connection", "Connection.transaction",
    lambda f, i, a, k: wrapt.ObjectProxy(f(*a, **k)),
)""",
        [],
        1,
    ),
    "what is made in a proxy that does not say so": (
        f"""{_PROXY}
class Transaction(Proxy):
    async def __aenter__(self):
        return await self.inside.__aenter__()
    async def __aexit__(self, *error):
        return await self.inside.__aexit__(*error)
made = asyncpg.Connection.transaction
asyncpg.Connection.transaction = lambda self, **k: Transaction(made(self, **k))""",
        ["Connection._pool_release_ctr"],
        14,
    ),
    "class of connections in a proxy": (
        f"""{_WRAPT}
asyncpg.Connection = wrapt.ObjectProxy(asyncpg.Connection)""",
        [],
        1,
    ),
    "protocol's query with another signature": (
        """
from poolkit.drivers.asyncpg import _parts
examine = _parts.examine
def examine_and_change(c, kind):
    parts = examine(c, kind)
    parts.send_query = lambda query, timeout, *, how: None
    return parts
_parts.examine = examine_and_change""",
        ["Protocol.query"],
        1,
    ),
    "no NO_TIMEOUT any more": (
        """
from asyncpg.protocol import protocol
import poolkit.drivers.asyncpg
class Left(type(protocol)):
    def __getattribute__(self, name):
        if name == "NO_TIMEOUT":
            raise AttributeError(name)
        return super().__getattribute__(name)
protocol.__class__ = Left""",
        ["protocol.NO_TIMEOUT"],
        1,
    ),
    "is_cancelling of another type": (
        """
import asyncpg.protocol
class Protocol(asyncpg.protocol.Protocol):
    def _is_cancelling(self):
        return int(super()._is_cancelling())
asyncpg.protocol.Protocol = Protocol""",
        ["Protocol._is_cancelling"],
        1,
    ),
    "wait_for_cancellation with another signature": (
        """
import asyncpg.protocol
class Protocol(asyncpg.protocol.Protocol):
    async def _wait_for_cancellation(self, timeout):
        return await super()._wait_for_cancellation(timeout)
asyncpg.protocol.Protocol = Protocol""",
        ["Protocol._wait_for_cancellation"],
        2,
    ),
    "close_statement with another signature": (
        """
import asyncpg.protocol
class Protocol(asyncpg.protocol.Protocol):
    async def close_statement(self, state, timeout):
        if not state.name:
            raise TypeError("how")
        await super().close_statement(state, timeout)
asyncpg.protocol.Protocol = Protocol""",
        ["Protocol.close_statement"],
        2,
    ),
    "release counter that guards nothing": (
        """
from asyncpg import connresource
connresource.ConnectionResource._check_conn_validity = lambda self, name: None""",
        ["Connection._pool_release_ctr"],
        14,
    ),
    "listeners of another type": (
        """
import asyncpg
made = asyncpg.Connection.__init__
def init(self, *args, **kwargs):
    made(self, *args, **kwargs)
    self._log_listeners = []
    self._log_listeners = type("Calls", (list,), {"add": list.append})()
asyncpg.Connection.__init__ = init""",
        ["Connection._log_listeners"],
        2,
    ),
    "no capabilities": (
        """
import asyncpg.connection
made = asyncpg.connection._detect_server_capabilities
def detect(*args):
    return type("Caps", (), {**made(*args)._asdict(), "sql_reset": None})()
asyncpg.connection._detect_server_capabilities = detect""",
        ["Connection._server_caps"],
        1,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_member_that_an_agent_has_changed_breaks_nothing(
    leases: Callable[..., dict[str, Any]], change: str
) -> None:
    """It is used as it is, or done without, which is said once; the leases are as clean as ever."""
    text, members, connections = CHANGES[change]
    if _WRAPT in text:
        pytest.importorskip("wrapt", minversion="2")  # older proxies enter no async block
    said = leases(text)
    assert said["wrong"] == []
    if change == "connect forgets the class":  # it may have set codecs, too
        assert "does not know which there were" in said["warned"].pop()
    assert len(said["warned"]) == bool(members), said["warned"]
    for member in members:
        assert f"{member} ({COSTS[member]})" in said["warned"][0]
    assert said["connections"] == connections
    assert said["instances"] == [True]
