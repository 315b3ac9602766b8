"""Without `revoke`, what is not data for certain costs its connection: it may act on it later."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import inspect
import io
import logging
import struct
import types
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from zoneinfo import ZoneInfo

import anyio
import pytest
import sniffio
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkit import NotLeased, Pool
from poolkit._shell.derived import DEPTH, MOST, is_data
from tests.effort import SHARE
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


class Turned(enum.Flag):
    """A member that has been inverted remembers the other one, and that one it."""

    LEFT = 1
    RIGHT = 2


assert ~Turned.LEFT is Turned.RIGHT
assert ~Turned.RIGHT is Turned.LEFT
TOO_DEEP: Any = 0
for _ in range(DEPTH):
    TOO_DEEP = [TOO_DEEP]
UTC = dt.UTC
#: What is on disk of the simplest time zone.
TZIF = b"TZif" + bytes(16) + struct.pack(">6L", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0"


def zoned(key: Any, kind: Any = ZoneInfo) -> Any:
    """Return a time that has a zone with something for its key."""
    return dt.datetime(2026, 1, 1, tzinfo=kind.from_file(io.BytesIO(TZIF), key=key))


EAST = dt.timezone(dt.timedelta(hours=2), "east")
WHOLE: list[Any] = [
    *(None, True, 7, 1.5, 2j, "text", b"bytes", bytearray(b"x"), range(3)),
    *(decimal.Decimal("1.5"), uuid.UUID(int=7), Colour.RED, Colour.BLUE, Mark.BOLD | Mark.THIN),
    *(dt.date(2026, 1, 1), dt.timedelta(seconds=1), UTC, EAST),
    *(dt.datetime(2026, 1, 1, tzinfo=EAST), dt.time(1, tzinfo=UTC)),
    *(zoned("Europe/Berlin"), zoned(None)),
    *(*Turned, ~Turned.LEFT, Colour.__members__["RED"]),
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


def inverted(kind: Any, live: Any) -> Any:
    """Return a member of a flag that carries something where its inversion is kept."""
    kind.A._inverted_ = live
    return kind.A


def stocked(kind: Any, live: Any) -> Any:
    """Return a member of an enum that carries something live."""
    kind.A.live = live
    return kind.A


class SlottedEnum(enum.Enum):
    """An enum whose members have a place for something."""

    __slots__ = ("live",)


def listed(kind: Any, live: Any) -> Any:
    """Return a member of an enum that is a list, with something live in it."""
    kind.A.append(live)
    return kind.A


class Claims(type):
    """A metaclass whose classes claim to be another type."""

    claimed: Any

    def __eq__(cls, other: object) -> bool:
        return other is cls.claimed

    def __hash__(cls) -> int:
        return hash(cls.claimed)


class Unhashable(type):  # noqa: PLW1641  # that is what it is for
    """A metaclass whose classes cannot be looked up."""

    def __eq__(cls, other: object) -> bool:
        return cls is other


class Nameless(type):
    """A metaclass whose classes do not tell their names."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__"):
            raise ValueError("no name")
        return super().__getattribute__(name)


def of_meta(meta: Any, live: Any, **members: Any) -> Any:
    """Return an instance of a class of such a metaclass that has something live."""
    return meta("Odd", (), {"live": live, **members})()


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
    lambda live: zoned(live),
    lambda live: zoned("UTC", type("Own", (ZoneInfo,), {"live": live})),
    lambda live: inverted(enum.Flag("Inverted", "A B"), live),
    lambda live: type(live),
    enumerated,
    lambda live: stocked(enum.Enum("Slotted", {"A": 1}, type=Slotted), live),
    lambda live: stocked(enum.Enum("Plain", {"A": 1}), live),
    lambda live: stocked(SlottedEnum("Made", {"A": 1}), live),  # type: ignore[call-arg]
    lambda live: listed(enum.Enum("Listed", {"A": [1]}, type=list), live),
    closed,
    raised,
    lambda live: of_meta(Claims, live, claimed=str),
    lambda live: of_meta(Claims, live, claimed=list, __len__=lambda _: 0, __iter__=iter),
    lambda live: of_meta(Unhashable, live),
    lambda live: of_meta(Nameless, live),
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
@settings(max_examples=round(800 * SHARE), deadline=None)
def test_nested_data_is_data(value: Any) -> None:
    """Whatever it is made of."""
    assert is_data(value)


