"""`poolkit.compat.asyncpg`: each method and option of `asyncpg.Pool`, on a real server."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import inspect
import io
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import asyncpg as original
import pytest

import poolkit
from poolkit.compat import asyncpg
from poolkit.compat.asyncpg import pool as pool_module
from tests.conftest import BACKENDS
from tests.drivers.asyncpg_help import until, until_true

if TYPE_CHECKING:
    from tests.postgres import Postgres, Server

# For type checkers, create_pool is a function of the signature that asyncpg documents.
create_pool: Any = asyncpg.create_pool


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
    return request.param


def of_one(database: str, **options: Any) -> Any:
    """Return a pool of one connection."""
    return create_pool(database, min_size=1, max_size=1, **options)


# -- the import ----------------------------------------------------------------------------------


def test_every_public_name_of_asyncpg_is_there() -> None:
    """The pool's are poolkit's, the others are the very same objects."""
    ours: dict[str, Any] = {}
    exec("from poolkit.compat.asyncpg import *", ours)
    for name in original.__all__:  # type: ignore[attr-defined]
        is_same = getattr(asyncpg, name) is getattr(original, name)
        assert is_same is (name not in ("Pool", "create_pool")), name
        assert ours[name] is getattr(asyncpg, name)
    assert set(dir(asyncpg)) >= set(dir(original))
    assert asyncpg.exceptions is original.exceptions
    assert asyncpg.pool.Pool is asyncpg.Pool
    with pytest.raises(AttributeError, match=r"asyncpg.*nonsense"):
        asyncpg.nonsense  # noqa: B018


def test_signatures_are_those_of_asyncpg() -> None:
    """Names, order and defaults of each option and of each method's arguments."""

    def parameters(function: Any) -> list[tuple[str, object]]:
        found = inspect.signature(function).parameters.values()
        return [(each.name, each.default) for each in found if each.name != "self"]

    wanted = dict(parameters(original.create_pool))
    assert dict(parameters(asyncpg.create_pool)) == wanted
    for name, method in inspect.getmembers(original.Pool, inspect.isfunction):
        if not name.startswith("_"):
            assert parameters(getattr(asyncpg.Pool, name)) == parameters(method), name


def test_it_is_imported_when_first_used() -> None:
    """After a plain `import poolkit`, which imports no asyncpg."""
    program = (
        "import sys, poolkit; print('asyncpg' in sys.modules, hasattr(poolkit.compat, 'nonsense'),"
        "poolkit.compat.asyncpg.create_pool.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "create_pool"]
    assert dir(poolkit.compat) == ["asyncpg"]


def test_missing_asyncpg_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "poolkit.compat.asyncpg")
    with pytest.raises(poolkit.PoolConfigError, match=r"pip install 'poolkit\[asyncpg\]'"):
        importlib.import_module("poolkit.compat.asyncpg")


# -- open and close ------------------------------------------------------------------------------


async def test_pool_is_opened_by_a_block_and_by_await(database: str) -> None:
    """And closed by the end of the block, or by close()."""
    async with of_one(database) as pool:
        assert isinstance(pool, asyncpg.Pool)
        assert await pool.fetchval("SELECT 1") == 1
        assert not pool.is_closing()
    assert pool.is_closing()
    pool = await of_one(database)
    assert await pool.fetchval("SELECT 2") == 2
    assert await pool is pool
    await pool.close()
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError, match="pool is closed") as caught:
        await pool.fetchval("SELECT 1")
    assert isinstance(caught.value, poolkit.PoolClosed)


async def test_pool_that_is_not_open_says_so(database: str) -> None:
    """Before it is opened, and while it is."""
    pool = of_one(database)
    for use in (pool.acquire, pool.close, lambda: asyncio.sleep(0, pool.terminate())):
        with pytest.raises(asyncpg.InterfaceError, match="pool is not initialized"):
            await use()
    opening = asyncio.ensure_future(pool)
    await asyncio.sleep(0)
    with pytest.raises(asyncpg.InterfaceError, match="being initialized, but not yet ready"):
        await pool.acquire()
    with pytest.raises(asyncpg.InterfaceError, match="being initialized in another task"):
        await pool
    await opening
    await pool.close()


