"""What `acquire` returns, and the view: a handle on a connection that dies with its lease.

A view is valid while its turn is the slot's turn; release moves the slot's turn on, first of all.
Everything else is forwarded to the connection, both ways, and noted on the slot: that something
was done (*touched*), that an operation is under way (*busy*: a child task may run one), that one
was cancelled, and that an object was made from the connection (*derived*). By these the release
decides.
"""

from __future__ import annotations

import inspect
import itertools
import types
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn

from poolkit._driver import C
from poolkit._errors import NotLeased, PoolConfigError, PoolError
from poolkit._slot import Slot
from poolkit._words import callers, place

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from poolkit._pool import Pool
    from poolkit._words import Place


class Lease(Generic[C]):
    """The right to use a connection: enter it with ``async with``, or await it and release.

    One that is never awaited owns nothing.
    """

    __slots__ = ("_code", "_lasti", "_pool", "_timeout", "_view")

    # Set by `Pool.acquire`, which makes one without a call more than it takes.
    _pool: Pool[C]
    _timeout: float | None
    _code: types.CodeType
    _lasti: int
    _view: Any

    def __await__(self) -> Generator[Any, Any, C]:
        """Acquire; the connection is the caller's until `Pool.release`."""
        return self._acquire().__await__()

    async def _acquire(self) -> C:
        pool = self._pool
        view: Any = pool._lease_now(self)
        if view is None:
            view = await pool._lease_later(self)
        slot = view._poolkit_slot
        slot.loose_turn = slot.turn
        return view  # type: ignore[no-any-return]

    async def __aenter__(self) -> C:
        """Acquire; the connection is the caller's until the end of the block."""
        if self._view is not None:
            self._check_unentered()
        pool = self._pool
        view: C | None = pool._lease_now(self)
        if view is None:
            view = await pool._lease_later(self)
            try:
                self._check_unentered()
            except PoolError as error:
                pool._give_back(view, (self._code, self._lasti), error)
                raise
        # Held here as well, so that a block without `as` does not drop its connection.
        self._view = view
        return view

    def _check_unentered(self) -> None:
        if self._view is not None:
            raise PoolError("this acquire() is entered already: call acquire() once per block")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Give the connection back; nothing is awaited. Released inside already: nothing to do."""
        view, self._view = self._view, None
        self._pool._give_back(view, self, error)


class TracedLease(Lease[C]):
    """A lease that notes the stack that acquires it."""

    __slots__ = ()

    async def _acquire(self) -> C:
        stack = callers(2)
        return self._traced(await super()._acquire(), stack)

    async def __aenter__(self) -> C:
        """Acquire; the connection is the caller's until the end of the block."""
        stack = callers(2)
        return self._traced(await super().__aenter__(), stack)

    def _traced(self, view: Any, stack: tuple[Place, ...]) -> C:
        codes = [code for code, _ in stack]
        inner = codes.index(self._code) + 1 if self._code in codes else 0
        slot = view._poolkit_slot
        slot.holder = (*slot.holder, ((self._code, self._lasti), *stack[inner:]))
        return view  # type: ignore[no-any-return]


class Released:
    """What release returns: finished already, and may be awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        """Return at once."""
        return
        yield


RELEASED: Final = Released()


# -- the view ------------------------------------------------------------------------------------


class Handle:
    """A view in the making: its attributes can still be set like any other's."""

    __slots__ = ("__weakref__", "_poolkit_pool", "_poolkit_slot", "_poolkit_turn")

    _poolkit_pool: Pool[Any]
    _poolkit_slot: Slot
    #: While leased, the slot's turn; afterwards where it was released: a code and an offset in it.
    _poolkit_turn: Any


def make_view(pool: Pool[Any], slot: Slot) -> Any:
    """Return a new view of a leased connection."""
    view: Any = Handle()
    view._poolkit_pool = pool
    view._poolkit_slot = slot
    view._poolkit_turn = slot.turn
    # A view forwards assignments, so it becomes one last: half the cost of three descriptor calls.
    view.__class__ = slot.view
    return view


