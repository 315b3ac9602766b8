"""What drivers share, as a driver of somebody else's uses it."""

from __future__ import annotations

import inspect
from typing import Any

import anyio
import pytest

from poolkit import NotLeased, Pool, PoolClosed, PoolConfigError, TransactionEnded
from poolkit.drivers import helpers
from tests.conftest import BACKENDS, ROOT
from tests.fakes import FakeConnection, FullDriver, own


def test_every_name_is_documented_in_its_module_and_on_the_page() -> None:
    """All are there, have a docstring unless they are data or a type, and stand in the table."""
    table = inspect.getdoc(helpers) or ""
    text = (ROOT / "docs/howto/write-a-driver.md").read_text(encoding="utf-8")
    for name in helpers.__all__:
        thing = getattr(helpers, name)
        assert not callable(thing) or inspect.getdoc(thing), name
        assert f"`{name}`" in table, name
        assert f"`{name}`" in text, name


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("word://h", "h", 7, ""),
        ("WORD://h:9/a%20b", "h", 9, "/a b"),
        ("word://[::1]:9", "::1", 9, ""),
        ("word://[::1]", "::1", 7, ""),
        ("word:///run/x.sock", "", 7, "/run/x.sock"),
    ],
)
def test_url_is_taken_apart(url: str, host: str, port: int, path: str) -> None:
    """Decoded, with the default of the port."""
    address = helpers.parse_url(url, schemes=("word",), port=7)
    assert (address.scheme, address.host, address.port, address.path) == ("word", host, port, path)


def test_url_s_login_and_query_are_taken_apart() -> None:
    """The password is not shown, and the pool's options are apart from the driver's settings."""
    address = helpers.parse_url(
        "word://me:s3%40cret@h?size=3&max_size=5", schemes=("word",), settings=("size",)
    )
    assert (address.user, address.password) == ("me", "s3@cret")
    assert "s3@cret" not in repr(address)
    assert address.query == {"size": "3"}
    assert helpers.parse_pool_options(address.pool_options.items()) == {"max_size": 5}


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("other://h", "begin with"),
        ("word://me:s3@cret@h", "%40"),
        ("word://me:s3/cret@h", "%2F"),
        ("word://me:s3?cret=@h", "%3F"),
        ("word://me:s3#cret@h", "%23"),
        ("word://h#s3cret", "%23"),
        ("word://me:s3%cret@h", "%25"),
        ("word://s3cret:x@h:1e3", "port"),
        ("word://h:0", "port"),
        ("word://h:65536", "port"),
        ("word://a:s3:cret", "host is malformed"),
        ("word://[s3cret]", "host is malformed"),
        ("word://h?sise=3", "did you mean size"),
    ],
)
def test_malformed_url_is_refused_without_quoting_it(url: str, complaint: str) -> None:
    """In one sentence that says what to write."""
    with pytest.raises(PoolConfigError, match=complaint) as caught:
        helpers.parse_url(url, schemes=("word",), settings=("size",))
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)


def test_missing_library_names_the_package_that_has_the_extra() -> None:
    """As a command to paste."""
    error = helpers.missing_extra("fast", ImportError(name="quick"), "my-words")
    assert "quick is not installed" in str(error)
    assert "pip install 'my-words[fast]'" in str(error)


def test_ended_transaction_names_the_pool() -> None:
    """And is the error that the pool itself would raise."""
    error = helpers.transaction_ended("shop")
    assert isinstance(error, TransactionEnded)
    assert "pool 'shop'" in str(error)


class ViewMethods:
    """A method of a driver's own on views."""

    __slots__ = ()

    async def ask(self, question: str) -> str:
        """Ask."""
        c = helpers.connection_of(self, "ask")
        answer: str = await helpers.watched(self, c.query(question))
        return answer


