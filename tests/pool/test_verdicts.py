"""What the errors of a lease say of its connection counts at its release, caught or not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import Pool, Verdict
from tests.fakes import FakeConnection, FakeTransaction, FullDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class Said(Exception):
    """An error of the library's, of which the driver says what it says."""

    def __init__(self, verdict: Verdict | None) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class Connection(FakeConnection):
    """A connection that fails in every way there is."""

    async def fail(self, error: BaseException) -> None:
        """Fail as an operation does."""
        await self.query()
        raise error

    def fail_later(self, error: BaseException) -> Any:
        """Return a coroutine that fails, from a plain method."""
        return self.fail(error)

    def fail_now(self, error: BaseException) -> None:
        """Fail without I/O."""
        raise error

    async def rows(self, error: BaseException) -> AsyncIterator[int]:
        """Fail between rows."""
        yield 1
        await self.fail(error)
        yield 2

    async def blocks(self, error: BaseException) -> AsyncIterator[int]:
        """Fail between blocks, by itself."""
        await self.query()
        yield 1
        raise error

    def halves(self, error: BaseException) -> Iterator[float]:
        """Fail between halves, by itself."""
        yield 0.5
        raise error

    def numbers(self, error: BaseException) -> Iterator[int]:
        """Fail between numbers."""
        yield 1
        self.fail_now(error)

    def __getattr__(self, name: str) -> Any:
        if name == "failing":
            raise self.__dict__["error"]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "failing":
            raise value
        super().__setattr__(name, value)

    async def __aexit__(self, *error: object) -> None:
        """Let what it was given through."""
        if isinstance(error[1], Exception):
            raise error[1]


class Driver(FullDriver):
    """A driver that says of an error what the error says."""

    kind = Connection

    def classify(self, exc: BaseException, c: FakeConnection | None) -> Verdict | None:
        """Look at this error, and at none inside it."""
        return exc.verdict if isinstance(exc, Said) else None

    def numbers_alive(self) -> list[int]:
        """Return which connections there are."""
        return sorted(connection.number for connection in self.alive)


def pool_of(driver: Driver, **options: Any) -> Pool[Any]:
    """Return a pool of connections with methods that no type checker knows."""
    return Pool(driver, **options)


def frozen(verdict: Verdict) -> Exception:
    """Return an error that cannot be changed."""

    @dataclasses.dataclass(frozen=True)
    class Frozen(Said):
        verdict: Verdict | None

        def __hash__(self) -> int:
            return 1

    return Frozen(verdict)


def caused(verdict: Verdict) -> Exception:
    """Return an error made from one made from it."""
    error = RuntimeError("could not save")
    error.__cause__ = ValueError("of the mapper")
    error.__cause__.__cause__ = Said(verdict)
    return error


def circular(verdict: Verdict) -> Exception:
    """Return an error that was made from itself, in the end."""
    error = caused(verdict)
    innermost: Any = error.__cause__
    innermost.__cause__.__cause__ = error
    return error


def grouped(verdict: Verdict) -> Exception:
    """Return a group in a group, with it inside."""
    return ExceptionGroup("a", [ValueError(), ExceptionGroup("b", [KeyError(), caused(verdict)])])


SHAPES = [Said, caused, circular, grouped, frozen]


async def awaited(conn: Any, error: BaseException) -> None:
    """Await an operation."""
    await conn.fail(error)


async def awaited_late(conn: Any, error: BaseException) -> None:
    """Await what a plain method has returned."""
    await conn.fail_later(error)


async def called(conn: Any, error: BaseException) -> None:
    """Call a plain method."""
    conn.fail_now(error)


async def asked(conn: Any, error: BaseException) -> None:
    """Read an attribute."""
    conn.error = error
    conn.failing  # noqa: B018


async def told(conn: Any, error: BaseException) -> None:
    """Set an attribute."""
    conn.failing = error


async def iterated(conn: Any, error: BaseException) -> None:
    """Fail in the middle of `async for`."""
    async for _ in conn.rows(error):
        pass


async def listed(conn: Any, error: BaseException) -> None:
    """Fail in the middle of `for`."""
    list(conn.numbers(error))


