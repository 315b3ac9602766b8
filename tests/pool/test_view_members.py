"""What a connection's type defines is its views': special methods, signatures, docstrings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import pydoc
import types
import typing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import asyncpg
import pytest

from poolkit import NotLeased, Pool
from poolkit._shell import methods
from poolkit._shell.view_class import view_class
from poolkit.drivers.asyncpg import create_pool as create_asyncpg_pool
from poolkit.testing._fake import BareDriver
from tests.drivers.asyncpg_help import LOOPS
from tests.fakes import CleanDriver, FakeConnection, FullDriver, own

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

T = TypeVar("T")
SECRET = "hunter" + "2"


def driver_of(kind: type, driver: Any = None) -> Any:
    """Return a driver whose connections are of a kind."""
    driver = FullDriver() if driver is None else driver
    driver.kind = kind
    return driver


# -- special methods -----------------------------------------------------------------------------

#: A method for each operator, which returns what it was given, and its name.
OPERATORS = [
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift"),
    *("rshift", "and", "xor", "or"),
]


def named(name: str) -> Callable[..., Any]:
    """Return a special method that tells with what it was called."""

    def method(self: Any, *args: Any) -> Any:
        return f"{name}{args}"

    method.__name__ = name
    return method


Operating = type(
    "Operating",
    (FakeConnection,),
    {
        name: named(name)
        for operator in OPERATORS
        for name in (f"__{operator}__", f"__r{operator}__", f"__i{operator}__")
        if name != "__idivmod__"
    }
    | {name: named(name) for name in ("__neg__", "__pos__", "__invert__", "__abs__", "__call__")}
    | {name: named(name) for name in ("__lt__", "__le__", "__gt__", "__ge__", "__getitem__")},
)


async def test_operators_are_the_connections() -> None:
    """Also reflected ones, and those in place; what they take for the connection stays a view."""
    async with Pool(driver_of(Operating), max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        for name in OPERATORS:
            function = divmod if name == "divmod" else getattr(operator, f"{name}_", None)
            function = function or getattr(operator, f"__{name}__")
            assert function(view, 1) == f"__{name}__(1,)"
            assert function(1, view) == f"__r{name}__(1,)"
            if name != "divmod":
                assert getattr(operator, f"__i{name}__")(view, 1) == f"__i{name}__(1,)"
        for name in ("neg", "pos", "invert", "abs"):
            assert getattr(operator, f"__{name}__")(view) == f"__{name}__()"
        for name in ("lt", "le", "gt", "ge"):
            assert getattr(operator, name)(view, 1) == f"__{name}__(1,)"
        assert view(1, 2) == "__call__(1, 2)"
        assert view[3] == "__getitem__(3,)"
        assert not conn._poolkit_slot.has_derived
    with pytest.raises(NotLeased):
        view()
    with pytest.raises(NotLeased):
        operator.neg(view)
    with pytest.raises(NotLeased):
        view | 1


class Unsorted(list[Any]):
    """What a driver may have its connections in that cannot be hashed."""

    add, discard = list.append, list.remove


async def test_special_methods_that_the_type_does_not_have_are_not_there() -> None:
    """`object` and the metaclass have some; and one that is None is refused as Python does."""

    class Refusing(FakeConnection):
        __iter__ = None
        __hash__ = None  # type: ignore[assignment]

    async with Pool(driver_of(FakeConnection), max_size=1) as pool, pool.acquire() as conn:
        view: Any = conn
        assert not callable(view)
        with pytest.raises(TypeError):
            view()
        for operate in (operator.or_, operator.lt, operator.getitem):
            with pytest.raises(TypeError):
                operate(view, 1)
        with pytest.raises(TypeError):
            iter(view)
        for name in ("__call__", "__or__", "__instancecheck__", "mro", "__prepare__"):
            assert not any(name in vars(kind) for kind in type(view).__mro__[:-1]), name
    driver = driver_of(Refusing, CleanDriver())
    driver.alive = Unsorted()
    async with Pool(driver, max_size=1) as pool, pool.acquire() as conn:
        view = conn
        with pytest.raises(TypeError, match="not iterable"):
            iter(view)
        with pytest.raises(TypeError, match="unhashable"):
            hash(view)


async def test_operator_that_is_not_for_the_other_asks_the_other() -> None:
    """`NotImplemented` is no object made from the connection."""

    class Choosy(FakeConnection):
        def __add__(self, other: object) -> Any:
            return NotImplemented

        def __iadd__(self, other: object) -> Any:
            return self

    class Other:
        def __radd__(self, other: object) -> str:
            return "asked"

    driver: BareDriver[Any] = driver_of(Choosy, CleanDriver())
    async with Pool(driver, max_size=1) as pool:
        async with pool.acquire() as conn:
            view: Any = conn
            assert view + Other() == "asked"
            with pytest.raises(TypeError):
                view + 1
            same = view
            same += 1
            assert same is view
        assert pool.stats().idle == 1


@pytest.mark.parametrize("is_async", [False, True])
async def test_connection_may_be_called(is_async: bool) -> None:
    """Awaited or not; a call that outlives the lease is dead."""

    class Plain(FakeConnection):
        def __call__(self, question: str, *, times: int = 1) -> str:
            """Answer."""
            return question * times

    class Async(FakeConnection):
        async def __call__(self, question: str, *, times: int = 1) -> str:
            """Answer."""
            await self.query()
            return question * times

    async with Pool(driver_of(Async if is_async else Plain), max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            assert callable(conn)
            answer = conn("a", times=2)
            assert (await answer if is_async else answer) == "aa"
            assert str(inspect.signature(conn)) == "(question: 'str', *, times: 'int' = 1) -> 'str'"
            assert type(conn).__call__.__doc__ == "Answer."
            late = conn("a") if is_async else None
        with pytest.raises(NotLeased):
            conn("a")
        if late is not None:
            with pytest.raises(NotLeased):
                await late


class Shown(FakeConnection):
    """Says what it is."""

    def __str__(self) -> str:
        return f"to {self.number}"

    def __format__(self, spec: str) -> str:
        return f"{self.number:{spec}}"

    def __bool__(self) -> bool:
        return False

    def __contains__(self, thing: object) -> bool:
        return thing == "this"


async def test_text_of_a_connection_is_that_of_its_type() -> None:
    """Without a use of the connection; a dead view says so, and raises nothing in a log."""
    async with Pool(driver_of(Shown), max_size=1) as pool:
        async with pool.acquire() as conn:
            assert (str(conn), f"{conn:03}", format(conn, "5")) == ("to 1", "001", "    1")
            assert not conn._poolkit_slot.touched
            assert not conn
            assert "this" in conn
            assert "leased from pool 'fake'" in repr(conn)
        dead = "<released connection of pool 'fake'>"
        assert (str(conn), f"{conn}", f"{conn:>40}") == (dead, dead, f"{dead:>40}")
        with pytest.raises(NotLeased):
            bool(conn)


async def test_text_that_the_type_does_not_have_is_the_views() -> None:
    """And format() of it takes no specification, as for any object."""
    async with Pool(driver_of(FakeConnection), max_size=1) as pool, pool.acquire() as conn:
        assert str(conn) == f"{conn}" == repr(conn)
        with pytest.raises(TypeError):
            format(conn, "5")


@dataclasses.dataclass(eq=False)
class Revealing:
    """A connection whose `repr` has everything, as those of data classes have."""

    driver: Any = dataclasses.field(repr=False)
    number: int
    dead: bool = False
    in_transaction: bool = False
    password: str = SECRET

    def end(self) -> None:
        """End."""
        self.dead = True


@pytest.mark.parametrize("field", ["password", "dsn", "token"])
async def test_repr_shows_no_password(field: str) -> None:
    """Of a connection that may have one in its own, it shows the class."""

    class Kind(Revealing):
        def __repr__(self) -> str:
            if field == "dsn":
                return f"<to postgresql://app:{SECRET}@host/db>"
            return f"Revealing({field}={SECRET!r})"

    async with Pool(driver_of(Kind, CleanDriver()), max_size=1) as pool, pool.acquire() as conn:
        assert repr(conn) == str(conn) == "<Kind object leased from pool 'fake'>"


async def test_repr_that_raises_is_said_so() -> None:
    """A debugger asks for it."""

    class Rude(FakeConnection):
        def __repr__(self) -> str:
            raise RuntimeError

    async with Pool(driver_of(Rude), max_size=1) as pool, pool.acquire() as conn:
        assert repr(conn) == "<<Rude, whose repr() raises> leased from pool 'fake'>"


class Equal(FakeConnection):
    """Is equal to others of its number."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)


