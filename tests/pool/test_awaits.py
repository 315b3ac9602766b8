"""Hooks and methods whose results cannot be awaited, and other things in the place of what is meant."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

import poolkit
from poolkit import CoDel, ConnectFailed, Pool, PoolConfigError, Verdict
from tests.fakes import FakeConnection, FakeDriver, FullDriver, gone

HOOKS = ("on_connect", "on_close", "on_acquire")


def _sync(_: Any) -> None:
    """Be no async function."""


sync: Any = _sync


def listing(_: Any) -> list[str]:
    """Be none either, with a result."""
    return ["secret"]


async def generating(_: Any) -> AsyncIterator[None]:
    """Have a `yield`."""
    yield


def generating_too(_: Any) -> Iterator[None]:
    """Have one, too."""
    yield


@contextlib.asynccontextmanager
async def entered(_: Any) -> AsyncIterator[None]:
    """Be a context manager."""
    yield


async def plain(_: Any) -> None:
    """Be what is wanted."""


WRONG: dict[str, tuple[Any, str]] = {
    "sync": (sync, r"_sync at .* returned None, which cannot be awaited: write `async def`$"),
    "list": (listing, r"returned an object of type list, which cannot be awaited: write `async d"),
    "context manager": (entered, r"returned an object of type _Async\w+, .*without a `yield`$"),
    "partial": (functools.partial(sync), r"functools.partial\(.* returned None, which cannot"),
    "bound method": ({}.get, r"get of dict.* returned None, which cannot be awaited"),
}


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


# -- at first use --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", [FakeDriver, FullDriver])
async def test_on_connect_that_cannot_be_awaited_fails_connecting_at_once(
    kind: type[FakeDriver], wrong: str
) -> None:
    """Nobody waits for it to pass; the cause names the option."""
    hook, words = WRONG[wrong]
    driver = kind()
    pool = Pool(driver, on_connect=hook, acquire_timeout=600)
    with anyio.fail_after(5), pytest.raises(ConnectFailed, match="on_connect=") as caught:
        await pool.open()
    assert isinstance(caught.value.__cause__, PoolConfigError)
    with pytest.raises(PoolConfigError, match=f"^on_connect=.*{words}"):
        raise caught.value.__cause__
    assert driver.calls["connect"] == 1
    assert not driver.alive


async def test_on_connect_that_cannot_be_awaited_is_fatal_whatever_the_driver_says() -> None:
    """A driver may take each error for one that passes; newcomers are told at once, too."""

    class Hopeful(FullDriver):
        def classify(self, exc: BaseException, c: FakeConnection | None) -> Verdict | None:
            return Verdict.TRANSIENT

    async with Pool(Hopeful(), min_size=0, on_connect=sync, acquire_timeout=600) as pool:
        for _ in range(2):
            with anyio.fail_after(5), pytest.raises(ConnectFailed, match="on_connect="):
                await pool.acquire()


@pytest.mark.parametrize("wrong", WRONG)
async def test_on_acquire_that_cannot_be_awaited_is_the_callers_error(wrong: str) -> None:
    """And the connection goes back."""
    hook, words = WRONG[wrong]
    driver = FakeDriver()
    async with Pool(driver, max_size=1, on_acquire=hook) as pool:
        for _ in range(3):
            with pytest.raises(PoolConfigError, match=f"^on_acquire=.*{words}"):
                await pool.acquire(timeout=5)
        stats = pool.stats()
        assert (stats.leased, stats.failed, stats.connected) == (0, 3, 1)


@pytest.mark.parametrize("wrong", WRONG)
async def test_on_close_that_cannot_be_awaited_is_logged_once(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And the connections are closed politely all the same."""
    hook, words = WRONG[wrong]
    driver = FakeDriver()
    async with Pool(driver, min_size=3, max_size=3, on_close=hook):
        pass
    (said,) = errors(caplog)
    with pytest.raises(PoolConfigError, match=f"^on_close=.*{words}"):
        raise PoolConfigError(said)
    assert driver.calls["close"] == 3
    assert not driver.alive


async def test_type_error_of_a_hooks_own_stays_what_it_is() -> None:
    """Only the result of the call is looked at."""

    async def own(_: Any) -> None:
        await checkpoint()
        await sync(_)

    async with Pool(FakeDriver(), max_size=1, on_acquire=own) as pool:
        with pytest.raises(TypeError, match="NoneType") as caught:
            await pool.acquire()
        assert not isinstance(caught.value, PoolConfigError)
    with pytest.raises(ConnectFailed) as failed:
        await Pool(FakeDriver(), on_connect=own).open()
    assert type(failed.value.__cause__) is TypeError