async def iterated_over(conn: Any, error: BaseException) -> None:
    """Fail in the middle of `async for`, where the generator itself raises."""
    async for _ in conn.blocks(error):
        pass


async def listed_over(conn: Any, error: BaseException) -> None:
    """Fail in the middle of `for`, where the generator itself raises."""
    list(conn.halves(error))


async def in_a_task(conn: Any, error: BaseException) -> None:
    """Fail in a child task, caught there."""

    async def child() -> None:
        with contextlib.suppress(type(error)):
            await conn.fail(error)

    async with anyio.create_task_group() as group:
        group.start_soon(child)


WAYS = [
    *(awaited, awaited_late, called, asked, told, in_a_task),
    *(iterated, iterated_over, listed, listed_over),
]


@contextlib.asynccontextmanager
async def caught_in(
    pool: Pool[Any], error: BaseException, way: Callable[..., Any] = awaited
) -> AsyncIterator[Any]:
    """Lease a connection, and catch an error of its own inside the block."""
    async with pool.acquire() as conn:
        with contextlib.suppress(BaseException):
            await way(conn, error)
        yield conn


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verdict", [Verdict.SUSPECT, Verdict.DEAD, Verdict.SERVER_GONE])
async def test_connection_that_is_broken_is_not_handed_on_though_the_error_was_caught(
    way: Callable[..., Any], verdict: Verdict
) -> None:
    """However the operation was asked for."""
    driver = Driver()
    async with pool_of(driver, max_size=1) as pool:
        async with caught_in(pool, Said(verdict), way):
            pass
        async with pool.acquire() as conn:
            assert conn.number == 2
        assert pool.stats().retired["broken"] == 1


@pytest.mark.parametrize("way", WAYS)
async def test_change_of_role_that_was_caught_has_every_connection_replaced(
    way: Callable[..., Any],
) -> None:
    """The idle ones too."""
    driver = Driver()
    async with pool_of(driver, max_size=2, min_size=2) as pool:
        async with caught_in(pool, Said(Verdict.STALE), way):
            pass
        for _ in range(2):
            async with pool.acquire() as conn, pool.acquire() as other:
                assert {conn.number, other.number} == {3, 4}
        assert pool.stats().retired["stale"] == 2


@pytest.mark.parametrize("shape", SHAPES)
async def test_error_inside_of_an_error_counts(shape: Callable[[Verdict], Exception]) -> None:
    """Caught, or leaving the block; the driver need not look into it."""
    for leaves in (False, True):
        async with pool_of(Driver(), max_size=1) as pool:
            error = shape(Verdict.SUSPECT)
            with contextlib.suppress(type(error)):
                async with pool.acquire() as conn:
                    await conn.query()
                    if leaves:
                        raise error
                    with contextlib.suppress(type(error)):
                        await conn.fail(error)
            assert pool.stats().retired["broken"] == 1


async def test_error_beside_a_cancellation_counts() -> None:
    """In one group, as a task group raises them."""
    for error in (
        BaseExceptionGroup("both", [asyncio.CancelledError(), Said(Verdict.SUSPECT)]),
        BaseExceptionGroup("both", [KeyboardInterrupt(), Said(Verdict.SUSPECT)]),
    ):
        async with pool_of(Driver(), max_size=1) as pool:
            async with caught_in(pool, error):
                pass
            assert pool.stats().retired["broken"] == 1


async def test_chain_of_errors_without_end_is_not_followed_without_end() -> None:
    """A retry loop that chains ten thousand of them keeps nobody."""
    error: BaseException = Said(Verdict.SUSPECT)
    for number in range(10_000):
        outer = RuntimeError(number)
        outer.__cause__ = error
        error = outer
    driver = Driver()
    asked: list[BaseException] = []
    driver.classify = lambda exc, c: asked.append(exc)  # type: ignore[method-assign]
    async with pool_of(driver, max_size=1) as pool:
        async with caught_in(pool, error):
            pass
    assert len(asked) == 100


@pytest.mark.parametrize("verdict", [Verdict.OK, None, Verdict.TRANSIENT, Verdict.FATAL])
async def test_error_of_a_statement_that_was_caught_costs_nothing(verdict: Verdict | None) -> None:
    """The same connection, without a reset."""
    driver = Driver()
    async with pool_of(driver, max_size=1) as pool:
        async with caught_in(pool, Said(verdict)):
            pass
        async with pool.acquire() as conn:
            assert conn.number == 1
        assert driver.calls["reset"] == 0