@given(
    carry=st.sampled_from(CARRIERS),
    wraps=st.lists(st.sampled_from([*CONTAINERS, *HASHING]), max_size=DEPTH + 4),
    beside=DATA,
)
@settings(max_examples=round(2000 * SHARE), deadline=None)
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


@pytest.mark.parametrize("value", WHOLE, ids=range(len(WHOLE)))
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


class Giver:
    """What can be awaited, or entered, and is no coroutine."""

    def __init__(self, connection: Giving) -> None:
        self.connection = connection

    def __await__(self) -> Any:
        return self.connection.give().__await__()

    async def __aenter__(self) -> Any:
        return await self

    async def __aexit__(self, *error: object) -> None:
        """Leave."""


class Giving(FakeConnection):
    """A connection that gives what it is told to, in each way there is."""

    def __init__(self, driver: Any, number: int) -> None:
        super().__init__(driver, number)
        self.value = None

    @property
    def value(self) -> Any:
        """What it gives, which it does not have itself: a list of its own would be another matter."""
        return self._make()

    @value.setter
    def value(self, value: Any) -> None:
        self._make: Callable[[], Any] = lambda: value

    async def give(self) -> Any:
        """Give after a round trip."""
        await self.query()
        return self.value

    def give_later(self) -> Any:
        """Give by a coroutine from a plain method."""
        return self.give()

    def give_in_a_future(self) -> Any:
        """Give what is under way already; on trio there is nothing of the kind."""
        if sniffio.current_async_library() == "trio":
            return self.give()
        return asyncio.ensure_future(self.give())

    def give_when_awaited(self) -> Any:
        """Give by what is no coroutine, and could be entered as well."""
        return Giver(self)

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


async def by_future(conn: Any) -> None:
    """Await what is under way already."""
    await conn.give_in_a_future()


async def by_awaitable(conn: Any) -> None:
    """Await what is no coroutine."""
    await conn.give_when_awaited()


async def by_call(conn: Any) -> None:
    """Call a plain method."""
    conn.give_now()


async def by_attribute(conn: Any) -> None:
    """Read an attribute."""
    conn.given  # noqa: B018


WAYS = [by_await, by_coroutine, by_future, by_awaitable, by_call, by_attribute]


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


async def test_what_is_entered_costs_the_connection() -> None:
    """It may be left under the next lease."""
    driver = driver_of()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            async with conn.give_when_awaited() as nothing:
                assert nothing is None
        async with pool.acquire() as conn:
            assert conn.number == 2