async def test_comparison_is_that_of_the_type() -> None:
    """By the connection while it is leased, by identity then; the hash stays what it is."""
    async with Pool(driver_of(Equal), max_size=2, min_size=2) as pool:
        async with pool.acquire() as one, pool.acquire() as two:
            twin = Equal(FullDriver(), one.number)
            assert one == twin
            assert twin == one
            assert not one != twin  # noqa: SIM202
            assert one != two
            assert hash(one) == hash(twin)
            own(two).number = one.number
            assert one == two
            kept = {one}
        assert one in kept
        assert one == one  # noqa: PLR0124
        assert one != two
        assert one != twin
        async with pool.acquire() as again:
            assert again != one
            assert again != two


async def test_comparison_that_the_type_does_not_have_is_by_identity() -> None:
    """Two leases of one connection are two handles."""
    async with Pool(driver_of(FakeConnection), max_size=1) as pool:
        async with pool.acquire() as one:
            assert one != own(one)
        async with pool.acquire() as two:
            assert one != two
            assert len({one, two}) == 2


# -- what it is called ---------------------------------------------------------------------------


def decorated(function: Any) -> Any:
    """Decorate as libraries do."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    wrapper.cacheable = True  # type: ignore[attr-defined]
    return wrapper


class Described(FakeConnection, Generic[T]):
    """A connection with members of all kinds."""

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[int]:
        """Fetch rows."""
        return [len(query), len(args)]

    def sync(self, /, a: int, *, b: Path | None = None) -> str:
        """Do it at once."""
        return f"{a}{b}"

    @decorated
    async def wrapped(self, c: int) -> int:
        """Be decorated."""
        return c

    fetch_one = functools.partialmethod(fetch, "one", timeout=1.0)

    @functools.singledispatchmethod
    def dispatched(self, what: object) -> str:
        """Depend on the type."""
        return "object"

    @dispatched.register
    def _(self, what: int) -> str:
        return "int"

    @functools.lru_cache  # noqa: B019
    def cached(self, d: int) -> int:
        """Remember."""
        return d

    def rows(self, e: int) -> Iterator[int]:
        """Yield."""
        yield from range(e)

    async def stream(self, f: int) -> AsyncIterator[int]:
        """Yield asynchronously."""
        yield f

    @property
    def info(self) -> str:
        """What the server says."""
        return "info"

    @functools.cached_property
    def computed(self) -> int:
        """Computed once."""
        return 42

    @staticmethod
    def double(number: int) -> int:
        """Double."""
        return 2 * number

    @classmethod
    def make(cls, number: int) -> str:
        """Make one."""
        return f"{cls.__name__}{number}"

    class Inner:
        """A class of its own."""


METHODS = ["fetch", "sync", "wrapped", "fetch_one", "dispatched", "cached", "rows", "stream"]


@pytest.mark.parametrize("kind", [BareDriver, FullDriver])
@pytest.mark.parametrize("name", [*METHODS, "double", "make"])
async def test_method_is_described_as_the_connections(name: str, kind: Any) -> None:
    """Its signature, docstring, name, module and hints, asked of the view and of its class."""
    async with Pool(driver_of(Described, kind()), max_size=1) as pool, pool.acquire() as conn:
        real, view = getattr(own(conn), name), getattr(conn, name)
        of_class = getattr(type(conn), name)
        if name != "dispatched":  # of which Python itself says that it takes a self
            assert inspect.signature(view) == inspect.signature(real)
        assert inspect.signature(of_class) == inspect.signature(getattr(Described, name))
        if name == "fetch_one":  # which is a `functools.partial`
            real = own(conn).fetch
        for part in ("__doc__", "__name__", "__qualname__", "__module__"):
            if name != "fetch_one":
                assert getattr(view, part) == getattr(real, part)
        assert inspect.iscoroutinefunction(view) is inspect.iscoroutinefunction(
            getattr(own(conn), name)
        )
        if name not in ("sync", "fetch_one", "rows", "stream"):
            assert typing.get_type_hints(view) == typing.get_type_hints(real)
        assert getattr(view, "cacheable", None) == getattr(real, "cacheable", None)


async def test_members_do_what_the_connections_do() -> None:
    """Whatever kind of descriptor they are."""
    async with Pool(driver_of(Described), max_size=1) as pool, pool.acquire() as held:
        conn: Any = held
        assert await conn.fetch("a", 1) == [1, 1]
        assert await conn.fetch_one(2) == [3, 1]
        assert (conn.dispatched(1), conn.dispatched("")) == ("int", "object")
        assert (conn.sync(1, b=None), await conn.wrapped(3), conn.cached(4)) == ("1None", 3, 4)
        assert list(conn.rows(2)) == [0, 1]
        assert [n async for n in conn.stream(1)] == [1]
        assert (conn.info, conn.computed, conn.double(2), conn.make(1)) == (
            "info",
            42,
            4,
            "Described1",
        )
        assert (type(conn).double(2), type(conn).make(1)) == (4, "Described1")
        assert type(conn).Inner is conn.Inner is Described.Inner
        assert type(conn)[int] == Described[int]
        assert type(conn).info.__doc__ == "What the server says."
        assert type(conn).computed.__doc__ == "Computed once."
    for name in (*METHODS, "info", "computed", "double", "make", "Inner"):
        with pytest.raises(NotLeased):
            getattr(conn, name)


async def test_class_and_static_methods_make_nothing_of_the_connection() -> None:
    """They have none: the next lease may have it."""
    async with Pool(driver_of(Described, CleanDriver()), max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            conn.double(1), conn.make(1), conn.Inner()
        assert pool.stats().idle == 1


async def test_type_without_a_docstring_is_given_none() -> None:
    """Whatever views are among themselves is nobody's business."""
    bare = type("Bare", (FakeConnection,), {})
    async with Pool(driver_of(bare), max_size=1) as pool, pool.acquire() as conn:
        assert conn.__doc__ is None
        assert inspect.getdoc(conn) is None
        assert "What all views share" not in pydoc.render_doc(conn)