async def test_failure_to_open_is_the_errors_own(postgres: Postgres, database: str) -> None:
    """Not poolkit's: programs catch asyncpg's, and the system's."""
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await create_pool(postgres.dsn("no_such_database"))
    with pytest.raises(OSError, match=r"refused|Connect"):
        await create_pool("postgresql://postgres@127.0.0.1:1/postgres")
    with pytest.raises(LookupError, match="no instance"):
        await of_one(database, connect=_nowhere)
    pool = of_one(database, connect=_nothing)
    with pytest.raises(asyncpg.InterfaceError, match=r"expected pool connect callback.*'int'"):
        await pool
    assert pool.is_closing()
    pool = of_one(database, connect=_none)
    with pytest.raises(asyncpg.InterfaceError, match=r"expected pool connect.*'NoneType'"):
        await pool


async def test_connection_that_cannot_be_taken_over_is_cut(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connector has made it without our class, and asyncpg is not as it was."""
    made: list[Any] = []

    async def connect(*args: Any, connection_class: Any, **kwargs: Any) -> Any:
        made.append(await original.connect(*args, **kwargs))
        return made[-1]

    def refuse(*_: Any) -> Any:
        raise poolkit.PoolConfigError("it cannot be taken over")

    monkeypatch.setattr("poolkit.drivers.asyncpg._internals.remade", refuse)
    with pytest.raises(poolkit.PoolConfigError, match="cannot be taken over"):
        await of_one(database, connect=connect)
    assert [c.is_closed() for c in made] == [True]


async def _nothing(*_: Any, **__: Any) -> int:
    return 1


async def _none(*_: Any, **__: Any) -> None:
    return None


async def _nowhere(*_: Any, **__: Any) -> int:
    """Fail as a connector does, whose error is made from one of the system's, which may pass."""
    raise LookupError("no instance") from ConnectionRefusedError("refused")


async def test_open_pool_is_of_its_loop(database: str) -> None:
    """And is opened only once: to open it again changes nothing."""
    async with of_one(database) as pool:
        pool.resize(min_size=1, max_size=3)
        assert await pool is pool
        assert pool.get_max_size() == 3

        def elsewhere() -> None:
            with pytest.raises(poolkit.WrongLoop):
                asyncio.run(pool.open())

        await asyncio.to_thread(elsewhere)
    async with pool:  # closed, and opened once more
        assert await pool.fetchval("SELECT 1") == 1


async def test_close_waits_for_what_is_held(database: str) -> None:
    """Without a limit; newcomers, and those in line, are told meanwhile."""
    pool = await of_one(database)
    released = asyncio.Event()

    async def hold(conn: Any) -> None:
        await released.wait()
        assert await conn.fetchval("SELECT 1") == 1
        await pool.release(conn)

    async def take(got: asyncio.Future[Any]) -> None:
        conn = await pool.acquire()
        got.set_result(None)
        await hold(conn)

    got = asyncio.get_running_loop().create_future()
    holder = asyncio.create_task(take(got))
    await got
    in_line = asyncio.ensure_future(pool.acquire())
    await until(lambda: pool.stats().waiting)
    closing = asyncio.create_task(pool.close())
    with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
        await in_line
    assert pool.is_closing()
    with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
        await pool.acquire()
    assert not closing.done()
    released.set()
    await closing
    await holder


async def test_cancelled_close_terminates(database: str, postgres: Postgres) -> None:
    """As in asyncpg, where `wait_for(pool.close(), ...)` is the way to have a limit."""
    pool = await of_one(database)
    conn = await asyncio.create_task(_take(pool))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool.close(), 0.05)
    with pytest.raises(asyncpg.InterfaceError):
        await conn.fetchval("SELECT 1")
    assert pool.get_size() == 0
    await until(lambda: not postgres.backends(database.rpartition("/")[2]))


async def _take(pool: Any) -> Any:
    return await pool.acquire()


async def test_end_of_the_block_closes_as_close_does(database: str) -> None:
    """By that method, which a subclass may have, and waiting without a limit."""
    called: list[object] = []

    class Mine(asyncpg.Pool):
        async def close(self) -> None:
            called.append("close")
            await super().close()

        async def aclose(self, *, grace: float | None = 10.0) -> Any:
            called.append(grace)
            return await super().aclose(grace=grace)

    async with Mine(database, min_size=1, max_size=1) as pool:
        assert await pool.fetchval("SELECT 1") == 1
    assert called == ["close", None]


