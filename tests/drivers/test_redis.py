"""redis-py's clients: whatever a lease does to its session, the next one begins where it should."""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from random import Random
from typing import Any

import anyio
import pytest
import redis.asyncio
from redis import exceptions

from poolkit import ConnectFailed, NotLeased, Pool, PoolConfigError
from poolkit.drivers.redis import RedisDriver, create_pool, from_url
from poolkit.testing import Probe, check_driver, check_pool
from tests.drivers.asyncpg_help import LOOPS
from tests.effort import SHARE
from tests.fakes import gone
from tests.postgres import need
from tests.proxy import HOST
from tests.testing.resp import PROGRAMS, redis_server

on_asyncio = pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
TASKS = max(200, round(2000 * SHARE))

#: redis-py says so of pipelines and the like that a test leaves behind, when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed client session")


@pytest.fixture(autouse=True)
def what_is_left_is_collected() -> Iterator[None]:
    """Have it collected here, and not in another test."""
    yield
    gc.collect()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Run a server that wants a password; what is given is the URL of its second database."""
    if not any(map(shutil.which, PROGRAMS)):
        need("redis", "there is no redis-server", "sh scripts/test-tools.sh redis-server")
    async with redis_server() as port:
        bare = redis.asyncio.Redis(host=HOST, port=port)
        async with bare:
            await bare.config_set("requirepass", "s3cret")
        yield f"redis://:s3cret@{HOST}:{port}/2?decode_responses=yes"


@contextlib.asynccontextmanager
async def pool_of_one(url: str, **options: Any) -> AsyncIterator[Pool[Any]]:
    """Open a pool of one connection."""
    async with create_pool(url, max_size=1, **options) as pool:
        yield pool


async def is_fresh(conn: Any) -> bool:
    """Tell whether a session is as it begins."""
    info = await conn.client_info()
    flags = set(info["flags"]) <= {"N"}
    return bool((info["db"], info["name"], info["multi"], info["sub"]) == (2, "", -1, 0) and flags)


# redis-py says so of a pipeline that still watches when it is collected.
@pytest.mark.filterwarnings("ignore:Unclosed client session")
@pytest.mark.filterwarnings("ignore:.*Redis.__del__:pytest.PytestUnraisableExceptionWarning")
@on_asyncio
async def test_driver_keeps_every_line(url: str) -> None:
    """With a lock and with a pipeline that watches as what was made from a connection."""
    driver = from_url(url)
    async with pool_of_one(url.replace("/2", "/0")) as outside, outside.acquire() as other:

        async def count() -> int:
            return len(await other.client_list()) - 1

        async def kill(c: Any) -> None:
            await other.client_kill_filter(_id=await c.client_id())

        async def spoil(c: Any) -> None:
            await c.execute_command("SELECT", 5)
            await c.client_setname("spoiled")

        async def is_spoiled(c: Any) -> bool:
            return not await is_fresh(c)

        async def lock(c: Any) -> Callable[[], Awaitable[object]]:
            made = c.lock("lock")
            return lambda: made.acquire(blocking=False)

        async def watching(c: Any) -> Callable[[], Awaitable[object]]:
            pipeline = c.pipeline()
            await pipeline.watch("key")
            return lambda: pipeline.get("key")

        async def script(c: Any) -> Callable[[], Awaitable[object]]:
            return c.register_script("return 1")  # type: ignore[no-any-return]

        for derive in (lock, watching, script):
            probe: Probe[Any] = Probe(
                operate=lambda c: c.blpop("nothing", 60),
                count=count,
                kill=kill,
                spoil=spoil,
                is_spoiled=is_spoiled,
                derive=derive,
                secrets=("s3cret",),
            )
            report = await check_driver(driver, probe)
            assert "revoke ends the objects made from the connection" in report.checked


async def _multi(conn: Any) -> None:
    await conn.execute_command("MULTI")


async def _watch(conn: Any) -> None:
    await conn.execute_command("WATCH", "key")


async def _select(conn: Any) -> None:
    await conn.execute_command("SELECT", 5)


async def _name(conn: Any) -> None:
    await conn.client_setname("bob")


async def _track(conn: Any) -> None:
    await conn.execute_command("CLIENT", "TRACKING", "ON", "BCAST")


async def _subscribe(conn: Any) -> None:
    await conn.pubsub().subscribe("channel")


async def _log_in_as_another(conn: Any) -> None:
    await conn.execute_command("ACL", "SETUSER", "guest", "on", "nopass", "+@all")
    await conn.execute_command("AUTH", "guest", "any")


async def _no_evict(conn: Any) -> None:
    await conn.execute_command("CLIENT", "NO-EVICT", "ON")


async def _reply_off(conn: Any) -> None:
    await _cancelled(conn.execute_command, "CLIENT", "REPLY", "OFF")


async def _unread(conn: Any) -> None:
    await _cancelled(conn.blpop, "nothing", 60)


async def _cancelled(call: Any, *args: Any) -> None:
    """Cancel a command that waits for its answer."""
    async with anyio.create_task_group() as group:
        group.start_soon(call, *args)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()


async def _monitor(conn: Any) -> None:
    await conn.monitor().__aenter__()


WAYS = [_multi, _watch, _select, _name, _track, _subscribe, _log_in_as_another, _no_evict]
WAYS += [_reply_off, _unread, _monitor]


@on_asyncio
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("leave", WAYS)
async def test_next_lease_finds_nothing_of(
    url: str, leave: Callable[[Any], Awaitable[None]], protocol: int
) -> None:
    """Whether it was undone by RESET, or cost the connection."""
    async with pool_of_one(f"{url}&protocol={protocol}") as pool:
        async with pool.acquire() as conn:
            await leave(conn)
        async with pool.acquire() as conn:
            assert await is_fresh(conn)
            assert await conn.execute_command("ACL", "WHOAMI") == "default"
            assert await conn.set("key", "value")
            assert await conn.get("key") == "value"
            assert (await conn.client_info())["resp"] == str(protocol)
        undone = leave in (_multi, _watch, _select, _name, _track)
        assert pool.stats().connected == (1 if undone else 2)


@on_asyncio
async def test_plain_commands_and_pipelines_keep_the_connection(url: str) -> None:
    """And after plain commands there is no reset at all."""
    async with pool_of_one(url) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                assert isinstance(conn, redis.asyncio.Redis)
                assert await conn.echo("text") == "text"
                await conn.set("text", "a")
                with pytest.raises(exceptions.ResponseError):
                    await conn.incr("text")
            assert pool.stats().idle == 1
            async with pool.acquire() as conn:
                async with conn.pipeline(transaction=False) as pipe:
                    assert await pipe.set("key", 1).incr("key").execute() == [True, 2]
                assert [key async for key in conn.scan_iter("key")] == ["key"]
        for _ in range(3):
            async with pool.acquire() as conn, conn.pipeline() as pipe:
                await pipe.watch("key")
                assert await pipe.get("key") == "2"
                pipe.multi()
                assert await pipe.set("key", 2).execute() == [True]
            async with pool.acquire() as conn, conn.lock("lock", timeout=5):
                assert await conn.get("key") == "2"
        assert pool.stats().connected == 1
        with pytest.raises(NotLeased):
            await conn.get("key")
        await check_pool(pool)


@on_asyncio
async def test_transaction_of_a_pipeline_needs_no_new_login(url: str) -> None:
    """It was sent in one piece, and answered; also if one of its commands has failed."""
    resets: list[object] = []

    async def greet(conn: Any) -> None:
        resets.append(conn)

    async with pool_of_one(url, on_connect=greet) as pool:
        for value in ("1", "text"):
            async with pool.acquire() as conn, conn.pipeline() as pipe:
                await pipe.set("key", value).incr("key").execute(raise_on_error=False)
        assert pool.stats().connected == len(resets) == 1
        async with pool.acquire() as conn:
            await conn.execute_command("MULTI")
        async with pool.acquire() as conn:
            assert await conn.set("key", 1)
        assert (pool.stats().connected, len(resets)) == (1, 2)


@on_asyncio
async def test_callback_for_answers_is_the_lease_s(url: str) -> None:
    """As all that is set on a view."""
    async with pool_of_one(url) as pool:
        async with pool.acquire() as conn:
            await conn.set("key", "value")
            conn.set_response_callback("GET", lambda answer, **_: f"<{answer}>")
            assert await conn.get("key") == "<value>"
        async with pool.acquire() as conn:
            assert await conn.get("key") == "value"
        assert pool.stats().connected == 1


@on_asyncio
async def test_reset_takes_no_former_answer_for_its_own(url: str) -> None:
    """Whether the driver knows that it is outstanding, or it is a message that nobody has read."""
    driver = from_url(url.replace("yes", "no&protocol=2"))
    c = await driver.connect()
    await c.link.send_command("PING")
    with pytest.raises(exceptions.RedisError, match="outstanding"):
        await driver.reset(c)
    await driver.close(c)
    commands: list[tuple[str, ...]] = [("SUBSCRIBE", "channel"), ("GET", "key")]
    for command in commands:
        c = await driver.connect()
        await c.execute_command(*command)
        async with pool_of_one(url) as pool, pool.acquire() as other:
            await other.publish("channel", "unread")
        if command[0] == "GET":
            await c.link.send_command("PING")
            c.link.unanswered = 0  # as if it had not been noticed
        with pytest.raises(exceptions.RedisError, match="was outstanding"):
            await driver.reset(c)
        driver.terminate(c)


@on_asyncio
async def test_connection_that_something_holds_is_not_reset(url: str) -> None:
    """A task may be reading what is published."""
    driver = from_url(url)
    c = await driver.connect()
    pipe = c.pipeline()
    await pipe.watch("key")
    driver.revoke(c)
    with pytest.raises(exceptions.RedisError, match="RESET cannot undo"):
        await driver.reset(c)
    with pytest.raises(exceptions.ConnectionError, match="given back"):
        await pipe.get("key")
    pipe.connection = None  # or redis-py would warn of it
    driver.terminate(c)


@on_asyncio
async def test_lost_connection_is_not_opened_again_in_its_lease(url: str) -> None:
    """What the lease has set would be gone without a word; the next lease has another one."""
    async with pool_of_one(url) as pool:
        async with pool.acquire() as conn:
            with pytest.raises(exceptions.RedisError):
                await conn.client_kill_filter(_id=await conn.client_id(), skipme=False)
                await conn.get("key")
            for _ in range(2):
                with pytest.raises(exceptions.ConnectionError):
                    await conn.get("key")
        async with pool.acquire() as conn:
            await conn.set("key", 1)
        assert pool.stats().connected == 2


@on_asyncio
async def test_one_task_does_not_wait_for_itself(url: str) -> None:
    """The one connection of the lease is its pipeline's, that watches."""
    async with pool_of_one(url) as pool, pool.acquire() as conn, conn.pipeline() as pipe:
        await pipe.watch("key")
        with pytest.raises(exceptions.ConnectionError, match="in use by a pipeline"):
            await conn.get("key")


