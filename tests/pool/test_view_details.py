"""The view, rule by rule: what is forwarded how, and what counts as made from the connection."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sniffio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from poolkit import NotLeased, Pool, PoolError
from poolkit._shell.kinds import attached
from poolkit._shell.view_class import view_class
from tests.fakes import Boom, CleanDriver, FakeConnection, FullDriver, gone, own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def connecting_to(kind: type[FakeConnection], driver: CleanDriver | None = None) -> CleanDriver:
    """Return a driver whose connections are of a kind; by default one that can revoke nothing."""
    driver = CleanDriver() if driver is None else driver

    async def connect() -> FakeConnection:
        connection = kind(driver, next(driver.numbers))
        driver.alive.add(connection)
        return connection

    driver.connect = connect  # type: ignore[method-assign]
    return driver


async def derived_by(kind: type[FakeConnection], use: Callable[[Any], Any]) -> bool:
    """Tell whether doing something on a connection counts as making an object from it."""
    async with Pool(connecting_to(kind), max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            use(view)
            return bool(view._poolkit_slot.has_derived)


@pytest.mark.parametrize("name", ["__await__", "__aenter__", "__aiter__", "__anext__", "__next__"])
def test_object_with_one_such_method_may_act(name: str) -> None:
    """Whatever can be awaited, entered asynchronously, or iterated step by step."""
    assert attached[type("Acting", (), {name: lambda self: self})]


def test_object_with_asynchronous_methods_may_act_and_data_may_not() -> None:
    """Also if the methods are inherited; what can only be called or listed is data."""

    class Statement:
        async def fetch(self) -> None:
            """Do a round trip."""

    class Prepared(Statement):
        """Inherit."""

    class Row:
        def get(self) -> None:
            """Do none."""

        def __iter__(self) -> Any:
            """Be listed."""
            return iter(())

    assert attached[Statement]
    assert attached[Prepared]
    assert not attached[Row]
    assert not attached[int]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda thing: thing,
        lambda thing: [1, thing],
        lambda thing: (thing,),
        lambda thing: {thing},
        lambda thing: frozenset([thing]),
        lambda thing: {"key": thing},
        lambda thing: [*range(7), thing],
    ],
)
async def test_container_of_what_may_act_may_act(wrap: Callable[[Any], Any]) -> None:
    """A look at the first eight will do, where all is revoked anyway."""

    class Statement:
        async def fetch(self) -> None:
            """Do a round trip."""

    assert await counts_as_derived(wrap(Statement()))
    assert not await counts_as_derived(wrap(1))


async def counts_as_derived(value: Any) -> bool:
    """Tell whether a driver that can revoke has to reset after such a result."""

    class Returning(FakeConnection):
        async def get(self) -> Any:
            return value

    driver = connecting_to(Returning, FullDriver())
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        await view.get()
        return bool(view._poolkit_slot.has_derived)


async def test_ninth_element_is_not_looked_at_where_all_is_revoked() -> None:
    """What a library returns many of is of one kind; and keys are names."""
    statement = (n for n in range(1))
    assert not await counts_as_derived([*range(8), statement])
    assert not await counts_as_derived({statement: 1})


async def test_attribute_that_may_act_counts_and_data_does_not() -> None:
    """An iterator kept on the connection, against a label."""

    class Holding(FakeConnection):
        def __init__(self, driver: Any, number: int) -> None:
            super().__init__(driver, number)
            self.steps: Iterator[int] = iter([1])

    assert await derived_by(Holding, lambda conn: conn.steps)
    assert not await derived_by(Holding, lambda conn: conn.label)
    assert not await derived_by(Holding, lambda conn: conn.query)
    assert not await derived_by(Holding, lambda conn: conn.peek())


async def test_methods_of_the_class_are_the_connections_and_not_the_views() -> None:
    """Static methods, class methods, classes and properties come from the connection itself."""

    class Various(FakeConnection):
        class Inner:
            """A class of its own."""

        @staticmethod
        def double(number: int) -> int:
            return 2 * number

        @classmethod
        def called(cls) -> str:
            return cls.__name__

        @property
        def itself(self) -> Any:
            return self

    async with Pool(connecting_to(Various), max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        assert view.double(4) == 8
        assert view.called() == "Various"
        assert view.Inner is Various.Inner
        assert view.itself is view
        assert view.shared == "class attribute"


async def test_forwarded_methods_have_their_names_and_their_words() -> None:
    """For help() and for tracebacks; made once for each class."""
    async with Pool(CleanDriver(), max_size=2) as pool, pool.acquire() as conn:
        kind: Any = type(conn)
        assert kind.__name__ == "FakeConnectionView"
        assert conn.__doc__ == kind.__doc__ == FakeConnection.__doc__
        assert (kind.query.__name__, kind.query.__qualname__) == ("query", "FakeConnection.query")
        assert kind.query.__doc__ == FakeConnection.query.__doc__
        assert kind.peek.__doc__ == FakeConnection.peek.__doc__
        assert kind is view_class(FakeConnection, pool._hooks.view_bases)
        async with pool.acquire() as other:
            assert type(other) is kind
            assert conn != other
            assert len({conn, other}) == 2


async def test_decorated_generator_is_a_generator() -> None:
    """It is asked for each step what a plain one is."""

    def decorated(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    class Reading(FakeConnection):
        @decorated
        def numbers(self) -> Iterator[int]:
            yield self.peek()
            yield self.peek()

    driver = connecting_to(Reading)
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            numbers = view.numbers()
            assert next(numbers) == 1
        with pytest.raises(NotLeased):
            next(numbers)


async def test_asynchronous_generator_can_be_talked_to() -> None:
    """Sent to, thrown into and closed, as any; each step of it is an operation."""
    heard: list[Any] = []

    class Talking(FakeConnection):
        async def talk(self) -> Any:
            try:
                while True:
                    try:
                        heard.append((yield len(heard)))
                        await self.query()
                    except Boom as error:
                        heard.append(error)
            finally:
                heard.append("closed")

    driver = connecting_to(Talking)
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        talk = view.talk()
        assert isinstance(talk, AsyncGenerator)
        assert await anext(talk) == 0
        assert await talk.asend("hello") == 1
        assert await talk.athrow(boom := Boom()) == 2
        gate = view._poolkit_slot.connection.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(anext, talk)
            await anyio.wait_all_tasks_blocked()
            assert view._poolkit_slot.busy == 2  # the step, and the query in it
            gate.set()
        await talk.aclose()
        assert heard == ["hello", boom, None, "closed"]
        kept = view.talk()
    with pytest.raises(NotLeased):
        await anext(kept)


async def test_methods_of_a_drivers_view_take_the_place_of_the_connections() -> None:
    """They get the view; what `object` has is no method of theirs."""

    class Hint:
        __slots__ = ()

        def peek(self) -> str:
            return f"hinted {self.number}"  # type: ignore[attr-defined]

    driver = CleanDriver()
    driver.view_bases = (Hint,)  # type: ignore[attr-defined]
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        assert view.peek() == "hinted 1"
        assert len(view) == 7
        assert await view.query("x") == "x"
        assert isinstance(view, Hint)


async def test_dead_view_says_how_it_died() -> None:
    """At the end of a block, by a release, or with the pool; and what was asked of it."""
    pool = await Pool(CleanDriver(), max_size=3, name="shop").open()
    async with pool.acquire() as blocked:
        pass
    released, taken = await pool.acquire(), await pool.acquire()
    pool.release(released)
    held = await pool.aclose(grace=0)
    assert len(held) == 1
    here = r"test_view_details.py:\d+ in test_dead_view_says_how_it_died"
    for view, how in (
        (blocked, rf"released at the end of the block entered at .*{here}"),
        (released, rf"released at .*{here}"),
        (taken, "taken back when the pool was closed"),
    ):
        words = rf"^\.number: this connection of pool 'shop' is no longer leased: it was {how}$"
        with pytest.raises(NotLeased, match=words):
            view.number  # noqa: B018
    with pytest.raises(NotLeased, match=r"^this connection of pool 'shop' is no longer leased"):
        pool.release(released)


@pytest.mark.parametrize("awaited", [False, True])
async def test_lease_is_good_for_one_connection(*, awaited: bool) -> None:
    """Neither in its block nor after it does the same acquire() give another."""
    async with Pool(CleanDriver(), max_size=2) as pool:
        lease = pool.acquire()
        if awaited:
            pool.release(await lease)
        else:
            async with lease:
                assert pool.stats().leased == 1
                with pytest.raises(PoolError, match="used already: call acquire"):
                    await lease.__aenter__()
        with pytest.raises(PoolError, match="used already: call acquire"):
            async with lease:
                pass
        with pytest.raises(PoolError, match="used already: call acquire"):
            await lease
        assert pool.stats().leased == 0


async def test_failed_operation_is_no_cancelled_one() -> None:
    """Whether it needs a reset is for the driver to say."""

    class Failing(FakeConnection):
        async def fail(self) -> None:
            raise Boom("syntax error")

    driver = connecting_to(Failing)
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            with pytest.raises(Boom, match="syntax error"):
                await view.fail()
            slot = view._poolkit_slot
            assert (slot.touched, slot.busy, slot.cancelled) == (True, 0, False)
        assert pool.stats().idle == 1
        assert driver.calls["reset"] == 0


async def test_busy_is_counted_while_operations_are_under_way() -> None:
    """Of whatever task."""
    driver = CleanDriver()
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        slot = conn._poolkit_slot  # type: ignore[attr-defined]
        slot.connection.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(conn.query)
            await anyio.wait_all_tasks_blocked()
            assert slot.busy == 1
            slot.connection.gate.set()
        assert slot.busy == 0


async def test_view_keeps_its_own_special_methods() -> None:
    """What a connection does when it is collected, copied or asked for the unknown is its own."""
    ended = []

    class Special(FakeConnection):
        def __del__(self) -> None:
            ended.append(self.number)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("column_"):
                return name.removeprefix("column_")
            raise AttributeError(name)

        def __copy__(self) -> Any:
            return self

        def __deepcopy__(self, memo: object) -> Any:
            return self

    async with Pool(connecting_to(Special), max_size=1) as pool:
        conn: Any = await pool.acquire()
        assert conn.column_price == "price"
        with pytest.raises(AttributeError):
            conn.nonsense  # noqa: B018
        for copier in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be copied"):
                copier(conn)
        pool.release(conn)
        del conn
        async with pool.acquire() as another:
            assert another.number == 1
        assert not ended


async def test_dead_view_can_still_be_shown_and_compared() -> None:
    """Or a line of a log would raise."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        async with pool.acquire() as conn:
            assert str(conn) == repr(conn) == f"{conn}"
        assert str(conn) == repr(conn) == f"{conn}" == "<released connection of pool 'fake'>"
        assert conn == conn  # noqa: PLR0124
        assert hash(conn) == hash(conn)