async def test_resized_pool_is_opened_with_its_sizes(database: str) -> None:
    """The first time and again, and not with what it was made with."""
    pool = create_pool(database, init_size=3, min_size=2, max_size=3)
    pool.resize(min_size=1, max_size=1)
    for _ in range(2):
        async with pool:
            assert (pool.get_min_size(), pool.get_max_size(), pool.get_size()) == (1, 1, 1)


async def test_terminate_ends_everything_at_once(database: str) -> None:
    """Held connections too, and a second time does no harm."""
    pool = await create_pool(database, min_size=2, max_size=2)
    conn = await pool.acquire()
    pool.terminate()
    pool.terminate()
    assert pool.is_closing()
    assert pool.get_size() == 0
    with pytest.raises(asyncpg.InterfaceError):
        await conn.fetchval("SELECT 1")


def test_terminate_works_while_the_loop_does_not_run(database: str) -> None:
    """As programs do that drive their loop by hand."""
    loop = asyncio.new_event_loop()
    try:
        pool = loop.run_until_complete(of_one(database))
        pool.terminate()
        assert pool.is_closing()
        loop.run_until_complete(asyncio.wait(asyncio.all_tasks(loop), timeout=10))
        assert not asyncio.all_tasks(loop)
    finally:
        loop.close()


async def test_loop_of_another_is_refused(database: str) -> None:
    """A pool is of the loop on which it is opened."""
    other = asyncio.new_event_loop()
    other.close()
    with pytest.raises(asyncpg.InterfaceError, match="another event loop"):
        await of_one(database, loop=other)
    async with of_one(database, loop=asyncio.get_running_loop()) as pool:
        assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_size": -1}, "min_size"),
        ({"min_size": 3, "max_size": 2}, "min_size is greater"),
        ({"max_size": 0}, "max_size"),
        ({"init_size": 1, "min_size": 2}, "init_size is smaller"),
        ({"max_queries": 0}, "max_queries"),
        ({"max_inactive_connection_lifetime": -1}, "max_inactive_connection_lifetime"),
    ],
)
def test_options_are_refused_in_asyncpgs_words(options: dict[str, Any], said: str) -> None:
    """When the pool is made, outside of a loop even."""
    with pytest.raises(ValueError, match=said):
        create_pool(**options)
    with pytest.raises(TypeError, match="subclass"):
        create_pool(connection_class=int)
    with pytest.raises(TypeError, match="subclass"):
        create_pool(record_class=int)


# -- acquire and release -------------------------------------------------------------------------


async def test_released_connection_is_dead(database: str) -> None:
    """With asyncpg's error, which is poolkit's too, and asyncpg's words."""
    async with of_one(database) as pool:
        async with pool.acquire() as conn:
            assert isinstance(conn, asyncpg.Connection)
            assert isinstance(conn, asyncpg.pool.PoolConnectionProxy)
            assert "[released]" not in repr(conn)
            statement = await conn.prepare("SELECT 1")
        assert "[released]" in repr(conn)
        for name in ("execute", "is_closed", "close", "terminate"):
            with pytest.raises(
                asyncpg.InterfaceError,
                match=rf"Connection\.{name}.*released back to the pool; .*at the end of the block",
            ) as caught:
                await getattr(conn, name)()
            assert isinstance(caught.value, poolkit.NotLeased)
        with pytest.raises(asyncpg.InterfaceError):
            setattr(conn, "anything", 1)  # noqa: B010  # a type checker knows no such attribute
        with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
            await statement.fetchval()


async def test_release_takes_what_it_gave(database: str) -> None:
    """Twice is fine; what is another's is refused; and a task can be made of it."""
    async with of_one(database) as pool, of_one(database) as other:
        conn = await pool.acquire()
        for wrong in (conn, None, object()):
            with pytest.raises(asyncpg.InterfaceError, match="is not a member of this pool"):
                await other.release(wrong)
        assert pool.get_idle_size() == 0
        await asyncio.create_task(pool.release(conn, timeout=1))
        assert pool.get_idle_size() == 1
        await pool.release(conn)
        second = await pool.acquire()
        await pool.release(conn)  # a stale handle gives nobody's connection away
        assert pool.get_idle_size() == 0
        await asyncio.wait_for(asyncio.shield(pool.release(second)), 1)
        pool.release(second)