async def test_two_errors_of_one_lease_both_count() -> None:
    """The role has changed, and then the connection was lost; in either order."""
    for errors in ((Verdict.STALE, Verdict.SUSPECT), (Verdict.SUSPECT, Verdict.STALE)):
        async with pool_of(Driver(), max_size=2, min_size=2) as pool:
            async with caught_in(pool, Said(errors[0])) as conn:
                with pytest.raises(Said):
                    await conn.fail(Said(errors[1]))
            await wait_all_tasks_blocked()
            assert pool.stats().retired == {**pool.stats().retired, "broken": 1, "stale": 1}


async def test_server_that_is_gone_has_the_others_pinged_though_the_error_was_caught() -> None:
    """Before their next use."""
    driver = Driver()
    async with pool_of(driver, max_size=3, min_size=3) as pool:
        async with caught_in(pool, Said(Verdict.SERVER_GONE)):
            assert driver.calls["ping"] == 0
        await wait_all_tasks_blocked()
        assert driver.calls["ping"] == 2


async def test_lease_that_begins_anew_has_nothing_to_do_with_the_last_ones_errors() -> None:
    """A renewal that is not to come again is not done by the next one either."""
    driver = Driver()
    async with pool_of(driver, max_size=1, backoff_max=60.0) as pool:
        for _ in range(3):
            async with caught_in(pool, Said(Verdict.STALE)) as conn:
                number = conn.number
        async with pool.acquire() as conn:
            assert not conn._poolkit_slot.verdicts
            assert conn.number == number == 2


async def test_error_that_comes_after_the_release_says_nothing_of_the_next_lease() -> None:
    """Its task was under way when the connection was given back."""
    driver = Driver()
    async with pool_of(driver, max_size=1) as pool, anyio.create_task_group() as group:

        async def fail() -> None:
            with contextlib.suppress(Said):
                await conn.fail(Said(Verdict.SUSPECT))

        async with pool.acquire() as conn:
            real = next(iter(driver.alive))
            real.gate = anyio.Event()
            group.start_soon(fail)
            await wait_all_tasks_blocked()
        real.gate.set()
        real.gate = None
        async with pool.acquire() as conn:
            assert conn.number == 1
        assert pool.stats().idle == 1


async def test_transaction_that_fails_at_its_ends_is_heeded() -> None:
    """Its begin, its commit, and a rollback whose error nobody sees."""

    class Failing(FakeTransaction):
        def __init__(self, at: str) -> None:
            self.at = at

        async def __aenter__(self) -> None:
            if self.at == "begin":
                raise Said(Verdict.SUSPECT)

        async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
            if self.at == ("commit" if error is None else "rollback"):
                raise Said(Verdict.SUSPECT)

    for at in ("begin", "commit", "rollback"):
        driver = Driver()
        driver.transaction = lambda c, at=at: Failing(at)  # type: ignore[method-assign, assignment, misc]
        async with pool_of(driver, max_size=1) as pool:
            async with pool.acquire() as conn:
                with contextlib.suppress(Said, ValueError):
                    async with in_transaction(conn):
                        if at == "rollback":
                            raise ValueError(at)
            assert pool.stats().retired["broken"] == 1, at


def in_transaction(conn: Any) -> Any:
    """Begin a transaction on a connection that is held."""
    return poolkit.transaction(conn)


async def test_connection_that_nobody_gives_back_is_heeded_all_the_same() -> None:
    """The pool learns that the role has changed when the handle is collected."""
    driver = Driver()
    async with pool_of(driver, max_size=2, min_size=2) as pool:
        conn: Any = await pool.acquire()
        with contextlib.suppress(Said):
            await conn.fail(Said(Verdict.STALE))
        del conn
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
            await wait_all_tasks_blocked()
        async with pool.acquire() as conn:
            assert conn.number > 2