async def test_coroutine_functions_are_told_from_others() -> None:
    """Libraries ask before they call."""
    async with Pool(CleanDriver(), max_size=1) as pool, pool.acquire() as conn:
        assert inspect.iscoroutinefunction(conn.query)
        assert not inspect.iscoroutinefunction(conn.peek)


async def test_coroutine_of_a_plain_method_returns_the_view_for_its_connection() -> None:
    """As everything else does."""

    class Fluent(FakeConnection):
        async def begin(self) -> Fluent:
            return self

        def later(self) -> Any:
            return self.begin()

    async with Pool(connecting_to(Fluent), max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        assert await view.later() is conn


async def test_awaitable_that_can_do_more_is_left_as_it_is() -> None:
    """A pipeline has a length, for example; what is entered gives what it gives."""

    class Pipeline:
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def __await__(self) -> Any:
            return self.connection.query().__await__()

        def __len__(self) -> int:
            return 3

    class Entered:
        def __await__(self) -> Any:
            return checkpoint().__await__()

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *_: object) -> None:
            """Leave."""

    class Modern(FakeConnection):
        def pipeline(self) -> Pipeline:
            return Pipeline(self)

        def enter(self) -> Entered:
            return Entered()

    driver = connecting_to(Modern)
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        assert type(view.pipeline()) is Pipeline
        assert len(view.pipeline()) == 3
        assert await view.pipeline() == "row"
        assert isinstance(view.enter(), Entered)
        async with view.enter() as entered:
            assert type(entered) is Entered