class Views(FullDriver):
    """A driver whose views have a method more."""

    view_bases: Any = (ViewMethods,)


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_method_of_a_driver_s_own_counts_as_the_connection_s() -> None:
    """It dies with the lease; and if it is cancelled, the connection is reset."""
    driver = Views()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            assert isinstance(conn, FakeConnection)
            assert await view.ask("one") == "one"
        with pytest.raises(NotLeased, match="ask"):
            await view.ask("two")
        async with pool.acquire() as conn, anyio.create_task_group() as group:
            view = conn
            own(conn).gate = anyio.Event()
            group.start_soon(view.ask, "three")
            await anyio.wait_all_tasks_blocked()
            assert driver.calls["reset"] == 0
            group.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert driver.calls["reset"] == 1


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("ends", [True, False])
async def test_driver_that_ends_what_a_lease_has_made_has_nothing_reset_for_it(ends: bool) -> None:
    """The pool looks at what methods return, unless the driver says that there is no need."""

    class Making(FakeConnection):
        async def make(self) -> object:
            return Made()

    class Made:
        """Might act on the connection."""

        async def fetch(self) -> None:
            pass

    class Ending(FullDriver):
        view_bases: Any = (helpers.EndsWithLease,) if ends else ()
        kind = Making

    driver = Ending()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            await view.make()
        await anyio.wait_all_tasks_blocked()
        assert driver.calls["reset"] == (not ends)


# -- connections beside the slots ----------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_connection_beside_the_slots_is_set_up_and_closed_as_the_pools_are() -> None:
    """And counted apart; the pool tells its user when it closes, and terminates what is left."""
    called: list[str] = []

    async def on_connect(_: object) -> None:
        called.append("on_connect")

    async def on_close(_: object) -> None:
        called.append("on_close")

    driver = FullDriver()
    limits: Any = dict.fromkeys(("close_timeout", "ping_timeout", "reset_timeout"), 0.1)
    hooks: Any = {"on_connect": on_connect, "on_close": on_close}
    pool: Pool[Any] = Pool(driver, min_size=0, max_size=1, **limits, **hooks)
    beside = helpers.Beside(pool, lambda: called.append("ended"))
    with pytest.raises(PoolClosed):
        beside.begin()
    async with pool, pool.acquire():
        called.clear()
        beside.begin()
        one = await beside.connect(lambda *_: called.append("lost"))
        two = await beside.connect(lambda *_: None)
        assert (pool.stats().listening, pool.stats().size) == (2, 1)
        driver.watched[one]()
        await beside.close(one)
        assert called == ["on_connect", "on_connect", "lost", "on_close"]
        assert pool.stats().listening == 1
        assert (one in driver.alive, two in driver.alive) == (False, True)
    assert called[4:].count("ended") >= 1
    assert pool.stats().listening == len(driver.alive) == 0


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_connection_beside_the_slots_that_cannot_be_set_up_is_terminated() -> None:
    """Also if it is too late, or cancelled."""

    async def on_connect(_: object) -> None:
        await anyio.sleep_forever()

    driver = FullDriver()
    pool: Pool[Any] = Pool(driver, min_size=0, on_connect=on_connect, connect_timeout=0.01)
    beside = helpers.Beside(pool, lambda: None)
    async with pool:
        beside.begin()
        with pytest.raises(TimeoutError, match=r"connecting took longer than 0\.01 s") as late:
            await beside.connect(lambda *_: None)
        assert beside.can_pass(late.value)
        assert not beside.can_pass(PoolConfigError("wrong"))
        assert (driver.alive, pool.stats().listening) == (set(), 0)
        with anyio.move_on_after(0):
            await beside.connect(lambda *_: None)
        assert (driver.alive, pool.stats().listening) == (set(), 0)
        beside.end()


async def test_pauses_of_a_connection_beside_the_slots_are_the_pools() -> None:
    """From the shortest to the longest, the upper half by chance."""
    pool: Pool[Any] = Pool(FullDriver(), backoff_min=0.1, backoff_max=1.0)
    beside = helpers.Beside(pool, lambda: None)
    for failures, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (10_000, 1.0)):
        pauses = {beside.pause(failures) for _ in range(20)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)