async def test_help_shows_what_a_connection_can_do() -> None:
    """In the library's words."""
    async with Pool(driver_of(Described), max_size=1) as pool, pool.acquire() as conn:
        text = pydoc.plain(pydoc.render_doc(conn))
    assert "fetch(self, query: 'str', *args: 'object', timeout: 'float | None' = None)" in text
    for words in ("Fetch rows.", "What the server says.", "Make one.", "Computed once."):
        assert words in text


async def test_method_that_only_the_connection_has_is_described() -> None:
    """From `__getattr__`, as proxies have all of theirs; each function may be a new one."""

    class Dynamic(FakeConnection):
        def __getattr__(self, name: str) -> Any:
            if name != "later":
                raise AttributeError(name)

            async def later(self: Any, a: int) -> int:
                """Come."""
                return a

            return later.__get__(self)

    async with Pool(driver_of(Dynamic), max_size=1) as pool, pool.acquire() as held:
        conn: Any = held
        for _ in range(2):
            assert str(inspect.signature(conn.later)) == "(a: 'int') -> 'int'"
            assert conn.later.__doc__ == "Come."
            assert inspect.iscoroutinefunction(conn.later)
            assert await conn.later(1) == 1


async def test_method_of_the_connections_own_may_be_no_function_of_pythons() -> None:
    """As those of libraries in C; it is a method of the view like any other."""

    class Own(FakeConnection):
        def __init__(self, driver: Any, number: int) -> None:
            super().__init__(driver, number)
            self.size = self.__sizeof__  # a method of `object`

    async with Pool(driver_of(Own, CleanDriver()), max_size=1) as pool:
        async with pool.acquire() as held:
            conn: Any = held
            assert conn.size() == own(conn).__sizeof__()
            size = conn.size
            assert not conn._poolkit_slot.has_derived
        with pytest.raises(NotLeased, match=r"\.size: "):
            size()
        assert pool.stats().idle == 1


