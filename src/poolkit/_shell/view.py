"""The view: a handle on a connection that dies with its lease.

A view is valid while its lease's turn is the slot's turn; release moves the slot's turn on, first
of all. Everything else is forwarded to the connection, both ways, and noted on the slot: that
something was done (*touched*), that an operation is under way (*busy*: a child task may run one),
that one was cancelled, and that an object was made from the connection (*derived*). By these the
release decides.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
import types
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn

from poolkit._errors import NotLeased, PoolConfigError, TransactionEnded
from poolkit._shell.callsite import place
from poolkit._shell.closing import ending, is_harmless, may_end
from poolkit._shell.lease import Closed, Returned
from poolkit._shell.members import (
    OWN,
    defined_by,
    is_async,
    is_method,
    is_special,
    like,
    other_member,
)
from poolkit._text import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable

    from poolkit._core.slot import Slot
    from poolkit._shell.lease import Lease
    from poolkit._shell.pool import Pool


class Handle:
    """What a view has of its own; all other attributes are its connection's."""

    __slots__ = ("__weakref__", "_poolkit_lease")

    _poolkit_lease: Lease[Any]

    @property
    def _poolkit_slot(self) -> Slot:
        slot: Any = self._poolkit_lease._slot
        return slot  # type: ignore[no-any-return]

    @property
    def _poolkit_release_count(self) -> int:
        return self._poolkit_lease._release_count

    @property
    def _poolkit_pool(self) -> Pool[Any]:
        return self._poolkit_lease._pool


#: Give a view its lease: past its own `__setattr__`, which forwards.
bind: Final[Callable[[Any, Lease[Any]], None]] = Handle._poolkit_lease.__set__  # type: ignore[attr-defined,misc]


def make_view(lease: Lease[Any], slot: Slot) -> Any:
    """Return a new view of a leased connection."""
    lease._release_count = slot.release_count
    lease._slot = slot
    view = object.__new__(slot.view_class)
    bind(view, lease)
    return view


def held_slot(view: Any) -> Slot:
    """Return the slot of a view that is still leased; raise `NotLeased` otherwise."""
    if not issubclass(type(view), _View):
        raise NotLeased(
            f"{type(view).__name__!r} object was not acquired from a pool: pass what acquire() gave"
        )
    lease = view._poolkit_lease
    slot: Slot = lease._slot
    if slot.release_count != lease._release_count:
        _refuse(view, "")
    return slot


def is_closed(view: Any) -> bool:
    """Tell whether it is a view whose lease has ended because its holder closed the connection."""
    if not issubclass(type(view), _View):
        return False
    lease = view._poolkit_lease
    return type(lease._over) is Closed and bool(lease._slot.release_count != lease._release_count)


def _check(view: Any, name: str) -> None:
    """Raise unless the lease goes on, and the transaction block that it may be in.

    A connection that is closed may be closed again, and asked whether it is; and one may be closed
    whatever has become of its transaction.
    """
    lease = view._poolkit_lease
    slot = lease._slot
    if slot.release_count != lease._release_count:
        if not is_harmless(name) or not is_closed(view) or lease._over.is_final:
            _refuse(view, name)
        return
    block = slot.block
    if block is not None:  # a finalizer may have ended it in between
        try:
            block.check(name)
        except (NotLeased, TransactionEnded):
            if not may_end(name):
                raise


def _refuse(view: Any, name: str) -> NoReturn:
    lease = view._poolkit_lease
    pool = lease._pool.name
    what = f".{name}: this" if name else "this"
    if type(lease._over) is Closed:
        closed_at = lease._over.place
        at = "" if closed_at is None else f" at {place(*closed_at)}"
        where = f"closed{at} by its holder, which has given it back"
    elif lease._over == "block":
        entered = place(lease._code, lease._lasti, lease._label)
        where = f"released at the end of the block entered at {entered}"
    elif type(lease._over) is Returned:
        where = f"released at {place(*lease._over.place, lease._label)}{lease._over.how}"
    elif lease._over is not None:
        where = f"released at {place(*lease._over)}"
    else:
        where = "taken back when the pool was closed"
    raise NotLeased(f"{what} connection of pool {pool!r} is no longer leased: it was {where}")


