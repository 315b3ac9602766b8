"""What the errors of a lease say of its connection counts at its release, caught or not."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import gc
import pickle
import warnings
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sniffio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

import poolkit
from poolkit import Pool, Verdict
from poolkit._shell.driver_calls import Hooks
from tests.fakes import FakeConnection, FakeTransaction, FullDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class Said(Exception):
    """An error of the library's, of which the driver says what it says."""

    def __init__(self, verdict: Verdict | None) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class Awaited:
    """What can be awaited, and is no coroutine."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self.start = start

    def __await__(self) -> Any:
        return self.start().__await__()


class Compiled(Coroutine[Any, Any, Any]):
    """A coroutine as Cython makes them, of a type of its own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def send(self, value: Any) -> Any:
        """Go on."""
        return self.inner.send(value)

    def throw(self, *error: Any) -> Any:
        """Go on with an error."""
        return self.inner.throw(*error)

    def close(self) -> None:
        """End."""
        self.inner.close()

    def __await__(self) -> Any:
        return self.inner.__await__()


class Entered(Awaited):
    """What can be awaited, and entered, as libraries have it for cursors."""

    def __init__(self, start: Callable[[], Any], *, at_end: bool = False) -> None:
        super().__init__(start)
        self.at_end = at_end

    async def __aenter__(self) -> Any:
        if not self.at_end:
            await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        if isinstance(error[1], Exception):
            raise error[1]
        await self.start()


class Wrapping(Entered):
    """What makes errors of its own of others."""

    def __init__(self) -> None:
        super().__init__(checkpoint)

    async def __aexit__(self, *error: object) -> None:
        if isinstance(error[1], Exception):
            raise RuntimeError("could not go on") from error[1]


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

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function of the user's, as libraries do to try again."""
        return await function()

    async def each(self, function: Callable[[], Any]) -> AsyncIterator[int]:
        """Run it between rows."""
        yield 1
        await function()

    def wrapping(self) -> Wrapping:
        """Return what makes errors of its own of others."""
        return Wrapping()

    def fail_in_a_future(self, error: BaseException) -> Any:
        """Return what is under way already; on trio there is nothing of the kind."""
        if sniffio.current_async_library() == "trio":
            return self.fail(error)
        return asyncio.ensure_future(self.fail(error))

    def fail_compiled(self, error: BaseException) -> Compiled:
        """Return a coroutine that is not of Python's own kind."""
        return Compiled(self.fail(error))

    def fail_when_awaited(self, error: BaseException) -> Awaited:
        """Return what can be awaited, and is no coroutine."""
        return Awaited(lambda: self.fail(error))

    def fail_entered(self, error: BaseException, *, at_end: bool = False) -> Entered:
        """Return what can be awaited, and entered."""
        return Entered(lambda: self.fail(error), at_end=at_end)

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

    async def closing(self, error: BaseException) -> AsyncIterator[int]:
        """Fail at the end, however that comes."""
        try:
            yield 1
        finally:
            await self.query()
            raise error

    @contextlib.asynccontextmanager
    async def block(self, error: BaseException | None = None) -> AsyncIterator[int]:
        """Fail at the end of a block, by itself; else let through what comes."""
        await self.query()
        yield 1
        if error is not None:
            raise error

    @contextlib.contextmanager
    def plain_block(self, error: BaseException | None = None) -> Iterator[int]:
        """Do so without I/O."""
        yield 1
        if error is not None:
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

    def __delattr__(self, name: str) -> None:
        if name == "failing":
            raise self.error
        super().__delattr__(name)

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


async def awaited_future(conn: Any, error: BaseException) -> None:
    """Await what is under way already."""
    await conn.fail_in_a_future(error)


async def awaited_compiled(conn: Any, error: BaseException) -> None:
    """Await a coroutine that is not of Python's own kind."""
    await conn.fail_compiled(error)


async def awaited_otherwise(conn: Any, error: BaseException) -> None:
    """Await what is no coroutine."""
    await conn.fail_when_awaited(error)


async def awaited_manager(conn: Any, error: BaseException) -> None:
    """Await what could be entered as well."""
    await conn.fail_entered(error)


async def entered(conn: Any, error: BaseException) -> None:
    """Enter it."""
    async with conn.fail_entered(error):
        pass


async def left(conn: Any, error: BaseException) -> None:
    """Enter and leave it."""
    async with conn.fail_entered(error, at_end=True):
        pass


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


async def taken_away(conn: Any, error: BaseException) -> None:
    """Delete an attribute."""
    conn.error = error
    del conn.failing


async def closed(conn: Any, error: BaseException) -> None:
    """Close an asynchronous generator."""
    rows = conn.closing(error)
    await anext(rows)
    await rows.aclose()


async def thrown_into(conn: Any, error: BaseException) -> None:
    """Throw into an asynchronous generator, which raises another error for it."""
    rows = conn.closing(error)
    await anext(rows)
    await rows.athrow(ValueError)