@pytest.mark.parametrize("way", WAYS)
async def test_operation_whose_result_has_an_odd_metaclass_succeeds(
    way: Callable[[Any], Any],
) -> None:
    """Also with a driver that can revoke: then it is taken for something that may act."""
    driver = driver_of(FullDriver)
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        for value in (of_meta(Unhashable, None), [of_meta(Unhashable, None)]):
            next(iter(driver.alive)).value = value  # type: ignore[attr-defined]
            conn._poolkit_slot.has_derived = False  # type: ignore[attr-defined]
            await way(conn)
            assert conn._poolkit_slot.has_derived  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0] * MOST, "here more than 100,000 values, too many to look at, from Giving.give,"),
        ([TOO_DEEP], "here containers more than 16 deep, too deep to look at, from Giving.give,"),
    ],
)
async def test_what_is_too_much_to_look_at_is_called_that(
    value: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It may well be data; its user would look for what else it is in vain."""
    driver = driver_of()
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        next(iter(driver.alive)).value = value  # type: ignore[attr-defined]
        await by_await(conn)
    assert words in caplog.text


async def test_connection_that_is_dead_as_well_is_a_broken_one() -> None:
    """What the operator has to look into is the network, and not the driver."""
    driver = driver_of()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            conn.cursor()
            next(iter(driver.alive)).dead = True
        assert pool.stats().retired["broken"] == 1


# -- what goes in, and what comes out by another way ---------------------------------------------


class Failure(Exception):
    """An error of the library's, with a place for what it is about."""

    def __init__(self, text: str, about: Any = None) -> None:
        super().__init__(text)
        self.about = about


class Marked(Exception):
    """One with a place of its own."""

    __slots__ = ("about",)


class Awaitable:
    """What can be awaited, and nothing else."""

    def __init__(self, operation: Any) -> None:
        self.operation = operation

    def __await__(self) -> Any:
        return self.operation.__await__()


class Talking(Giving):
    """A connection that hands out something live in other ways than by returning it."""

    def __init__(self, driver: Any, number: int) -> None:
        super().__init__(driver, number)
        self.error: BaseException = ValueError()
        self.rows: list[Any] = []
        self.protocol = types.SimpleNamespace(rows={"a": [1]}, log=bytearray())
        self.hook: Any = None

    def fail_now(self) -> None:
        """Fail without I/O."""
        raise self.error

    async def fail(self) -> None:
        """Fail after a round trip."""
        await self.query()
        raise self.error

    def fail_later(self) -> Any:
        """Fail by a coroutine from a plain method."""
        return self.fail()

    async def __aexit__(self, *error: object) -> None:
        """Let what it was given through."""
        if isinstance(error[1], Exception):
            raise error[1]

    def __enter__(self) -> None:
        """Be a context manager of the plain kind as well."""

    def __exit__(self, *error: object) -> None:
        """Let what it was given through."""
        if isinstance(error[1], Exception):
            raise error[1]

    @property
    def failing(self) -> Any:
        """Fail as an attribute."""
        raise self.error

    def tell_now(self, *args: Any, **kwargs: Any) -> int:
        """Take everything, and do with it what can be done, without I/O."""
        for arg in (*args, *kwargs.values()):
            for part in arg if isinstance(arg, tuple) else (arg,):
                if callable(part):
                    part(self)
                for fill in ("append", "add", "put_nowait"):
                    if hasattr(part, fill):
                        getattr(part, fill)(Live(self))
                if isinstance(part, dict):
                    part["live"] = Live(self)
        return 1

    async def tell(self, *args: Any, **kwargs: Any) -> int:
        """Do so after a round trip."""
        await self.query()
        return self.tell_now(*args, **kwargs)

    def tell_later(self, *args: Any, **kwargs: Any) -> Any:
        """Do so by a coroutine from a plain method."""
        return self.tell(*args, **kwargs)

    def tell_in_an_object(self, *args: Any, **kwargs: Any) -> Any:
        """Do so by what can be awaited, and is no coroutine."""
        return Awaitable(self.tell(*args, **kwargs))

    def tell_in_a_future(self, *args: Any, **kwargs: Any) -> Any:
        """Do so in the background."""
        if sniffio.current_async_library() == "trio":
            return self.tell(*args, **kwargs)
        return asyncio.ensure_future(self.tell(*args, **kwargs))

    def execute_now(self, sql: str, *args: Any, **options: Any) -> list[Any]:
        """Do what most libraries do: look at the arguments, and return rows."""
        return [(sql, len(args), len(options))]

    async def execute(self, sql: str, *args: Any, **options: Any) -> list[Any]:
        """Do so after a round trip."""
        await self.query()
        return self.execute_now(sql, *args, **options)

    def execute_later(self, sql: str, *args: Any, **options: Any) -> Any:
        """Do so by a coroutine from a plain method."""
        return self.execute(sql, *args, **options)

    def execute_in_an_object(self, sql: str, *args: Any, **options: Any) -> Any:
        """Do so by what can be awaited, and is no coroutine."""
        return Awaitable(self.execute(sql, *args, **options))

    def give_own(self, which: str) -> Any:
        """Return what is this connection's own, or its protocol's."""
        return {
            "list": self.rows,
            "tuple": (1, self.rows),
            "dict of another": self.protocol.rows,
            "list in a dict": self.protocol.rows["a"],
            "bytearray": self.protocol.log,
            "all": vars(self),
        }[which]


async def is_used_again(use: Callable[[Any, Any], Any]) -> bool:
    """Use a connection, and tell whether the next user gets it, too."""
    driver: Any = type("Quiet", (CleanDriver,), {"kind": Talking})()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            await use(conn, next(iter(driver.alive)))
        async with pool.acquire() as conn:
            again: bool = conn.number == 1
        assert pool.stats().retired["derived"] == (not again)
        return again


async def called(conn: Any, method: str, *args: Any, **kwargs: Any) -> None:
    """Call a method of either kind; or read an attribute."""
    found = getattr(conn, method)
    result = found(*args, **kwargs)
    if inspect.isawaitable(result):
        await result


def slotted(live: Any) -> Exception:
    """Return an error with something in a slot."""
    error = Marked("")
    error.about = live  # type: ignore[attr-defined]
    return error


def made_from(error: BaseException | None, **how: Any) -> Exception:
    """Return an error made from another."""
    made = Failure("made from another")
    for name, value in (how or {"__cause__": error}).items():
        setattr(made, name, value)
    return made


def chained(live: Any) -> Exception:
    """Return an error at the end of a chain that is too long to be looked at."""
    error: Exception = Failure("", live)
    for _ in range(200):
        error = made_from(error)
    return error


ERRORS: list[Callable[[Any], BaseException]] = [
    lambda live: Failure("", live),
    lambda live: Failure("", [1, {"a": (live,)}]),
    lambda live: ValueError("", live),
    lambda live: made_from(Failure("", live)),
    lambda live: made_from(None, __context__=Failure("", live)),
    lambda live: made_from(None, __notes__=[live]),
    lambda live: ValueError("", Failure("", live)),
    lambda live: Failure("", Failure("", live)),
    lambda live: ExceptionGroup("", [ValueError(), ExceptionGroup("", [Failure("", live)])]),
    lambda live: AttributeError("", name="a", obj=live),
    lambda live: OSError(1, "", live),
    lambda live: type("Own", (BaseException,), {})(live),
    chained,
    slotted,
]


@pytest.mark.parametrize("way", ["fail", "fail_now", "fail_later", "failing"])
@pytest.mark.parametrize("make", ERRORS, ids=range(len(ERRORS)))
async def test_error_with_something_live_inside_costs_the_connection(
    way: str, make: Callable[[Any], BaseException]
) -> None:
    """Its user has caught it, and may have kept it."""

    async def use(conn: Any, real: Talking) -> None:
        real.error = make(Live(real))
        with contextlib.suppress(BaseException):
            await called(conn, way)

    assert not await is_used_again(use)


HARMLESS: list[Callable[[], BaseException]] = [
    lambda: Failure("text", {"code": 7, "fields": ["a", None]}),
    lambda: OSError(111, "refused", "/a/path"),
    lambda: made_from(ExceptionGroup("", [ValueError(1), KeyError(("a", 2))])),
    lambda: ValueError(ValueError("inside")),
    lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "because"),
]


