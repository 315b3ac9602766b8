"""Without `revoke`, what is not data for certain costs its connection: it may act on it later."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import logging
import types
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkit import Pool
from poolkit._data import DEPTH, MOST, is_data
from tests.effort import EFFORT
from tests.fakes import CleanDriver, FakeConnection, FullDriver

if TYPE_CHECKING:
    from collections.abc import Callable


class Live:
    """Something that acts on the connection, by plain methods only; it can be a key."""

    def __init__(self, connection: Any = None) -> None:
        self.connection = connection

    def peek(self) -> Any:
        """Read whatever is there."""
        return self.connection.peek()


class Colour(enum.Enum):
    """A member has what it was made of, and is always the same."""

    RED = 1
    BLUE = ("blue", 2)


class Mark(enum.IntFlag):
    """So have those that are made of others."""

    BOLD = 1
    THIN = 2


UTC = dt.UTC
EAST = dt.timezone(dt.timedelta(hours=2), "east")
WHOLE: list[Any] = [
    *(None, True, 7, 1.5, 2j, "text", b"bytes", bytearray(b"x"), range(3)),
    *(decimal.Decimal("1.5"), uuid.UUID(int=7), Colour.RED, Colour.BLUE, Mark.BOLD | Mark.THIN),
    *(dt.date(2026, 1, 1), dt.timedelta(seconds=1), UTC, EAST),
    *(dt.datetime(2026, 1, 1, tzinfo=EAST), dt.time(1, tzinfo=UTC)),
    dt.datetime(2026, 1, 1),  # noqa: DTZ001  # as a database has them
]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a library's."""

    value: Any


class Named(NamedTuple):
    """A tuple that is more than one."""

    value: Any


class Zone(dt.tzinfo):
    """A time zone that carries something."""

    def __init__(self, live: Any) -> None:
        self.live = live

    def utcoffset(self, _: Any, /) -> dt.timedelta:
        """Be UTC."""
        return dt.timedelta(0)

    def dst(self, _: Any, /) -> None:
        """Be UTC."""

    def tzname(self, _: Any, /) -> str:
        """Be UTC."""
        return "UTC"


def subclassed(kind: type) -> Callable[[Any], Any]:
    """Return what makes an instance of a subclass, with something live in an attribute."""
    more: Any = type(f"My{kind.__name__}", (kind,), {})

    def make(live: Any) -> Any:
        made = more()
        made.live = live
        return made

    return make


def enumerated(live: Any) -> Any:
    """Return a member of an enum, made of something live."""
    return enum.Enum("Made", {"member": live}).member  # type: ignore[attr-defined]


class Slotted:
    """What an enum may be made with, so that its members have a place for something."""

    __slots__ = ("live",)


def stocked(kind: Any, live: Any) -> Any:
    """Return a member of an enum that carries something live."""
    kind.A.live = live
    return kind.A


def listed(kind: Any, live: Any) -> Any:
    """Return a member of an enum that is a list, with something live in it."""
    kind.A.append(live)
    return kind.A


async def suspended(live: Any) -> Any:
    """Hold something live in a frame."""
    return live


def closed(live: Any) -> Any:
    """Return a coroutine that holds something live, closed so that nobody warns of it."""
    coroutine = suspended(live)
    coroutine.close()
    return coroutine


def raised(live: Any) -> Exception:
    """Return an error that holds something live."""
    return ValueError(live)