async def at_the_end_of_a_block(conn: Any, error: BaseException) -> None:
    """Leave a block of a generator's."""
    async with conn.block(error):
        pass


async def at_the_end_of_a_plain_block(conn: Any, error: BaseException) -> None:
    """Leave a block of a plain generator's."""
    with conn.plain_block(error):
        pass


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
    *(iterated, iterated_over, listed, listed_over, taken_away),
    *(closed, thrown_into, at_the_end_of_a_block, at_the_end_of_a_plain_block),
    *(awaited_future, awaited_compiled, awaited_otherwise, awaited_manager, entered, left),
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


async def test_error_that_was_merely_being_handled_costs_nothing() -> None:
    """It may be of something else; if it was of this connection, it was seen when it was raised."""
    error = ValueError("of a clean-up")
    error.__context__ = Said(Verdict.SUSPECT)
    driver = Driver()
    async with pool_of(driver, max_size=1) as pool:
        async with caught_in(pool, error):
            pass
        assert driver.numbers_alive() == [1]


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


@contextlib.asynccontextmanager
async def in_plain_block(conn: Any) -> AsyncIterator[None]:
    """Enter a block of a plain generator's."""
    with conn.plain_block():
        yield


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
        retired = pool.stats().retired
        assert (retired["broken"], retired["stale"]) == (1, 1)  # that one, and the idle one


WORST_FIRST = [
    *(Verdict.FATAL, Verdict.SERVER_GONE, Verdict.DEAD, Verdict.SUSPECT, Verdict.STALE),
    *(Verdict.TRANSIENT, Verdict.OK),
]


@pytest.mark.parametrize("worse", range(len(WORST_FIRST) - 1))
def test_error_of_several_parts_says_the_worst_of_them(worse: int) -> None:
    """In either order, in a group or made one from another."""
    hooks = Hooks(Driver())
    first, second = WORST_FIRST[worse : worse + 2]
    for one, other in ((first, second), (second, first)):
        group = ExceptionGroup("both", [Said(one), Said(other)])
        made = Said(one)
        made.__cause__ = Said(other)
        for error in (group, made):
            assert hooks.classify(error, FakeConnection(Driver(), 1)) is first


async def test_connect_is_classified_by_its_own_error_alone() -> None:
    """What that was made from may pass, and it itself not."""
    driver = Driver(connect=[error := caused(Verdict.FATAL)])
    asked = []
    driver.classify = lambda exc, c: asked.append((exc, c))  # type: ignore[method-assign]
    with pytest.raises(poolkit.ConnectFailed):
        async with pool_of(driver):
            pass
    assert asked == [(error, None)]


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
        for around in (
            lambda conn: conn,
            in_transaction,
            lambda _: contextlib.nullcontext(),
            lambda conn: conn.block(),
            in_plain_block,
            lambda conn: conn.fail_entered(ValueError(), at_end=True),
        ):
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


async def test_error_of_another_pools_that_comes_through_an_operation_costs_nothing() -> None:
    """Of this connection it says nothing, whether or not it is made into another one on its way."""

    async def through(conn: Any, theirs: Any, error: BaseException) -> None:
        await conn.run(lambda: theirs.fail(error))

    async def wrapped(conn: Any, theirs: Any, error: BaseException) -> None:
        async with conn.wrapping():
            await theirs.fail(error)

    async def listed(conn: Any, theirs: Any, error: BaseException) -> None:
        async for _ in conn.each(lambda: theirs.fail(error)):
            pass

    for use in (through, wrapped, listed):
        driver = Driver()
        async with pool_of(driver, max_size=1) as pool, pool_of(Driver(), max_size=1) as other:
            async with pool.acquire() as conn:
                async with other.acquire() as theirs:
                    with contextlib.suppress(Said, RuntimeError):
                        await use(conn, theirs, Said(Verdict.SUSPECT))
            assert driver.numbers_alive() == [1], use.__name__
            assert sum(pool.stats().retired.values()) == 0
            assert other.stats().retired["broken"] == 1


async def test_error_of_another_pools_by_which_a_connect_fails_is_classified() -> None:
    """It asks another database for its password, for example."""
    driver = Driver()
    async with pool_of(Driver(), max_size=1) as other:

        async def connect() -> Any:
            async with other.acquire() as theirs:
                await theirs.fail(Said(Verdict.TRANSIENT))

        driver.connect = connect  # type: ignore[method-assign]
        with anyio.move_on_after(0.1) as scope:
            async with pool_of(driver):  # another verdict would end this at once
                pass
        assert scope.cancelled_caught


async def test_error_that_was_heeded_can_still_be_sent_elsewhere() -> None:
    """Copied, and pickled as for another process."""
    async with pool_of(Driver()) as pool, pool.acquire() as conn:
        with pytest.raises(Said) as caught:
            await conn.fail(Said(Verdict.SUSPECT))
        for copied in (pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
            assert copied.verdict is Verdict.SUSPECT


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
            pool._state.suspect(pool._now())
            pool._carry_out()
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