class Select(Coroutine[Any, Any, Any]):
    """What libraries return that can be awaited, entered, iterated, or run as a task."""

    def __init__(self, operation: Any, closed: list[str]) -> None:
        self.operation = operation
        self.closed = closed
        self.text = "SELECT 1"

    def send(self, value: Any) -> Any:
        """Go on."""
        return self.operation.send(value)

    def throw(self, *error: Any) -> Any:
        """Go on with an error."""
        return self.operation.throw(*error)

    def close(self) -> None:
        """Never begin, or end."""
        self.closed.append(self.text)
        self.operation.close()

    def __await__(self) -> Any:
        return self.operation.__await__()

    async def __aenter__(self) -> str:
        return str(await self.operation)

    async def __aexit__(self, *_: object) -> None:
        """Leave."""

    def __aiter__(self) -> Any:
        return self._rows()

    async def _rows(self) -> Any:
        yield await self.operation


class Selecting(FakeConnection):
    """Has such operations."""

    def __init__(self, driver: Any, number: int) -> None:
        super().__init__(driver, number)
        self.closed: list[str] = []

    def select(self) -> Any:
        """Return one."""
        return Select(self.query(), self.closed)


async def in_a_task(start: Callable[[], Any], *, cancelled: bool) -> None:
    """Run what this returns as a task of its own, to its end, or cancel it as far as it comes."""
    if sniffio.current_async_library() == "trio":
        async with anyio.create_task_group() as group:
            group.start_soon(start)
            await wait_all_tasks_blocked()
            if cancelled:
                group.cancel_scope.cancel()
        return
    task = asyncio.create_task(start())  # anyio's would await it: asyncio itself sends and throws
    await wait_all_tasks_blocked()
    if cancelled:
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() == cancelled