async def test_acquire_times_out_with_a_timeout(database: str) -> None:
    """Also of a task that holds the last connection itself; without a timeout it waits."""
    async with of_one(database) as pool, pool.acquire():
        with pytest.raises(asyncio.TimeoutError) as caught:
            await pool.acquire(timeout=0.01)
        assert isinstance(caught.value, poolkit.PoolTimeout)
        with pytest.raises(TimeoutError):
            async with pool.acquire(timeout=0.01):
                raise AssertionError
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=-0.01)  # what was left of a deadline
        waiting = asyncio.ensure_future(pool.acquire())
        await until(lambda: pool.stats().waiting)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_callers_are_served_in_the_order_of_coming(database: str) -> None:
    """And a cancelled one is passed over, its place lost to nobody."""
    served: list[int] = []

    async def use(number: int) -> None:
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT $1::int", number) == number
            served.append(number)

    async with of_one(database) as pool:
        async with pool.acquire():
            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(use(number)))
                await until(functools.partial(_has_waiting, pool, number + 1))
            tasks[2].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert served == [0, 1, 3, 4, 5]
        assert [isinstance(each, asyncio.CancelledError) for each in done].index(True) == 2
        assert pool.get_idle_size() == 1


def _has_waiting(pool: Any, many: int) -> bool:
    return bool(pool.stats().waiting == many)


async def test_closing_a_connection_gives_its_place_back(database: str) -> None:
    """At once, without a release; which does no harm."""
    async with of_one(database) as pool:
        conn = await pool.acquire()
        conn.terminate()
        second = await pool.acquire(timeout=5)
        assert await second.fetchval("SELECT 1") == 1
        await second.close()
        await pool.release(second)
        async with pool.acquire(timeout=5) as third:
            assert await third.fetchval("SELECT 1") == 1
            await third.close(timeout=5)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats().leased == 0


async def test_lost_connection_gives_its_place_back(database: str) -> None:
    """As soon as that is known, whoever still holds the handle, which is dead."""
    async with of_one(database) as pool:
        conn = await pool.acquire()
        await _end(database, conn.get_server_pid())
        async with pool.acquire(timeout=5) as second:
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool; it was l"):
                await conn.fetchval("SELECT 1")
            await pool.release(conn)
            assert await second.fetchval("SELECT 1") == 1
        assert pool.stats().leased == 0


async def _end(database: str, pid: int) -> None:
    outside = await original.connect(database)
    await outside.fetchval("SELECT pg_terminate_backend($1)", pid)
    await outside.close()


async def test_listening_connection_is_held_without_its_handle(database: str) -> None:
    """Programs forget it once they listen; it is given back when it is lost."""
    heard: list[Any] = []

    async def listen() -> int:
        conn = await pool.acquire()
        await conn.add_listener("news", lambda *args: heard.append(args[3]))
        await conn.add_listener("more", lambda *args: heard.append(args[3]))
        return int(conn.get_server_pid())

    async with create_pool(database, min_size=2, max_size=2) as pool:
        pid = await listen()
        gc.collect()
        await pool.execute("NOTIFY news, 'one'")
        await until(lambda: heard == ["one"])
        assert pool.stats().leased == 1
        await _end(database, pid)
        await until(lambda: pool.stats().leased == 0)
        await until(lambda: pool.stats().idle == 2)  # asyncpg tells the loop of cancelled connects


async def test_cancelled_query_loses_nothing(database: str) -> None:
    """The connection is whole for the next one, and the server is not busy for nobody."""
    async with of_one(database) as pool:

        async def query() -> None:
            async with pool.acquire() as conn:
                running.set()
                await conn.execute("SELECT pg_sleep(600)")

        running = asyncio.Event()
        task = asyncio.create_task(query())
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(pool.fetchval("SELECT 1"), 10) == 1
        assert pool.stats().leased == 0