async def test_methods_that_are_made_anew_each_time_are_not_kept_without_end() -> None:
    """By a proxy that generates its code; each of them does what it is to do."""

    class Generating(FakeConnection):
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("add_"):
                raise AttributeError(name)
            number = name.removeprefix("add_")
            return types.MethodType(eval(f"lambda self, x: x + {number}"), self)

    async with Pool(driver_of(Generating), max_size=1) as pool, pool.acquire() as held:
        conn: Any = held
        for number in range(600):
            assert getattr(conn, f"add_{number}")(1) == number + 1
        assert len(methods._calls) < 600


# -- odd types -----------------------------------------------------------------------------------


class Meta(type):
    """A metaclass whose classes are all equal, cannot be hashed, and answer to any name."""

    def __eq__(cls, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __dir__(cls) -> list[str]:
        raise RuntimeError

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make one."""
        return super().__call__(*args, **kwargs)

    def __or__(cls, other: object) -> Any:
        raise RuntimeError


async def test_connection_whose_metaclass_is_odd_has_a_view_of_its_own() -> None:
    """Classes are told apart by what they are."""

    class One(FakeConnection, metaclass=Meta):
        def one(self) -> int:
            """Be one."""
            return 1

    class Two(FakeConnection, metaclass=Meta):
        def two(self) -> int:
            """Be two."""
            return 2

    assert view_class(One) is not view_class(Two)
    assert view_class(One) is view_class(One)
    async with Pool(driver_of(One), max_size=1) as pool, pool.acquire() as held:
        conn: Any = held
        assert conn.one() == 1
        with pytest.raises(TypeError):
            conn | 1
    async with Pool(driver_of(Two), max_size=1) as pool, pool.acquire() as held:
        conn = held
        assert conn.two() == 2


def test_classes_of_views_are_not_kept_for_ever() -> None:
    """A library may make a class for each connection."""
    from poolkit._shell import view_class as _view

    for _ in range(2 * _view._MOST_CLASSES):
        view_class(type("Kind", (FakeConnection,), {}))
    assert len(_view._made) <= _view._MOST_CLASSES


# -- the libraries' own --------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", LOOPS[:1], indirect=True)
async def test_methods_of_asyncpg_are_described_by_asyncpg(database: str) -> None:
    """Those that poolkit has in their place, too."""
    async with create_asyncpg_pool(database, max_size=1) as pool, pool.acquire() as conn:
        check_described(conn, asyncpg.Connection)


@pytest.mark.parametrize("anyio_backend", LOOPS[:1], indirect=True)
async def test_methods_of_compat_are_described_by_asyncpg(database: str) -> None:
    """As those of asyncpg's own proxy are."""
    from poolkit.compat.asyncpg import create_pool

    async with create_pool(database, min_size=1, max_size=1) as pool, pool.acquire() as conn:
        check_described(conn, asyncpg.Connection)


@pytest.mark.parametrize("anyio_backend", LOOPS[:1], indirect=True)
async def test_methods_of_aiosqlite_are_described_by_aiosqlite(tmp_path: Path) -> None:
    """Those that poolkit has in their place, too."""
    import aiosqlite

    from poolkit.drivers.aiosqlite import create_pool

    async with create_pool(tmp_path / "test.db", max_size=1) as pool, pool.acquire() as conn:
        check_described(conn, aiosqlite.Connection)


def check_described(conn: Any, kind: type) -> None:
    """Check that it and all public methods are described as the library describes them."""
    assert conn.__doc__ == kind.__doc__
    assert inspect.getdoc(conn) == inspect.getdoc(kind)
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if name.startswith("_"):
            continue
        real, view = method.__get__(own(conn)), getattr(conn, name)
        assert inspect.signature(view) == inspect.signature(real), name
        assert view.__doc__ == real.__doc__, name
        assert view.__qualname__ == real.__qualname__, name
        assert inspect.iscoroutinefunction(view) is inspect.iscoroutinefunction(real), name
