"""Functions whose results have to be awaited: what is said of those whose results cannot be.

Whether a plain function returns something to await is only seen when it is called. What can be seen
before is refused when the pool is made.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from poolkit._errors import PoolConfigError
from poolkit._text import shown

if TYPE_CHECKING:
    from collections.abc import Callable

_WANTED = "give an async function of one connection"


def check_hook(name: str, hook: Any) -> None:
    """Refuse what can be no async function of one connection, by the name of its option."""
    what = f"{name}={shown(hook)}"
    if isinstance(hook, type) and not hasattr(hook, "__await__"):
        raise PoolConfigError(f"{what} is a class: {_WANTED}")
    if not callable(hook):
        if inspect.isawaitable(hook) or inspect.isasyncgen(hook):
            raise PoolConfigError(f"{what} has been called already: give the function itself")
        raise PoolConfigError(f"{what} is not callable: {_WANTED}")
    if inspect.isasyncgenfunction(hook) or _is_generator(hook):
        raise PoolConfigError(f"{what} has a `yield`: {_WANTED}, without a `yield`")
    try:
        # Of what is called, and not of what that wraps, which it may give more than a connection.
        inspect.signature(hook, follow_wrapped=False).bind(None)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) or "invalid method signature" in str(error):
            raise PoolConfigError(
                f"{what} cannot be called with a connection alone ({error}): {_WANTED}"
            ) from None


def _is_generator(hook: Any) -> bool:
    """Tell whether it has a `yield`, and is no coroutine of before ``async def``."""
    flags = getattr(getattr(hook, "__code__", None), "co_flags", 0)
    return inspect.isgeneratorfunction(hook) and not flags & inspect.CO_ITERABLE_COROUTINE


async def awaited(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what was given for an option, and await its result.

    Raises `PoolConfigError`, which names the option, if that cannot be awaited.
    """
    made = function(*args, **kwargs)
    try:
        return await made
    except TypeError:
        if (refusal := not_awaitable(f"{name}={shown(function)}", made)) is not None:
            raise refusal from None
        raise


def not_awaitable(what: str, made: object) -> PoolConfigError | None:
    """Return the error for something that has returned what cannot be awaited, if it cannot be."""
    if inspect.isawaitable(made):
        return None
    remedy = "write `async def`"
    steps = getattr(made, "gen", made)  # of a context manager made from a generator
    if inspect.isasyncgen(steps) or inspect.isgenerator(steps):
        remedy += ", without a `yield`"
    thing = "None" if made is None else f"an object of type {type(made).__name__}"
    return PoolConfigError(f"{what} returned {thing}, which cannot be awaited: {remedy}")
