"""The function scope of FastAPI, which ends when the endpoint has returned, before the response.

FastAPI keeps an exit stack for it in the scope of a request, under a name that it does not
document. To push something there costs a fifth of what a dependency with ``yield`` does. Where
`poolkit.fastapi._look` has not found it as it knows it, every dependency depends on such a
one, which gives a stack of ours, and on the pool::

    as it is            where there is no such stack

    connection ◀┄┄ pool     pool ──▶ connection ◀── _stack
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Depends
from starlette.requests import HTTPConnection

from poolkit._shell.pool import Pool
from poolkit.fastapi import _framework as framework
from poolkit.fastapi._look import HAS_FUNCTION_STACK

Dependency: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]

#: In the scope of a request: a stack of ours, and what FastAPI has solved for us.
_STACK: Final = "poolkit_stack"
_SOLVED: Final = "poolkit_solved"


def stack_of(http: HTTPConnection) -> contextlib.AsyncExitStack:
    """Return the stack on which to push what is to be done when the endpoint has returned."""
    if HAS_FUNCTION_STACK:
        return framework.function_stack(http.scope)
    stack: contextlib.AsyncExitStack = http.scope[_STACK]
    return stack


def dependency(call: Dependency) -> Dependency:
    """Make a dependency, on nothing but the request, of what pushes something on the stack."""
    return call if HAS_FUNCTION_STACK else _with_stack(call)


class Root:
    """What the dependencies of one pool hang from, and what may be overridden in place of it."""

    def __init__(
        self,
        call: Dependency,
        look_up: Callable[[HTTPConnection], Pool[Any]],
        *moved_by: Dependency,
    ) -> None:
        self._call = call
        self._look_up = look_up
        self._moved_by = frozenset((call, *moved_by))

    def dependency(self, call: Dependency) -> Dependency:
        """Make a dependency of what pushes something on the stack, and needs the pool."""
        return call if HAS_FUNCTION_STACK else _with_stack(call, self._call)

    def find(self, http: HTTPConnection) -> Pool[Any] | None:
        """Return the pool; None if there is an override, for which FastAPI has to `solve` it."""
        if not HAS_FUNCTION_STACK:
            return http.scope[_SOLVED][self._call]  # type: ignore[no-any-return]
        overrides = framework.overrides_of(http.scope)
        if overrides and not self._moved_by.isdisjoint(overrides):
            return None
        return self._look_up(http)

    async def solve(self, http: HTTPConnection) -> Pool[Any]:
        """Return what overrides the pool, which has a life in the request as any dependency has."""
        if _SOLVED not in http.scope:
            stack_of(http).callback(http.scope.pop, _SOLVED, None)
        before = http.scope.get(_SOLVED)
        pool, http.scope[_SOLVED] = await framework.solve(http, self._call, before)
        return pool  # type: ignore[no-any-return]


# -- where FastAPI has no such stack -------------------------------------------------------------


async def _stack(http: HTTPConnection) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as http.scope[_STACK]:
        yield


def _with_stack(call: Dependency, root: Dependency | None = None) -> Dependency:
    async def depending(
        http: HTTPConnection,
        stack: None,  # noqa: ARG001  # it is there while this is in use
        pool: Any = None,
        **given: Any,
    ) -> Any:
        if root is not None:
            http.scope.setdefault(_SOLVED, {})[root] = pool
        return await call(http=http, **given)

    needs: dict[str, Any] = {
        name: parameter.annotation for name, parameter in inspect.signature(call).parameters.items()
    }
    needs["stack"] = Annotated[None, Depends(_stack, scope="function")]
    if root is not None:
        needs["pool"] = Annotated[Any, Depends(root)]
    made: Any = depending
    made.__name__, made.__qualname__, made.__doc__ = call.__name__, call.__qualname__, call.__doc__
    made.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=need)
            for name, need in needs.items()
        ]
    )
    return depending