@pytest.mark.parametrize("way", ["fail", "fail_now", "fail_later", "failing"])
async def test_error_with_data_inside_costs_nothing(way: str) -> None:
    """Nor does one that names the handle, as `hasattr` has it raised, or a cancellation."""

    async def use(conn: Any, real: Any) -> None:
        for make in HARMLESS:
            real.error = make()
            with contextlib.suppress(Exception):
                await called(conn, way)
        with pytest.raises(AttributeError) as caught:
            conn.nonsense  # noqa: B018
        about: Any = caught.value.obj
        assert about is conn
        with anyio.CancelScope() as scope:
            scope.cancel()
            await conn.query()

    assert await is_used_again(use)


class Box:
    """Something that can be filled."""

    def append(self, live: Any) -> None:
        """Keep it."""
        self.inside = live


async def test_error_of_the_users_own_costs_nothing() -> None:
    """It has come through a block of the connection's, with whatever its user has put into it."""

    async def use(conn: Any, _: object) -> None:
        with pytest.raises(Failure):
            async with conn:
                with conn:
                    raise Failure("", Live())

    assert await is_used_again(use)


kept: list[Any] = []
TOLD: list[Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = [
    lambda: ((kept.append,), {}),
    lambda: ((lambda live: kept.append(live),), {}),
    lambda: ((functools.partial(kept.append),), {}),
    lambda: ((1, (2, kept.append)), {}),
    lambda: ((), {"callback": kept.append}),
    lambda: (([],), {}),
    lambda: (([1, 2],), {}),
    lambda: (({"a": 1},), {}),
    lambda: (({1},), {}),
    lambda: ((), {"out": []}),
    lambda: ((([],),), {}),
    lambda: ((collections.deque(),), {}),
    lambda: ((asyncio.Queue(),), {}),
    lambda: ((Live,), {}),
    lambda: ((Box(),), {}),
    lambda: (([Box()],), {}),
    lambda: ((types.SimpleNamespace(on_row=kept.append),), {}),
]


@pytest.mark.parametrize(
    "way", ["tell", "tell_now", "tell_later", "tell_in_an_object", "tell_in_a_future"]
)
@pytest.mark.parametrize("make", TOLD, ids=range(len(TOLD)))
async def test_argument_by_which_something_live_comes_out_costs_the_connection(
    way: str, make: Callable[[], Any]
) -> None:
    """A callback is given it, a container is filled with it."""

    async def use(conn: Any, _: object) -> None:
        args, kwargs = make()
        await called(conn, way, *args, **kwargs)

    assert not await is_used_again(use)


async def test_callback_that_is_set_as_an_attribute_costs_the_connection() -> None:
    """And so does a list that the connection has from now on; data does not."""
    values: list[Any] = [kept.append, [], (1, "a", dict)]

    async def use(conn: Any, _: object) -> None:
        conn.hook = values[0]

    for again in (False, False, True):
        assert await is_used_again(use) == again
        del values[0]


@pytest.mark.parametrize("way", ["execute", "execute_now", "execute_later", "execute_in_an_object"])
async def test_argument_that_is_data_costs_nothing(way: str) -> None:
    """Nor does what is none, if it is no callback, and there is nothing new in it afterwards."""

    async def use(conn: Any, _: object) -> None:
        for args in (
            *([], [[1, "a", None]], [{"a": dt.datetime.now(tz=UTC)}], [(1, [2])], [{1}]),
            *([[(1, "a"), (2, "b")]], [dict, tuple], [bytearray(b"x"), b"y"], [Colour.RED]),
            *(
                [of_meta(Unhashable, 1)],
                [of_meta(Claims, 1, claimed=str)],
                [Path("/a"), Row(1)],
                [[Row(1), Named(2)]],
                [anyio.Event()],
                [Box()],
                [conn],
            ),
        ):
            await called(conn, way, "SELECT 1", *args)
        await called(conn, way, "SELECT 1", *range(3), timeout=1.0, params={"a": [1]})

    assert await is_used_again(use)


OWN = ["list", "tuple", "dict of another", "list in a dict", "bytearray", "all"]


@pytest.mark.parametrize("which", OWN)
async def test_live_container_that_a_method_returns_costs_the_connection(which: str) -> None:
    """The next user's rows would be in the same list."""

    async def use(conn: Any, _: object) -> None:
        conn.give_own(which)

    assert not await is_used_again(use)


async def test_dead_handle_that_is_given_a_callback_costs_the_next_user_nothing() -> None:
    """It is an error at once; so it is for coroutines that were made before the release."""
    driver: Any = type("Quiet", (CleanDriver,), {"kind": Talking})()
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            uses = [conn.tell, conn.tell_now, conn.tell_later]
            late = conn.execute_later("SELECT 1", [1])
        async with pool.acquire():
            for use in uses:
                with pytest.raises(NotLeased):
                    await use(kept.append)
            with pytest.raises(NotLeased):
                await late
        assert pool.stats().retired["derived"] == 0


async def test_what_costs_connections_by_another_way_is_said_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it was, and where it went or came from."""

    async def fail(conn: Any, real: Talking) -> None:
        real.error = Failure("", Live(real))
        with contextlib.suppress(Failure):
            await conn.fail()

    async def tell(conn: Any, _: object) -> None:
        await conn.tell(kept.append)

    for use in (fail, tell):
        await is_used_again(use)
    said = [record.getMessage() for record in caplog.records]
    assert "here a Live in a Failure," in said[0]
    assert "here a builtin_function_or_method given to Talking.tell," in said[1]