#: What may have something live inside, and be no container.
CARRIERS: list[Callable[[Any], Any]] = [
    lambda live: live,
    Row,
    Named,
    lambda live: lambda: live,
    lambda live: functools.partial(print, live),
    lambda live: live.peek,
    lambda live: types.SimpleNamespace(live=live),
    lambda live: iter([live]),
    lambda live: (part for part in [live]),
    lambda live: map(str, [live]),
    lambda live: memoryview(bytearray(b"x")),  # of the connection's buffer
    lambda live: collections.deque([live]),
    lambda live: collections.OrderedDict(live=live),
    lambda live: collections.defaultdict(lambda: live),
    lambda live: types.MappingProxyType({"live": live}),
    lambda live: {"live": live}.values(),
    lambda live: slice(live),
    lambda live: dt.time(tzinfo=Zone(live)),
    lambda live: dt.datetime(2026, 1, 1, tzinfo=Zone(live)),
    lambda live: uuid.UUID(int=1, is_safe=live),
    lambda live: type(live),
    enumerated,
    lambda live: stocked(enum.Enum("Slotted", {"A": 1}, type=Slotted), live),
    lambda live: stocked(enum.Enum("Plain", {"A": 1}), live),
    lambda live: listed(enum.Enum("Listed", {"A": [1]}, type=list), live),
    closed,
    raised,
    *map(subclassed, (int, str, float, bytes, list, dict, set, tuple, decimal.Decimal)),
]
#: What has something inside, of which it is known how to look at it.
CONTAINERS: list[Callable[[Any], Any]] = [
    lambda value: [value],
    lambda value: (value,),
    lambda value: {"key": value},
    lambda value: [[], {}, *range(8), value],
    lambda value: [*range(100), value, *range(100)],
]
#: The same for what can be hashed.
HASHING: list[Callable[[Any], Any]] = [
    lambda value: {value},
    lambda value: frozenset([1, value]),
    lambda value: {value: 1},
    lambda value: {(1, value): 1},
]
DATA = st.recursive(
    st.sampled_from(WHOLE),
    lambda inner: st.one_of(
        st.lists(inner, max_size=12),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=4),
        st.frozensets(st.integers(), max_size=4),
    ),
    max_leaves=30,
)


@given(value=DATA)
@settings(max_examples=200 * EFFORT, deadline=None)
def test_nested_data_is_data(value: Any) -> None:
    """Whatever it is made of."""
    assert is_data(value)


@given(
    carry=st.sampled_from(CARRIERS),
    wraps=st.lists(st.sampled_from([*CONTAINERS, *HASHING]), max_size=DEPTH + 4),
    beside=DATA,
)
@settings(max_examples=500 * EFFORT, deadline=None)
def test_something_live_is_found_wherever_it_is(
    carry: Callable[[Any], Any], wraps: list[Callable[[Any], Any]], beside: Any
) -> None:
    """In whatever it is hidden, and beside whatever."""
    value = carry(Live())
    for wrap in wraps:
        try:
            value = wrap(value)
        except (TypeError, ValueError):  # it cannot be hashed
            value = [value]
    assert not is_data(value)
    assert not is_data([beside, value])
    assert not is_data({"beside": beside, "value": value})


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_plain_value_is_data(value: Any) -> None:
    """Alone, and in each kind of container."""
    assert is_data(value)
    for wrap in CONTAINERS:
        assert is_data(wrap(value))