#: Sets a view's turn past its own forwarding of assignments.
set_turn: Final[Callable[[Any, Any], None]] = vars(Handle)["_poolkit_turn"].__set__


def held_slot(view: Any) -> Slot:
    """Return the slot of a view that is still leased; raise `NotLeased` otherwise."""
    if not issubclass(type(view), _View):
        raise NotLeased(
            f"{type(view).__name__!r} object was not acquired from a pool: pass what acquire() gave"
        )
    slot: Slot = view._poolkit_slot
    if slot.turn != view._poolkit_turn:
        _refuse(view, "")
    return slot


def _usable_slot(view: Any, name: str) -> Slot:
    slot: Slot = view._poolkit_slot
    if slot.turn != view._poolkit_turn or slot.spoiled:
        _refuse(view, name)
    return slot


def _refuse(view: Any, name: str) -> NoReturn:
    turn = view._poolkit_turn
    pool = view._poolkit_pool.name
    what = f".{name}: this" if name else "this"
    if view._poolkit_slot.turn == turn:
        raise NotLeased(
            f"{what} connection of pool {pool!r} was in a transaction that was cancelled, and is "
            "rolled back when it is released: acquire another to go on"
        )
    if isinstance(turn, Lease):
        where = f"released at the end of the block entered at {place(turn._code, turn._lasti)}"
    elif isinstance(turn, tuple):
        where = f"released at {place(*turn)}"
    else:
        where = "taken back when the pool was closed"
    raise NotLeased(f"{what} connection of pool {pool!r} is no longer leased: it was {where}")


class _View(Handle):
    """What all views share; `view_class` adds the methods of one connection type."""

    __slots__ = ()

    def _poolkit_touch(self, name: str) -> Slot:
        slot = _usable_slot(self, name)
        slot.touched = True
        return slot

    def __getattr__(self, name: str) -> Any:
        slot = self._poolkit_touch(name)
        value = getattr(slot.connection, name)
        if getattr(value, "__self__", None) is slot.connection:
            return types.MethodType(_call(name), self)
        if value is slot.connection:
            return self
        if callable(value) or _may_act(value):
            slot.derived = True
        return value

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._poolkit_touch(name).connection, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._poolkit_touch(name).connection, name)

    def __dir__(self) -> list[str]:
        return dir(_usable_slot(self, "__dir__").connection)

    def __repr__(self) -> str:
        slot = self._poolkit_slot
        pool = self._poolkit_pool.name
        if slot.turn != self._poolkit_turn:
            return f"<released connection of pool {pool!r}>"
        return f"<{slot.connection!r} leased from pool {pool!r}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a leased connection cannot be copied or pickled: acquire another one")

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(2)

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(2)

    def __del__(self) -> None:
        slot = self._poolkit_slot
        if slot.turn == self._poolkit_turn:
            # Collected anywhere, in the middle of any line, in any thread: only leave a note.
            self._poolkit_pool._dropped(slot, slot.turn)


#: Special methods that say what a view is, rather than what its connection does.
_OWN: Final = frozenset(
    {"__class__", "__del__", "__eq__", "__hash__", "__init__", "__new__", "__subclasshook__"}
    | {"__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__dict__"}
    | {"__init_subclass__", "__class_getitem__", "__repr__", "__sizeof__", "__getstate__"}
    | {"__setstate__", "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__", "__slots__"}
    | {"__doc__", "__module__", "__weakref__", "__annotations__", "__orig_bases__"}
)


_UNBOUND: Final = (staticmethod, classmethod)
_classes: Final[dict[tuple[type, tuple[type, ...]], type]] = {}


def view_class(kind: type, bases: tuple[type, ...] = ()) -> type:
    """Return the view class for one type of connection: made once.

    ``bases`` are classes without slots of their own that make the library's own ``isinstance``
    checks pass; methods they define take the place of the connection's.
    """
    if (kind, bases) not in _classes:
        _classes[kind, bases] = _make_class(kind, bases)
    return _classes[kind, bases]