async def test_operation_that_is_more_than_a_coroutine_may_be_a_task() -> None:
    """It is under way while that is, and cancelled with it: then the next user has a reset one."""
    driver = connecting_to(Selecting, FullDriver())
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            await in_a_task(view.select, cancelled=False)
            assert own(view).dirty
            assert not view._poolkit_slot.cancelled
        assert driver.calls["reset"] == 0
        async with pool.acquire() as conn:
            view = conn
            own(view).gate = anyio.Event()
            await in_a_task(view.select, cancelled=True)
            assert view._poolkit_slot.cancelled
            assert view._poolkit_slot.busy == 0
        async with pool.acquire():
            assert driver.calls["reset"] == 1


async def test_operation_that_is_closed_is_never_begun() -> None:
    """Nor is what the library has made for it, which is closed too."""
    async with Pool(connecting_to(Selecting), max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        view.select().close()
        assert own(view).closed == ["SELECT 1"]
        assert not own(view).dirty


async def test_operation_awaited_after_the_release_is_never_begun() -> None:
    """Whether it is a coroutine, which is closed, or cannot be."""
    begun: list[str] = []

    class Later:
        def __await__(self) -> Any:
            begun.append("later")
            return checkpoint().__await__()

    class Both(Selecting):
        def later(self) -> Later:
            return Later()

    async with Pool(connecting_to(Both), max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            connection = own(view)
            await view.later()
            late = [view.later(), view.select()]
        for operation in late:
            with pytest.raises(NotLeased):
                await operation
        assert begun == ["later"]
        assert connection.closed == ["SELECT 1"]


@pytest.mark.parametrize("use", ["iterate", "read"])
async def test_operation_that_is_used_as_an_object_costs_the_connection(use: str) -> None:
    """What it then does the view does not see; and it is dead with the lease."""
    async with Pool(connecting_to(Selecting), max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            select = view.select()
            assert isinstance(select, Select)
            if use == "iterate":
                assert [row async for row in select] == ["row"]
            else:
                assert select.text == "SELECT 1"
                assert await select == "row"
            late = view.select()
        assert gone(pool.stats()) == {"derived": 1}
        with pytest.raises(NotLeased):
            late.text  # noqa: B018
        with pytest.raises(NotLeased):
            aiter(late)
        late.close()