class Later:
    """Can be awaited, once."""

    def __init__(self, _: Any) -> None:
        self.is_awaited = False

    def __await__(self) -> Any:
        self.is_awaited = True
        return checkpoint().__await__()


class Callable:
    """An object that can be called like an async function."""

    async def __call__(self, _: Any) -> None:
        """Do nothing."""

    async def method(self, _: Any, more: str = "") -> None:
        """Do nothing either."""


@types.coroutine
def of_old(_: Any) -> Iterator[Any]:
    """Be a coroutine of before `async def`."""
    yield from checkpoint().__await__()


async def with_settings(_: Any, settings: str) -> None:
    """Take what a decorator gives beside the connection."""


@functools.wraps(with_settings)
async def decorated(conn: Any) -> None:
    """Give the settings."""
    await with_settings(conn, "some")


#: As with everything in C that does not say how it is called.
run_in: Any = contextvars.copy_context().run
of_unknown_signature = functools.partial(run_in, plain)

FINE: dict[str, Any] = {
    "decorator that gives more": decorated,
    "async def": plain,
    "lambda": lambda conn: plain(conn),
    "partial": functools.partial(plain),
    "object": Callable(),
    "method": Callable().method,
    "class that can be awaited": Later,
    "types.coroutine": of_old,
    "wrapped": functools.wraps(plain)(lambda *args: plain(*args)),
    "of unknown signature": of_unknown_signature,
}