def _make_class(kind: type, bases: tuple[type, ...]) -> type:
    members: dict[str, Any] = {
        "__slots__": (),
        "__class__": property(lambda _: kind),
        "__doc__": f"A `{kind.__qualname__}`, until it is given back.",
    }
    own = {name for base in bases for name in dir(base) if not hasattr(object, name)}
    for name in dir(kind):
        special = name.startswith("__") and name.endswith("__")
        if name in _OWN or (special and hasattr(object, name)) or name in own:
            continue
        value = inspect.getattr_static(kind, name)
        if callable(value) and inspect.isroutine(value) and not isinstance(value, _UNBOUND):
            members[name] = _Method(name, value)
    made = type(f"{kind.__name__}View", (_View, *bases), members)
    try:
        trial = Handle()
        trial._poolkit_slot, trial._poolkit_turn = Slot(0), None
        trial.__class__ = made
    except TypeError:
        raise PoolConfigError(
            f"a driver's view may name only classes with empty __slots__, unlike {bases}"
        ) from None
    return made


class _Method:
    """A forwarded method: asking a dead view for it is an error already."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, function: Any) -> None:
        self._name = name
        inner = inspect.unwrap(function)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            self._call = _generating(name, function)
        else:
            self._call = (_async_call if inspect.iscoroutinefunction(function) else _call)(name)
        self._call.__doc__ = function.__doc__

    def __get__(self, view: Any, owner: type) -> Any:
        if view is None:
            return self._call
        _usable_slot(view, self._name)
        return types.MethodType(self._call, view)


def _call(name: str) -> Callable[..., Any]:
    def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        result = getattr(slot.connection, name)(*args, **kwargs)
        if result is slot.connection:
            return view
        if type(result) is types.CoroutineType:
            return _later(view, name, result)
        if _may_act(result):
            slot.derived = True
        return result

    return _named(call, name)


def _async_call(name: str) -> Callable[..., Any]:
    async def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        result = await watched(slot, getattr(slot.connection, name)(*args, **kwargs))
        return view if result is slot.connection else result

    return _named(call, name)


def _generating(name: str, function: Any) -> Callable[..., Any]:
    """Have a generator hold the view, which dies with the lease, and not the connection."""

    def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        slot.derived = True
        return function(view, *args, **kwargs)

    return _named(call, name)


async def _later(view: Any, name: str, operation: Coroutine[Any, Any, Any]) -> Any:
    """Await what a plain method has returned, unless the lease has ended before it began."""
    try:
        slot: Slot = view._poolkit_touch(name)
    except BaseException:
        operation.close()
        raise
    result = await watched(slot, operation)
    return view if result is slot.connection else result


def _named(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    call.__name__ = call.__qualname__ = name
    return call


async def watched(slot: Slot, operation: Coroutine[Any, Any, Any]) -> Any:
    """Await an operation on a leased connection, noting on the slot how it goes."""
    turn = slot.turn
    slot.busy += 1
    try:
        result = await operation
    except BaseException as error:
        if slot.turn == turn and not isinstance(error, Exception):
            slot.cancelled = True
        raise
    finally:
        slot.busy -= 1
    if slot.turn == turn and _may_act(result):
        slot.derived = True
    return result


def _may_act(value: Any) -> bool:
    """Tell whether a value is, or a list of, something that may act on the connection."""
    if type(value) in (list, tuple, set, frozenset, dict):
        parts = value.values() if type(value) is dict else value
        # What a library returns many of is of one kind: a look at the first ones will do.
        return any(_is_attached(type(part)) for part in itertools.islice(parts, 8))
    return _is_attached(type(value))


_attached: Final[dict[type, bool]] = {}
_MANY: Final = 1000


def _is_attached(kind: type) -> bool:
    """Tell whether such an object may act on the connection it came from, or is merely data.

    Cursors, statements, transactions and generators have asynchronous methods, or are iterators.
    """
    if kind not in _attached:
        if len(_attached) > _MANY:  # a library may make a class for each query
            _attached.clear()
        acts = ("__await__", "__aenter__", "__aiter__", "__anext__", "__next__")
        _attached[kind] = any(hasattr(kind, name) for name in acts) or any(
            inspect.iscoroutinefunction(inspect.getattr_static(kind, name, None))
            for name in dir(kind)
        )
    return _attached[kind]