async def test_cancelled_setup_and_close_lose_nothing(database: str) -> None:
    """The place in the pool is free, and the connection gone."""
    begun = asyncio.Event()
    hang = True

    async def setup(conn: Any) -> None:
        begun.set()
        if hang:
            await asyncio.get_running_loop().create_future()

    async with of_one(database, setup=setup) as pool:
        for end in ("cancel", "time out"):
            begun.clear()
            limit = 1.0 if end == "time out" else None
            task = asyncio.ensure_future(pool.acquire(timeout=limit))
            await begun.wait()
            if end == "cancel":
                task.cancel()
            with pytest.raises((asyncio.CancelledError, TimeoutError)):
                await task
        hang = False
        conn = await pool.acquire(timeout=5)
        closing = asyncio.ensure_future(conn.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await asyncio.wait_for(pool.fetchval("SELECT 1"), 5) == 1
        assert pool.stats().leased == 0
        assert pool.stats().connected == 4


async def test_leases_are_told_with_the_callers_place(database: str) -> None:
    """Not with one inside of poolkit."""
    async with create_pool(database, min_size=1, max_size=2) as pool:
        async with pool.acquire():
            assert __file__ in pool.leases()[0].place
        running = asyncio.create_task(pool.fetchval("SELECT pg_sleep(600)"))

        async def call() -> None:
            await pool.fetchval("SELECT pg_sleep(600)")

        other = asyncio.create_task(call())
        await until(lambda: len(pool.leases()) == 2)
        assert any(__file__ in lease.place for lease in pool.leases())
        running.cancel()
        other.cancel()
        await asyncio.wait([running, other])


# -- methods -------------------------------------------------------------------------------------


async def test_each_query_method_runs_on_a_connection_of_its_own(database: str) -> None:
    """And gives what the connection's own method gives."""
    async with of_one(database) as pool:
        assert await pool.execute("CREATE TABLE t (a int, b text)") == "CREATE TABLE"
        assert await pool.executemany("INSERT INTO t VALUES ($1, $2)", [(1, "x"), (2, "y")]) is None
        assert await pool.fetch("SELECT * FROM t ORDER BY a") == [(1, "x"), (2, "y")]
        assert await pool.fetchrow("SELECT * FROM t WHERE a = $1", 2) == (2, "y")
        assert await pool.fetchval("SELECT a, b FROM t WHERE a = $1", 1, column=1) == "x"
        many = await pool.fetchmany("INSERT INTO t VALUES ($1, 'z') RETURNING a", [(3,), (4,)])
        assert many == [(3,), (4,)]
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep(600)", timeout=0.05)
        with pytest.raises(asyncpg.UndefinedTableError):
            await pool.fetch("SELECT * FROM nonsense")
        assert pool.stats().leased == 0


async def test_each_copy_method_runs_on_a_connection_of_its_own(database: str) -> None:
    """Both ways, of tables, queries and records."""
    async with of_one(database) as pool:
        await pool.execute("CREATE TABLE t (a int, b text)")
        records = [(1, "x"), (2, "y")]
        assert await pool.copy_records_to_table("t", records=records) == "COPY 2"
        out = io.BytesIO()
        assert await pool.copy_from_table("t", output=out) == "COPY 2"
        assert out.getvalue() == b"1\tx\n2\ty\n"
        out = io.BytesIO()
        query = "SELECT b FROM t WHERE a > $1"
        assert await pool.copy_from_query(query, 1, output=out, format="csv") == "COPY 1"
        assert out.getvalue() == b"y\n"
        assert await pool.copy_to_table("t", source=io.BytesIO(b"3\tz\n")) == "COPY 1"
        assert await pool.fetchval("SELECT count(*) FROM t") == 3


async def test_sizes_are_counted_as_asyncpg_counts(database: str) -> None:
    """Open ones, and of these the free ones; a pool is opened with init_size."""
    async with create_pool(database, init_size=3, min_size=1, max_size=4) as pool:
        assert (pool.get_init_size(), pool.get_min_size(), pool.get_max_size()) == (3, 1, 4)
        assert (pool.get_size(), pool.get_idle_size()) == (3, 3)
        async with pool.acquire():
            assert (pool.get_size(), pool.get_idle_size()) == (3, 2)
        assert (pool.get_size(), pool.get_idle_size()) == (3, 3)
        pool.resize(min_size=2, max_size=5)
        assert (pool.get_min_size(), pool.get_max_size()) == (2, 5)
    assert create_pool().get_min_size() == create_pool().get_max_size() == 10


async def test_expired_connections_are_replaced(database: str) -> None:
    """With the arguments that were set meanwhile; those in use when they come back."""
    async with create_pool(database, min_size=2, max_size=2) as pool:
        conn = await pool.acquire()
        old = {conn.get_server_pid()}
        pool.set_connect_args(database, server_settings={"application_name": "new"})
        await pool.expire_connections()
        assert conn.get_settings().application_name != "new"
        await pool.release(conn)
        async with pool.acquire() as one, pool.acquire() as two:
            for each in (one, two):
                assert each.get_server_pid() not in old
                assert each.get_settings().application_name == "new"


# -- options -------------------------------------------------------------------------------------


async def test_hooks_are_called_when_asyncpg_calls_them(database: str) -> None:
    """`connect` and `init` for each connection, `setup` for each acquire, `reset` for each release."""
    calls: list[str] = []

    async def connect(*args: Any, **kwargs: Any) -> Any:
        calls.append("connect")
        return await asyncpg.connect(*args, **kwargs)

    async def init(conn: Any) -> None:
        calls.append("init")
        await conn.set_type_codec("json", encoder=str, decoder=len, schema="pg_catalog")

    async def setup(conn: Any) -> None:
        calls.append("setup")
        await conn.execute("SET application_name = 'set up'")

    async def reset(conn: Any) -> None:
        calls.append("reset")
        await conn.execute("RESET ALL")

    hooks: dict[str, Any] = {"connect": connect, "init": init, "setup": setup, "reset": reset}
    async with of_one(database, **hooks) as pool:
        assert calls == ["connect", "init"]
        for _ in range(2):
            async with pool.acquire() as conn:
                assert conn.get_settings().application_name == "set up"
                assert await conn.fetchval("SELECT '[1]'::json") == 3
        async with pool.acquire():
            pass  # a reset even so
    assert calls == ["connect", "init", *["setup", "reset"] * 3]


async def test_failed_setup_and_init_cost_their_connection(database: str) -> None:
    """And are the caller's error; the next one is given another connection."""
    failing = ["init", "setup"]
    seen: list[Any] = []

    async def hook(name: str, conn: Any) -> None:
        seen.append(conn)
        if name in failing:
            failing.remove(name)
            raise LookupError(name)

    async def init(conn: Any) -> None:
        await hook("init", conn)

    async def setup(conn: Any) -> None:
        await hook("setup", conn)

    async with create_pool(database, min_size=0, max_size=1, init=init, setup=setup) as pool:
        for name in ("init", "setup"):
            with pytest.raises(LookupError, match=name):
                await pool.acquire(timeout=5)
        assert seen[0].is_closed() and seen[1].is_closed()
        with pytest.raises(asyncpg.InterfaceError, match=r"released at .*test_asyncpg\.py"):
            seen[2].is_closed()
        assert await pool.fetchval("SELECT 1") == 1
        assert len({id(each) for each in seen}) == 5


async def test_setup_may_close_its_connection_and_fail(database: str) -> None:
    """Its own error is the caller's."""

    async def setup(conn: Any) -> None:
        await conn.close()
        raise LookupError("mine")

    async with of_one(database, setup=setup) as pool:
        for _ in range(2):
            with pytest.raises(LookupError, match="mine"):
                await pool.acquire(timeout=5)
        assert pool.stats().leased == 0


async def test_codecs_of_setup_cost_no_connection(database: str) -> None:
    """They are set for each lease; those that a lease sets itself are not left to the next."""

    async def setup(conn: Any) -> None:
        await conn.set_type_codec("json", encoder=str, decoder=len, schema="pg_catalog")

    async with of_one(database, setup=setup) as pool:
        for _ in range(3):
            assert await pool.fetchval("SELECT '[1]'::json") == 3
        assert pool.stats().connected == 1
        async with pool.acquire() as conn:
            await conn.reset_type_codec("json", schema="pg_catalog")
        assert await pool.fetchval("SELECT '[1]'::json") == 3
        assert pool.stats().connected == 1


async def test_connection_made_by_other_means_is_taken_over(database: str) -> None:
    """Connectors of cloud providers know nothing of the class that they are asked for."""
    made: list[Any] = []

    class Own(original.Connection):
        note = ""

    async def connect(_: Any, **__: Any) -> Any:
        conn = await original.connect(database, connection_class=Own)
        conn.note = "mine"
        made.append(conn)
        return conn

    async with of_one("project:region:instance", connect=connect) as pool:
        assert pool.name == "asyncpg"
        async with pool.acquire() as conn:
            assert isinstance(conn, Own)
            assert conn.note == "mine"
            assert await conn.fetchval("SELECT 1") == 1
            heard: list[Any] = []
            await conn.add_listener("news", lambda *args: heard.append(args))
            await conn.execute("NOTIFY news, 'x'")
            await until(lambda: heard)
        assert made[0].is_closed()
        assert await pool.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0


async def test_max_queries_replaces_a_connection(database: str) -> None:
    """When it comes back after so many."""
    async with of_one(database, max_queries=3) as pool:
        pids = [await pool.fetchval("SELECT pg_backend_pid()") for _ in range(8)]
        assert len(set(pids)) > 2
        assert pool.stats().retired["used_up"] >= 2
    async with of_one(database) as pool:
        assert len({await pool.fetchval("SELECT pg_backend_pid()") for _ in range(8)}) == 1


async def test_unused_connections_are_closed(database: str) -> None:
    """Above min_size, after max_inactive_connection_lifetime; 0 turns it off."""
    sizes: dict[str, Any] = {"init_size": 3, "min_size": 1, "max_size": 3}
    async with (
        create_pool(database, **sizes, max_inactive_connection_lifetime=0) as never,
        create_pool(database, **sizes, max_inactive_connection_lifetime=0.1) as pool,
    ):
        await until(lambda: pool.get_size() == 1)
        assert await pool.fetchval("SELECT 1") == 1
        assert never.get_size() == 3
        assert pool.stats().retired["unused"] == 2


async def test_looking_for_unused_ends_with_the_pools_life(database: str) -> None:
    """Or each time that it is opened again there would be one more who looks."""
    async with of_one(database, max_inactive_connection_lifetime=0.1) as pool:
        life = pool._life
    looks: list[None] = []
    async with pool:
        pool._on_alarm = lambda: looks.append(None)
        pool_module._look_for_unused(weakref.ref(pool), weakref.ref(life))
        assert looks == []
        pool_module._look_for_unused(weakref.ref(pool), weakref.ref(pool._life))
        assert looks == [None]
        del pool._on_alarm


async def test_classes_are_the_programs_own(database: str) -> None:
    """Of connections, whose reset is called, and of records; other arguments go to connect."""
    resets: list[str] = []

    class MyRecord(original.Record):
        def __getattr__(self, name: str) -> Any:
            return self[name]

    class MyConnection(original.Connection):
        async def answer(self) -> Any:
            return await self.fetchval("SELECT 42")

        async def reset(self, *, timeout: float | None = None) -> None:
            resets.append("reset")
            await super().reset(timeout=timeout)

    options: dict[str, Any] = {"connection_class": MyConnection, "record_class": MyRecord}
    async with of_one(database, **options, command_timeout=3) as pool:
        async with pool.acquire() as conn:
            assert isinstance(conn, MyConnection)
            assert await conn.answer() == 42
            await conn.execute("SET application_name = 'gone'")
        row = await pool.fetchrow("SELECT current_setting('application_name') AS x")
        assert row.x != "gone"
        assert resets
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep(600)")


async def test_nothing_of_a_lease_is_left(database: str) -> None:
    """A role and a temporary table neither, which asyncpg's pool leaves to the next user."""
    async with of_one(database) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TEMP TABLE mine (x int); SET ROLE pg_monitor")
        assert await pool.fetchval("SELECT current_user::text") != "pg_monitor"
        assert await pool.fetchval("SELECT to_regclass('mine')") is None


async def test_servers_that_are_no_postgresql_get_their_own_reset(database: str) -> None:
    """As asyncpg decides by what the server is able to do."""
    async with of_one(database) as pool:
        async with pool.acquire() as conn:
            caps = conn._server_caps._replace(sql_close_all=False, notifications=False)
            conn._poolkit_slot.connection._server_caps = caps
            await conn.execute("SET application_name = 'gone'; SET ROLE pg_monitor")
        assert await pool.fetchval("SELECT current_user::text") == "pg_monitor"
        assert await pool.fetchval("SELECT current_setting('application_name')") != "gone"


async def test_connection_that_cannot_be_replaced_is_logged(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once an outage, where asyncpg says so and in its words; not if a caller is told."""
    is_offline = False
    failed: list[int] = []

    async def connect(*args: Any, **kwargs: Any) -> Any:
        if is_offline:
            failed.append(len(failed))
            raise OSError("offline")
        return await original.connect(*args, **kwargs)

    async with of_one(database, connect=connect) as pool:
        for _ in range(2):
            failed.clear()
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
            is_offline = True
            await _end(database, pid)
            await until(lambda: len(failed) >= 3)
            is_offline = False
            await until(lambda: pool.get_size() == 1)
    said = [record for record in caplog.records if record.name == "asyncpg.pool"]
    assert [record.getMessage() for record in said] == [
        "Failed to restore the pool connection floor; retrying"
    ] * 2
    assert all(record.exc_info and isinstance(record.exc_info[1], OSError) for record in said)
    caplog.clear()
    is_offline = True
    async with create_pool(database, min_size=0, connect=connect) as pool:
        for _ in range(2):
            with pytest.raises(OSError, match="offline"):
                await pool.acquire()
    assert not [record for record in caplog.records if record.name == "asyncpg.pool"]


async def test_connection_that_init_closes_is_handed_to_nobody(database: str) -> None:
    """The first who waits for it is told, the next is given another."""
    closed: list[Any] = []

    async def init(conn: Any) -> None:
        if not closed:
            closed.append(conn)
            await conn.close()

    async with create_pool(database, min_size=0, max_size=1, init=init) as pool:
        with pytest.raises(OSError, match="closed, while it was set up"):
            await pool.acquire()
        assert await pool.fetchval("SELECT 1") == 1


async def test_terminated_pool_is_collected_when_the_loop_has_run(database: str) -> None:
    """Its tasks let go of it in a few turns."""
    pool = await of_one(database)
    pool.terminate()
    ref = weakref.ref(pool)
    del pool
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    assert ref() is None


async def test_outage_is_the_next_callers_error(own_postgres: Server, own_database: str) -> None:
    """Without a timeout it would be waited for, for ever; afterwards all is as before."""
    async with of_one(own_database) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        own_postgres.stop()
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await asyncio.wait_for(pool.fetchval("SELECT 1"), 10)
        for _ in range(3):
            with pytest.raises((OSError, asyncpg.PostgresError)) as caught:
                await asyncio.wait_for(pool.acquire(), 10)
            assert not isinstance(caught.value, poolkit.PoolError)
        own_postgres.start()

        async def works() -> bool:
            try:
                return bool(await pool.fetchval("SELECT 1") == 1)
            except (OSError, asyncpg.PostgresError):
                return False

        await until_true(works)


# -- what `setup` raises -------------------------------------------------------------------------


async def test_error_of_another_pool_in_setup_is_the_other_pools(database: str) -> None:
    """This one is open, and does not say that it is closing."""
    other = create_pool(database, min_size=0)

    async def setup(_: Any) -> None:
        await other.fetchval("SELECT 1")

    async with of_one(database, setup=setup) as pool:
        with pytest.raises(original.InterfaceError, match="pool is not initialized"):
            await pool.acquire()
        assert not pool.is_closing()


async def test_setup_that_hides_the_loss_of_its_connection_is_asyncpgs_error(database: str) -> None:
    """The lease is over before its holder has it."""

    async def setup(conn: Any) -> None:
        await conn.execute("SELECT 1")
        conn._poolkit_slot.connection._transport.abort()
        await until(lambda: conn._poolkit_slot.release_count > conn._poolkit_release_count)

    async with of_one(database, setup=setup) as pool:
        with pytest.raises(original.InterfaceError, match="no longer leased"):
            await pool.acquire()
        await until(lambda: pool.get_idle_size() == 1)  # a connect under way would be cut off