@pytest.mark.parametrize("fine", FINE)
async def test_whatever_gives_something_to_await_is_a_hook(
    fine: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only an async function."""
    hooks: dict[str, Any] = dict.fromkeys(HOOKS, FINE[fine])
    async with Pool(FakeDriver(), **hooks) as pool, pool.acquire() as conn:
        assert await conn.query() == "row"
    assert errors(caplog) == []


# -- methods of drivers --------------------------------------------------------------------------


def synchronous(name: str) -> FakeDriver:
    """Return a driver one of whose methods is no async function."""
    driver = FullDriver()
    setattr(driver, name, lambda *_: None)
    return driver


async def test_drivers_connect_that_cannot_be_awaited_fails_at_once() -> None:
    """And what it has returned, the connection itself, is terminated."""
    driver = FullDriver()
    made: list[FakeConnection] = []

    def connect() -> FakeConnection:
        made.append(conn := FakeConnection(driver, 1))
        return conn

    driver.connect = connect  # type: ignore[assignment, method-assign]
    pool = Pool(driver, acquire_timeout=600)
    with anyio.fail_after(5), pytest.raises(ConnectFailed) as caught:
        await pool.open()
    assert str(caught.value.__cause__) == (
        "FullDriver.connect() returned an object of type FakeConnection, which cannot be awaited: "
        "write `async def`"
    )
    assert [conn.dead for conn in made] == [True] * len(made) != []


@pytest.mark.parametrize("made", [sync, generating, generating_too], ids=lambda made: made.__name__)
async def test_drivers_connect_that_makes_no_connection_has_none_terminated(made: Any) -> None:
    """The driver could not do so: what it would be given is None, or steps."""
    driver = FullDriver()
    driver.connect = lambda: made(None)  # type: ignore[method-assign]
    with anyio.fail_after(5), pytest.raises(ConnectFailed, match=r"FullDriver\.connect\(\) return"):
        await Pool(driver, acquire_timeout=600).open()
    assert "terminate" not in driver.log


async def test_drivers_set_up_that_cannot_be_awaited_fails_at_once() -> None:
    """Its own name is in the error, and not that of ``on_connect``."""
    pool = Pool(synchronous("set_up"), on_connect=plain, acquire_timeout=600)
    with anyio.fail_after(5), pytest.raises(ConnectFailed, match=r"FullDriver.set_up\(\) returned"):
        await pool.open()


async def test_sync_hook_that_a_driver_awaits_itself_is_named() -> None:
    """A driver with a ``set_up``."""

    class SettingUp(FullDriver):
        async def set_up(self, c: FakeConnection, on_connect: Any) -> None:
            await on_connect(c)

    with pytest.raises(ConnectFailed, match=r"on_connect=<function _sync .* returned None"):
        await Pool(SettingUp(), on_connect=sync).open()


@pytest.mark.parametrize("name", ["ping", "reset", "close"])
async def test_drivers_method_that_cannot_be_awaited_is_logged_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs each connection; who acquires is served by others."""
    driver = synchronous(name)
    async with Pool(driver, max_size=1, ping_after=0.0) as pool:
        for _ in range(3):
            async with pool.acquire(timeout=5) as conn:
                await conn.query()
                conn.cursor()
            await wait_all_tasks_blocked()
        if name != "close":
            assert gone(pool.stats())["broken"] >= 2
    (said,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    words = f"FullDriver.{name}() returned None, which cannot be awaited: write `async def`"
    assert words in said.getMessage()
    assert not driver.alive


# -- when the pool is made -----------------------------------------------------------------------


async def without_arguments() -> None:
    """Take no connection."""


async def with_too_many(_: Any, more: Any) -> None:
    """Take more than a connection."""


class Plain:
    """No hook."""


UNFIT: dict[str, tuple[Any, str]] = {
    "asynchronous generator": (generating, "has a `yield`: give an async function of one conn"),
    "generator": (generating_too, "has a `yield`"),
    "partial of a generator": (functools.partial(generating), "has a `yield`"),
    "class": (Plain, "is a class: give an async function"),
    "text": ("SET x", "'SET x' is not callable: give an async function"),
    "no argument": (without_arguments, r"with a connection alone \(too many positional arguments"),
    "two arguments": (with_too_many, r"alone \(missing a required argument: 'more'\)"),
    "method without self": (types.MethodType(without_arguments, 1), "with a connection alone"),
}


@pytest.mark.parametrize("option", HOOKS)
@pytest.mark.parametrize("unfit", UNFIT)
def test_hook_that_can_never_work_is_refused_when_the_pool_is_made(option: str, unfit: str) -> None:
    """By the name of its option."""
    hook, words = UNFIT[unfit]
    given: dict[str, Any] = {option: hook}
    with pytest.raises(PoolConfigError, match=f"^{option}=.*{words}"):
        Pool(FakeDriver(), **given)


@pytest.mark.parametrize("option", HOOKS)
def test_result_of_a_call_in_place_of_a_hook_is_refused(option: str) -> None:
    """`on_connect=f()` is meant to be `on_connect=f`."""
    call = plain(None)
    steps: Any = generating(None)
    for made in (call, steps):
        given: dict[str, Any] = {option: made}
        with pytest.raises(PoolConfigError, match="called already: give the function itself"):
            Pool(FakeDriver(), **given)
    call.close()


def test_class_of_a_policy_is_refused() -> None:
    """With what is meant."""
    wrong: Any = CoDel
    with pytest.raises(PoolConfigError, match=r"^shedding=CoDel is the class: .*, CoDel\(\)$"):
        Pool(FakeDriver(), shedding=wrong)


def test_name_that_is_no_text_is_refused() -> None:
    """Bytes, too."""
    wrong: Any = b"shop"
    with pytest.raises(PoolConfigError, match="name=b'shop' is not a string"):
        Pool(FakeDriver(), name=wrong)


class Half:
    """Has two methods of a driver."""

    async def connect(self) -> None:
        """Return nothing."""

    async def ping(self, c: object) -> None:
        """Do nothing."""


class OfAnEarlierPoolkit(FakeDriver):
    """Has the old name of ``view_bases``."""

    view = (object,)


NO_DRIVERS: dict[str, tuple[Any, str]] = {
    "class": (FakeDriver, r"the class FakeDriver: give an instance, FakeDriver\(\.\.\.\)"),
    "url": ("postgresql://app:s3cr3t@db/shop", r"type str, .*use poolkit\.create_pool\(url\)"),
    "none": (None, "type NoneType, which is no driver"),
    "pool": (Pool(FakeDriver()), "type Pool, which is no driver"),
    "half": (Half(), r"it has no is_dead\(\), reset\(\), close\(\), terminate\(\)\. For"),
    "old name": (OfAnEarlierPoolkit(), r"OfAnEarlierPoolkit: .*`view` is called view_bases"),
    "function": (lambda: FakeDriver(), "type function, which is no driver"),
}


@pytest.mark.parametrize("given", NO_DRIVERS)
def test_what_is_no_driver_is_refused(given: str) -> None:
    """And never quoted: it may have a password."""
    wrong, words = NO_DRIVERS[given]
    with pytest.raises(PoolConfigError, match=words) as caught:
        Pool(wrong)
    assert "s3cr3t" not in str(caught.value)


async def test_pool_that_is_not_open_says_how_to_open_it() -> None:
    """What `create_pool` has returned is to be entered, or opened."""
    pool = poolkit.create_pool("sqlite+threads:///:memory:", max_size=1)
    with pytest.raises(poolkit.PoolClosed, match=r"not open: use `async with pool:` or `await po"):
        await pool.acquire()