# -- errors of others ----------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Verdict.SUSPECT, Verdict.STALE, Verdict.SERVER_GONE])
@pytest.mark.parametrize("shape", SHAPES[:-1])
async def test_error_of_another_pools_connection_costs_none_of_this_one(
    verdict: Verdict, shape: Callable[[Verdict], Exception]
) -> None:
    """It passes through a block, a transaction, and a connection that is a context manager."""
    driver = Driver()
    error = shape(verdict)
    async with pool_of(driver, max_size=2, min_size=2) as pool, pool_of(Driver()) as other:
        for around in (lambda conn: conn, in_transaction, lambda _: contextlib.nullcontext()):
            with pytest.raises(type(error)):
                async with pool.acquire() as conn, around(conn), other.acquire() as theirs:
                    await conn.query()
                    await theirs.fail(error)
        await wait_all_tasks_blocked()
        assert driver.numbers_alive() == [1, 2]
        assert driver.calls["ping"] == 0
        assert sum(pool.stats().retired.values()) == 0


async def test_error_translated_from_another_pools_costs_nothing_either() -> None:
    """Made from it, or in a group with one of this pool's."""
    driver = Driver()
    async with pool_of(driver, max_size=1) as pool, pool_of(Driver()) as other:
        with pytest.raises(RuntimeError):
            async with pool.acquire() as conn, other.acquire() as theirs:
                await conn.query()
                try:
                    await theirs.fail(Said(Verdict.SUSPECT))
                except Said as error:
                    raise RuntimeError("could not fetch") from error
        assert driver.numbers_alive() == [1]


# -- news of a death -----------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True])
async def test_connection_that_dies_while_leased_is_not_handed_on(*, used: bool) -> None:
    """Its library has said so, and is_dead, which proves nothing by False, has not."""
    driver = Driver()
    async with pool_of(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            if used:
                await conn.query()
            driver.watched[next(iter(driver.alive))]()
            await wait_all_tasks_blocked()
            assert pool.stats().leased == 1
        async with pool.acquire() as conn:
            assert conn.number == 2
        assert pool.stats().retired["broken"] == 1


@pytest.mark.parametrize("job", ["reset", "ping"])
async def test_connection_that_dies_while_it_is_recycled_is_not_handed_on(job: str) -> None:
    """Though the job succeeds."""
    driver = Driver(**{job: [gate := anyio.Event()]})
    async with pool_of(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            if job == "reset":
                conn.cursor()
        if job == "ping":
            pool._book.suspect(pool._now())
            pool._settle()
        await wait_all_tasks_blocked()
        assert pool.stats().recycling == 1
        driver.watched[next(iter(driver.alive))]()
        await wait_all_tasks_blocked()
        gate.set()
        async with pool.acquire() as conn:
            assert conn.number == 2


async def test_error_of_an_object_made_from_a_connection_is_heeded_if_the_driver_tells() -> None:
    """While its lease lasts, and not for the next one."""
    driver = Driver()
    async with pool_of(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            real = next(iter(driver.alive))
            tell = driver.watched[real]
            await conn.query()
            tell(Said(Verdict.OK))
        tell(Said(Verdict.SUSPECT))  # nobody has it
        async with pool.acquire() as conn:
            assert conn.number == 1
            tell(Said(Verdict.SUSPECT))
            await conn.query()
        async with pool.acquire() as conn:
            assert conn.number == 2


@pytest.mark.parametrize("nonsense", ["stale", [], NotImplemented])
async def test_classify_that_returns_no_verdict_says_nothing(nonsense: Any) -> None:
    """Of a caught error, of one that leaves the block, and of a failed reset."""
    driver = Driver(reset=[Said(None)])
    driver.classify = lambda *_: nonsense  # type: ignore[method-assign]
    async with pool_of(driver, max_size=1) as pool:
        with pytest.raises(Said):
            async with caught_in(pool, Said(None)) as conn:
                conn.cursor()
                raise Said(None)
        async with pool.acquire() as conn:
            assert conn.number == 2


async def test_classify_that_raises_about_a_caught_error_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The user sees the error of the operation, and nothing of the driver's."""
    driver = Driver()

    def classify(*_: object) -> None:
        raise KeyError("rude")

    driver.classify = classify  # type: ignore[method-assign, assignment]
    async with pool_of(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            with pytest.raises(Said):
                await conn.fail(Said(Verdict.DEAD))
        assert pool.stats().idle == 1
    assert "Driver.classify raised" in caplog.text