@on_asyncio
async def test_on_connect_is_run_again_after_a_reset(url: str) -> None:
    """RESET has undone it."""

    async def name(conn: Any) -> None:
        await conn.client_setname("app")

    async with pool_of_one(url, on_connect=name) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.client_getname() == "app"
                await conn.client_setname("other")
        assert pool.stats().connected == 1


@on_asyncio
async def test_wrong_password_is_told_at_once(url: str) -> None:
    """Without showing it."""
    with pytest.raises(ConnectFailed) as caught:
        await create_pool(url.replace("s3cret", "s4cret")).open()
    assert isinstance(caught.value.__cause__, exceptions.AuthenticationError)
    assert "s4cret" not in str(caught.value)


@on_asyncio
async def test_storm_mixes_no_answers(url: str) -> None:
    """Of tasks that are cancelled, select, watch and subscribe."""
    random = Random(8)
    served = 0
    async with create_pool(url, max_size=6, acquire_timeout=None, reset_timeout=20) as pool:

        async def use(number: int) -> None:
            nonlocal served
            what = random.choice(["cancel", *WAYS[:6], *["get"] * 8])
            async with anyio.create_task_group() as group:
                async with pool.acquire() as conn:
                    if what == "cancel":
                        group.start_soon(cancel_after, group.cancel_scope, random.randrange(12))
                    assert await conn.set(f"key{number}", number)
                    assert await conn.get(f"key{number}") == str(number)
                    if callable(what):
                        await what(conn)
                    served += 1
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for number in range(TASKS):
                group.start_soon(use, number)
        assert TASKS // 2 < served <= TASKS
        assert gone(pool.stats())["broken"] > 1
        await check_pool(pool)


async def cancel_after(scope: anyio.CancelScope, turns: int) -> None:
    """Cancel a task after some turns of the loop."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused() -> None:
    """redis-py is not for it."""
    with pytest.raises(ConnectFailed) as caught:
        await create_pool().open()
    assert "asyncio only" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://db.example/x", "the database"),
        ("redis://db.example?decode_responses=maybe", "write yes or no"),
        ("redis://db.example?decode_response=1", "did you mean decode_responses"),
        ("http://db.example", "begin with redis:// or rediss://"),
    ],
)
def test_url_that_cannot_work_is_refused(url: str, complaint: str) -> None:
    """With what to write."""
    with pytest.raises(PoolConfigError, match=complaint):
        create_pool(url)


def test_settings_that_are_poolkits_are_refused() -> None:
    """A retry inside of redis-py, on another connection, would be another session."""
    with pytest.raises(PoolConfigError, match="retry"):
        RedisDriver(connect_kwargs={"retry": None})
    assert create_pool("rediss://db.example:7000/3?max_size=3").name == "db.example:7000/3"
