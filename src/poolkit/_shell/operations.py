"""Operations under way on a leased connection, and what they are to the release that comes.

That one is under way is noted on the slot (*busy*: a child task may run one), that one was
cancelled, and what its error says of the connection.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any

from poolkit._shell.members import OWN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from poolkit._core.slot import Slot


def failed(
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
        failed(view, error, args)
        raise
    finally:
        slot.busy -= 1


# -- what plain methods return --------------------------------------------------------------------


def operation(view: Any, name: str, made: Any) -> Any:
    """Return what a plain method has returned that can be awaited, watched."""
    kind = type(made)
    if is_future(kind):
        return _watch_future(view, name, made)
    if isinstance(made, Coroutine) and not hasattr(kind, "__aenter__"):  # as Cython makes them
        return later(view, name, made)
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
            failed(view, error, may_restate=False)
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
            return await later(self._poolkit_view, self._poolkit_name, self._poolkit_made)
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


async def later(view: Any, name: str, operation: Any) -> Any:
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


# -- generators ----------------------------------------------------------------------------------


def steps_of(view: Any, name: str, steps: Any) -> Any:
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
            failed(view, error, (value,))  # what was thrown into it may come from anywhere
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