def test_more_than_can_be_looked_at_is_no_data() -> None:
    """Too deep, without an end, too much: in one container, or in many."""
    value: Any = 1
    for _ in range(DEPTH):
        value = [value]
    assert is_data(value)
    assert not is_data([value])
    endless: list[Any] = []
    endless.append(endless)
    assert not is_data(endless)
    assert not is_data([endless] * 1000)
    assert is_data([0] * (MOST - 1))
    assert not is_data([0] * MOST)
    assert is_data([bytearray(2 * MOST), bytes(2 * MOST)])
    assert is_data([[0] * 9] * (MOST // 20))
    assert not is_data([[0] * 9] * (MOST // 10))


def test_what_can_still_change_is_no_data_if_it_is_the_connections_own() -> None:
    """The next user's settings would be in the same dict."""
    values: list[Any] = [[], {}, set(), bytearray(), ([],), (1, {})]
    for value in values:
        assert is_data(value)
        assert not is_data(value, unchanging=True)
    assert is_data((1, frozenset(["a"])), unchanging=True)


# -- in a pool -----------------------------------------------------------------------------------


class Giving(FakeConnection):
    """A connection that gives what it is told to, in each way there is."""

    def __init__(self, driver: Any, number: int) -> None:
        super().__init__(driver, number)
        self.value: Any = None

    async def give(self) -> Any:
        """Give after a round trip."""
        await self.query()
        return self.value

    def give_later(self) -> Any:
        """Give by a coroutine from a plain method."""
        return self.give()

    def give_now(self) -> Any:
        """Give without I/O."""
        return self.value

    @property
    def given(self) -> Any:
        """Give as an attribute."""
        return self.value


async def by_await(conn: Any) -> None:
    """Await a method."""
    await conn.give()


async def by_coroutine(conn: Any) -> None:
    """Await what a plain method returns."""
    await conn.give_later()


async def by_call(conn: Any) -> None:
    """Call a plain method."""
    conn.give_now()


async def by_attribute(conn: Any) -> None:
    """Read an attribute."""
    conn.given  # noqa: B018


WAYS = [by_await, by_coroutine, by_call, by_attribute]


def driver_of(base: type[CleanDriver] = CleanDriver) -> CleanDriver:
    """Return a driver of a class of its own, of which nothing was said yet."""
    driver = type("Quiet", (base,), {"kind": Giving})()
    assert isinstance(driver, CleanDriver)
    return driver


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("carry", CARRIERS, ids=range(len(CARRIERS)))
async def test_connection_that_has_given_more_than_data_is_not_used_again(
    way: Callable[[Any], Any], carry: Callable[[Any], Any]
) -> None:
    """It goes as `derived`, however that was got."""
    driver = driver_of()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            real: Any = next(iter(driver.alive))
            real.value = [*range(9), carry(Live(real))]
            await way(conn)
        async with pool.acquire() as conn:
            assert conn.number == 2
        assert pool.stats().retired["derived"] == 1


@pytest.mark.parametrize("way", WAYS)
async def test_connection_that_has_given_data_is_used_again(way: Callable[[Any], Any]) -> None:
    """Without a reset, if it is clean."""
    driver = driver_of()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            real: Any = next(iter(driver.alive))
            for real.value in (*WHOLE[:7], tuple(WHOLE[8:]), (Colour.BLUE, ("a", None))):
                await way(conn)
        async with pool.acquire() as conn:
            assert conn.number == 1
        assert driver.calls["reset"] == 0


async def test_dict_of_the_connections_own_is_none_that_its_user_may_keep() -> None:
    """The same dict would have the next user's settings; one that was made for this one may stay."""
    driver = driver_of()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            assert conn.session == {}
        assert pool.stats().retired["derived"] == 1
        async with pool.acquire() as conn:
            real: Any = next(iter(driver.alive))
            real.value = {"setting": [1]}
            await by_await(conn)
        assert pool.stats().idle == 1


async def test_driver_that_can_revoke_is_asked_for_nothing_more() -> None:
    """Whatever is made from its connections is dead."""
    driver = driver_of(FullDriver)
    async with Pool(driver, max_size=1) as pool:
        for carry in CARRIERS:
            async with pool.acquire() as conn:
                real: Any = next(iter(driver.alive))
                real.value = carry(Live(real))
                await by_await(conn)
        async with pool.acquire() as conn:
            assert conn.number == 1
        assert sum(pool.stats().retired.values()) == 0


async def test_object_that_an_operation_gives_after_the_release_costs_the_connection() -> None:
    """Its task was under way when the connection was given back, and is when it is reset."""
    for give in (by_await, by_coroutine):
        driver = driver_of()
        async with Pool(driver, max_size=1) as pool, anyio.create_task_group() as group:
            async with pool.acquire() as conn:
                real: Any = next(iter(driver.alive))
                real.value = Live(real)
                real.gate = gate = anyio.Event()
                driver.script["reset"] = [gate, None]
                group.start_soon(give, conn)
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            assert pool.stats().recycling == 1
            gate.set()
            async with pool.acquire() as conn:
                assert conn.number == 2
            assert pool.stats().retired["derived"] == 1


async def test_transaction_of_a_driver_is_no_object_that_its_user_has() -> None:
    """What its manager returns, nobody sees."""

    class Managed:
        def __init__(self, *_: object) -> None:
            """Take the connection."""

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            """End."""

    driver: Any = driver_of()
    driver.transaction = Managed
    async with Pool(driver, max_size=1) as pool:
        for _ in range(2):
            async with pool.transaction() as conn:
                assert conn.number == 1


async def test_what_costs_connections_is_said_once_for_each_class_of_drivers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With what it was, where it came from, and what to do."""
    caplog.set_level(logging.WARNING)
    first, second = driver_of(), driver_of()
    for driver in (first, first, second):
        async with Pool(driver, max_size=1) as pool:
            for _ in range(2):
                async with pool.acquire() as conn:
                    conn.cursor()
    said = [record.getMessage() for record in caplog.records if "revoke" in record.getMessage()]
    assert len(said) == 2
    assert said[0].startswith("Quiet has no revoke()")
    assert "a FakeCursor from Giving.cursor" in said[0]
    assert "Give the driver a revoke()" in said[0]


async def test_connection_that_is_dead_as_well_is_a_broken_one() -> None:
    """What the operator has to look into is the network, and not the driver."""
    driver = driver_of()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            conn.cursor()
            next(iter(driver.alive)).dead = True
        assert pool.stats().retired["broken"] == 1