class _View(Handle):
    """What all views share; `view_class` adds the methods of one connection type."""

    __slots__ = ()

    def _poolkit_touch(self, name: str) -> Slot:
        lease = self._poolkit_lease
        slot: Any = lease._slot
        if slot.release_count != lease._release_count or slot.block is not None:
            _check(self, name)
        slot.touched = True
        return slot  # type: ignore[no-any-return]

    def _poolkit_look(self, name: str, value: Any, *, own: bool = False) -> None:  # noqa: ARG002
        """Note whether what was returned, or is the connection's own, may act on it."""
        kind = type(value)
        with contextlib.suppress(TypeError):  # of a metaclass whose classes cannot be looked up
            if kind in _CONTAINERS:
                parts = value.values() if kind is dict else value
                # What a library returns many of is of one kind: a look at the first ones will do.
                if not any(_attached[type(part)] for part in itertools.islice(parts, 8)):
                    return
            elif not _attached[kind]:
                return
        slot: Any = self._poolkit_lease._slot
        slot.has_derived = True

    # For connections that nothing protects from what was made from them: see `Unrevoked`.

    def _poolkit_look_given(self, name: str, given: Iterable[Any], before: Any = None) -> Any:
        """Note whether what was given may come to act on the connection."""

    def _poolkit_look_inside(self, error: BaseException) -> None:
        """Note whether an error has something inside that may act on the connection."""

    @staticmethod
    def _poolkit_closely(call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of a view that looks at its arguments, if that is of use."""
        return call

    def __getattr__(self, name: str) -> Any:
        slot = self._poolkit_touch(name)
        try:
            value = getattr(slot.connection, name)
        except BaseException as error:
            _failed(self, error)
            raise
        if getattr(value, "__self__", None) is slot.connection:
            return types.MethodType(_found(name, value, self._poolkit_closely), self)
        if value is slot.connection:
            return self
        kind = type(value)
        if not (type(kind) is type and kind in _PLAIN):
            if callable(value):
                if may_end(name):
                    return types.MethodType(ending(_call(name)), self)
                slot.has_derived = True
            self._poolkit_look(name, value, own=True)
            if name == "__dict__":  # what is written there nobody would undo
                attributes: Any = value
                return types.MappingProxyType(attributes)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        slot = self._poolkit_touch(name)
        given = self._poolkit_look_given(name, (value,))
        before = _attribute(slot.connection, name)
        try:
            setattr(slot.connection, name, value)
        except BaseException as error:
            _failed(self, error)
            raise
        _note_attribute(slot, name, before)
        self._poolkit_look_given(name, (value,), given)

    def __delattr__(self, name: str) -> None:
        slot = self._poolkit_touch(name)
        before = _attribute(slot.connection, name)
        try:
            delattr(slot.connection, name)
        except BaseException as error:
            _failed(self, error)
            raise
        _note_attribute(slot, name, before)

    def __dir__(self) -> list[str]:
        return dir(held_slot(self).connection)

    def __repr__(self) -> str:
        slot = self._poolkit_slot
        pool = self._poolkit_pool.name
        if slot.release_count != self._poolkit_release_count:
            how = "closed" if is_closed(self) else "released"
            return f"<{how} connection of pool {pool!r}>"
        return f"<{_without_secrets(slot.connection)} leased from pool {pool!r}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a leased connection cannot be copied or pickled: acquire another one")

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(2)

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(2)


#: What a `repr` may have in it that is nobody's business.
_SECRETS: Final = re.compile(
    r"passw|passphrase|pwd|secret|token|api_?key|://[^/@\s]*:", re.IGNORECASE
)


def _without_secrets(connection: Any) -> str:
    """Return the `repr` of a connection; its class only, if there may be a password in it."""
    text = shown(connection)
    return f"{type(connection).__name__} object" if _SECRETS.search(text) else text


# -- attributes, which die with the lease --------------------------------------------------------

_ABSENT: Final = object()


def _attribute(connection: Any, name: str) -> object:
    """Return what `restore_attributes` is to set."""
    of_class = inspect.getattr_static(type(connection), name, None)
    if not hasattr(type(of_class), "__set__"):  # no property, and no place that __slots__ has made
        return getattr(connection, "__dict__", {}).get(name, _ABSENT)
    try:
        return getattr(connection, name)
    except Exception:
        return _ABSENT


def _note_attribute(slot: Slot, name: str, before: object) -> None:
    """Note what an attribute was before the lease has changed it for the first time."""
    if slot.attributes is None:
        slot.attributes = {}
    slot.attributes.setdefault(name, before)


def restore_attributes(slot: Slot) -> None:
    """Undo what a lease has set through its handle; raise what setting an attribute raises."""
    attributes, slot.attributes = slot.attributes or {}, None
    for name, before in attributes.items():
        if before is not _ABSENT:
            setattr(slot.connection, name, before)
        elif hasattr(slot.connection, name):
            delattr(slot.connection, name)


#: What a base of a view's may have instead of what views have.
_LOOKS: Final = ("_poolkit_look", "_poolkit_look_given", "_poolkit_look_inside", "_poolkit_closely")
_EXITS: Final = ("__exit__", "__aexit__")
_bound: Final = types.MethodType
_Coroutine: Final = types.CoroutineType


def view_class(kind: type, bases: tuple[type, ...] = ()) -> type:
    """Return the view class for one type of connection: made once, unless there are very many.

    ``bases`` are classes without slots of their own that make the library's own ``isinstance``
    checks pass; methods they define take the place of the connection's.
    """
    key = (id(kind), *map(id, bases))  # a metaclass may have them equal, or not be hashed at all
    made = _made.get(key)
    if made is None:
        if len(_made) >= _MOST_CLASSES:
            _made.clear()
        made = _made[key] = (_make_class(kind, bases), kind, bases)  # which keep their ids
    return made[0]


_MOST_CLASSES: Final = 256
_made: Final[dict[tuple[int, ...], tuple[type, type, tuple[type, ...]]]] = {}


def _make_class(kind: type, bases: tuple[type, ...]) -> type:
    members: dict[str, Any] = {
        "__slots__": (),
        "__class__": property(lambda _: kind),
        "__doc__": inspect.getattr_static(kind, "__doc__"),
    }
    for base in reversed(bases):
        members.update((name, vars(base)[name]) for name in _LOOKS if name in vars(base))
    closely = members.get("_poolkit_closely", _View._poolkit_closely)
    own = defined_by(*bases)
    for name, value in defined_by(kind).items():
        if name in own:
            continue
        if is_special(name) and value is None:  # it is refused
            members[name] = None
        elif (member := other_member(kind, name, value, _View.__getattr__)) is not None:
            members[name] = member
        elif is_method(name, value):
            members[name] = _Method(kind, name, value, closely)
    made = type(f"{kind.__name__}View", (_View, *bases), members)
    if made.__dictoffset__ or made.__basicsize__ != Handle.__basicsize__:
        raise PoolConfigError(
            f"a driver's view may name only classes with empty __slots__, unlike {bases}"
        )
    return made


class _Method:
    """A forwarded method: asking a dead view for it is an error already."""

    __slots__ = ("_call", "_name")

    def __init__(self, kind: type, name: str, method: Any, closely: Callable[..., Any]) -> None:
        self._name = name
        inner = inspect.unwrap(method)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            self._call = _generating(name, method)
        else:
            call = (_async_call if is_async(method) else _call)(name)
            self._call = ended_by_name(name, call if name in _EXITS else closely(call))
        self._call = like(self._call, kind, name, method)

    def __get__(self, view: Any, owner: type) -> Any:
        if view is None:
            return self._call
        lease = view._poolkit_lease
        slot = lease._slot
        if slot.release_count != lease._release_count or slot.block is not None:
            _check(view, self._name)
        return _bound(self._call, view)


def _call(name: str) -> Callable[..., Any]:
    def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        slot.busy += 1  # for it may be called in a thread
        try:
            result = getattr(slot.connection, name)(*args, **kwargs)
        except BaseException as error:
            _failed(view, error, args if name in _EXITS else ())
            raise
        finally:
            slot.busy -= 1
        kind = type(result)
        if type(kind) is type and kind in _PLAIN:
            return result
        if result is slot.connection:
            return view
        if kind is _Coroutine:
            return _later(view, name, result)
        if hasattr(kind, "__await__"):
            return _operation(view, name, result)
        view._poolkit_look(name, result)
        return result

    return _named(call, name)


def _async_call(name: str) -> Callable[..., Any]:
    async def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        # What `watched` does, without a coroutine more to resume through.
        connection = slot.connection
        slot.busy += 1
        try:
            result = await getattr(connection, name)(*args, **kwargs)
        except BaseException as error:
            _failed(view, error, args if name in _EXITS else ())
            raise
        finally:
            slot.busy -= 1
        if result is connection:
            return view
        kind = type(result)
        if not (type(kind) is type and kind in _PLAIN):
            view._poolkit_look(name, result)
        return result

    return _named(call, name)


def _found(name: str, value: Any, closely: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method for one that the connection's type does not define, but it itself has."""
    code = getattr(value, "__code__", None)
    if type(code) is not types.CodeType:
        return ended_by_name(name, closely(_call(name)))
    key = (code, name, closely)  # of functions that are alike, ever new ones may be made
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= _MOST_CLASSES:
            _calls.clear()
        is_async = code.co_flags & inspect.CO_COROUTINE
        call = ended_by_name(name, closely((_async_call if is_async else _call)(name)))
        call.__doc__ = value.__doc__
        with contextlib.suppress(Exception):  # what it is decorated with may be of any kind
            call.__signature__ = inspect.signature(value.__func__)  # type: ignore[attr-defined]
        _calls[key] = call
    return call


_calls: Final[dict[tuple[types.CodeType, str, Callable[..., Any]], Callable[..., Any]]] = {}


def ended_by_name(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Have the lease end with the connection, if the method may end that."""
    return ending(call) if may_end(name) else call


def _generating(name: str, function: Any) -> Callable[..., Any]:
    """Have a generator hold the view, which dies with the lease, and not the connection."""

    def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        slot.has_derived = True
        made = function(view, *args, **kwargs)
        view._poolkit_look(name, made)
        steps = _steps_of(view, name, made)
        if steps is made and (inner := getattr(made, "gen", None)) is not None:
            made.gen = _steps_of(view, name, inner)  # of a @contextmanager, or an asynchronous one
        return steps

    return _named(call, name)


def _steps_of(view: Any, name: str, steps: Any) -> Any:
    """Return a generator each of whose steps is an operation; what is none, as it is."""
    if type(steps) is types.GeneratorType:
        return _steps(view, name, steps)
    return _Steps(view, name, steps) if type(steps) is types.AsyncGeneratorType else steps


def _steps(view: Any, name: str, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    resume: Callable[[Any], Any] = steps.send
    value: Any = None
    while True:
        try:
            if resume == steps.send:  # and not to end it, which it may do at any time
                view._poolkit_touch(name)
            step = resume(value)
        except StopIteration as done:
            return done.value
        except BaseException as error:
            _failed(view, error, (value,))  # what was thrown into it may come from anywhere
            raise
        try:
            resume, value = steps.send, (yield step)
        except BaseException as error:
            resume, value = steps.throw, error


class _Steps(AsyncGenerator[Any, Any]):
    """An asynchronous generator, each of whose steps is an operation on a leased connection."""

    def __init__(self, view: Any, name: str, steps: types.AsyncGeneratorType[Any, Any]) -> None:
        self._view = view
        self._name = name
        self._generator = steps

    async def asend(self, value: Any) -> Any:
        self._view._poolkit_touch(self._name)
        return await watched(self._view, self._generator.asend(value))

    async def athrow(self, *error: Any) -> Any:
        return await watched(self._view, self._generator.athrow(*error), error)

    async def aclose(self) -> None:
        await watched(self._view, self._generator.aclose())


def _operation(view: Any, name: str, made: Any) -> Any:
    """Return what a plain method has returned that can be awaited, watched."""
    kind = type(made)
    if is_future(kind):
        return _watch_future(view, name, made)
    if isinstance(made, Coroutine) and not hasattr(kind, "__aenter__"):  # as Cython makes them
        return _later(view, name, made)
    if _does_more(kind):
        view._poolkit_look(name, made)
        return made
    return Operation(view, name, made)


def _does_more(kind: type) -> bool:
    """Tell whether it can be used as no `Operation` can, or looks after itself."""
    return hasattr(kind, "poolkit_heeds") or any(
        inspect.isroutine(inspect.getattr_static(kind, name)) and not hasattr(Operation, name)
        for name in dir(kind)
        if name.startswith("__") and name.endswith("__") and name not in OWN
    )


def is_future(kind: type) -> bool:
    """Tell whether it is a class of asyncio's futures, as asyncio does; on trio there are none."""
    return hasattr(kind, "_asyncio_future_blocking")


def _watch_future(view: Any, name: str, future: Any) -> Any:
    """Note how an operation goes that is under way already, in a task of the library's."""
    slot: Slot = view._poolkit_slot
    slot.busy += 1

    def note(future: Any) -> None:
        slot.busy -= 1
        # Not by exception(): that would count as its user's having seen it.
        error = getattr(future, "_exception", None)
        if future.cancelled():
            slot.cancelled |= slot.release_count == view._poolkit_release_count
        elif error is not None:
            _failed(view, error, may_restate=False)
        else:
            view._poolkit_look(name, future.result())

    if future.done():
        note(future)
    else:
        future.add_done_callback(note)
    return future


class Operation(Coroutine[Any, Any, Any]):
    """What a plain method has returned that can be awaited, and is more than a coroutine.

    Awaited, entered or left, it is an operation on a leased connection; else it is what it was.
    """

    __slots__ = tuple(f"_poolkit_{name}" for name in ("after", "made", "name", "steps", "view"))

    def __init__(self, view: Any, name: str, made: Any) -> None:
        self._poolkit_view = view
        self._poolkit_name = name
        self._poolkit_made = made
        self._poolkit_steps: Any = None
        #: Is called when it has ended.
        self._poolkit_after: Callable[[], object] = int

    def _poolkit_begin(self) -> Any:
        if self._poolkit_steps is None:
            self._poolkit_steps = self._poolkit_await()
        return self._poolkit_steps

    async def _poolkit_await(self) -> Any:
        try:
            return await _later(self._poolkit_view, self._poolkit_name, self._poolkit_made)
        finally:
            self._poolkit_after()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._poolkit_await().__await__()

    def send(self, value: Any) -> Any:
        return self._poolkit_begin().send(value)

    def throw(self, *error: Any) -> Any:
        return self._poolkit_begin().throw(*error)

    def close(self) -> None:
        self._poolkit_begin().close()
        _close(self._poolkit_made)

    async def __aenter__(self) -> Any:
        view, made = self._poolkit_view, self._poolkit_made
        slot: Slot = view._poolkit_touch(self._poolkit_name)
        slot.has_derived = True
        result = await watched(view, made.__aenter__())
        return view if result is slot.connection else result

    async def __aexit__(self, *error: object) -> Any:
        try:
            return await watched(self._poolkit_view, self._poolkit_made.__aexit__(*error), error)
        finally:
            self._poolkit_after()

    def __aiter__(self) -> Any:
        return self.__getattr__("__aiter__")()

    def __getattr__(self, name: str) -> Any:
        self._poolkit_view._poolkit_touch(self._poolkit_name).has_derived = True
        return getattr(self._poolkit_made, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self._poolkit_made)


async def _later(view: Any, name: str, operation: Any) -> Any:
    """Await what a plain method has returned, unless the lease has ended before it began."""
    try:
        slot: Slot = view._poolkit_touch(name)
    except BaseException:
        _close(operation)
        raise
    result = await watched(view, operation)
    if result is slot.connection:
        return view
    view._poolkit_look(name, result)
    return result


def _close(operation: Any) -> None:
    if isinstance(operation, Coroutine):
        operation.close()


def _named(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    call.__name__ = call.__qualname__ = name
    return call


def _failed(
    view: Any, error: BaseException, args: tuple[Any, ...] = (), *, may_restate: bool = True
) -> None:
    """Note on the slot how an operation ended, for the release, unless that has been.

    Raises what the driver has to say in place of the error, if it has.

    ``args``: what the end of a block was given, and has let through, may come from anywhere.
    """
    lease = view._poolkit_lease
    slot: Slot = lease._slot
    passed = any(arg is error for arg in args)
    if slot.release_count == lease._release_count:
        if not isinstance(error, Exception):
            slot.cancelled = True
        if isinstance(error, AttributeError) and error.obj is slot.connection:
            error.obj = view
        lease._pool._hooks.heed(slot, error, passed=passed)
    if not passed:
        view._poolkit_look_inside(error)
        if may_restate and (better := lease._pool._hooks.restate(slot, error)) is not None:
            raise better from error


async def watched(view: Any, operation: Awaitable[Any], args: tuple[Any, ...] = ()) -> Any:
    """Await an operation on a leased connection, noting on the slot how it goes."""
    slot: Slot = view._poolkit_slot
    slot.busy += 1
    try:
        return await operation
    except BaseException as error:
        _failed(view, error, args)
        raise
    finally:
        slot.busy -= 1


_CONTAINERS: Final = frozenset({list, tuple, set, frozenset, dict})
#: What most results are: data, for certain.
_PLAIN: Final = frozenset({bool, bytes, float, int, str, type(None), type(NotImplemented)})
_MANY: Final = 1000


class _Attached(dict[type, bool]):
    """Whether such objects may act on the connection they came from, by their type; looked up once.

    Cursors, statements, transactions and generators have asynchronous methods, or are iterators.
    """

    def __missing__(self, kind: type) -> bool:
        if len(self) > _MANY:  # a library may make a class for each query
            self.clear()
        acts = ("__await__", "__aenter__", "__aiter__", "__anext__", "__next__")
        self[kind] = any(hasattr(kind, name) for name in acts) or any(
            inspect.iscoroutinefunction(inspect.getattr_static(kind, name, None))
            for name in dir(kind)
        )
        return self[kind]


_attached: Final = _Attached()
