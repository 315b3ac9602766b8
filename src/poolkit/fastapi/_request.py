"""What one request holds: of each pool one lease, whoever in the request asks for it.

`connection`, `transaction` and `lazy` share one, which lives to the end of the function scope at
the latest. `streaming_connection` and `streaming_transaction` share one of their own, to the end of
the response, and go with nothing else.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NoReturn

from poolkit._errors import PoolConfigError, PoolUnavailable
from poolkit._shell import labels
from poolkit.fastapi import _framework as framework
from poolkit.fastapi import _function_scope as function_scope
from poolkit.fastapi import _routes as routes
from poolkit.fastapi import _second_acquire as second_acquire
from poolkit.fastapi._framework import request_stack
from poolkit.fastapi._http_errors import make_answer
from poolkit.fastapi._lazy import AFTER_THE_RESPONSE, AT_THE_END, INSTEAD, LazyConnection

if TYPE_CHECKING:
    import types
    from collections.abc import Iterator

    from starlette.requests import HTTPConnection
    from starlette.types import Scope

    from poolkit._shell.pool import Pool


class RequestLeases:
    """The leases of one request, and its name."""

    __slots__ = (
        *("_called", "_has_begun", "_has_ended", "_is_websocket", "_leases", "_route", "_streams"),
        *("__weakref__", "_stack", "acquires", "label", "place"),
    )

    def __init__(self, scope: Scope) -> None:
        # Not the scope, which has this: a cycle would be left to the garbage collector.
        self._route = framework.route_of(scope)
        self._called = framework.endpoint_of(scope)
        self._stack = request_stack(scope)
        self._is_websocket = scope["type"] == "websocket"
        self._has_begun = self._has_ended = False
        self.label: Final = routes.label_of(scope)
        #: Where the dependencies acquire, for who reads an error: the endpoint's first line.
        self.place: Final = routes.beginning_of(self._called)
        #: Whether a dependency is about to acquire, and not the program.
        self.acquires = False
        self._leases: dict[Pool[Any], LazyConnection[Any]] = {}
        self._streams: dict[Pool[Any], LazyConnection[Any]] = {}

    @staticmethod
    def of(http: HTTPConnection) -> RequestLeases:
        """Return what a request holds."""
        held: RequestLeases | None = http.scope.get("poolkit")
        # A middleware may send the same scope on once more, and an endpoint may send it, or a copy
        # of it, to an application: that has answered before this request ends.
        if held is None or held._has_ended or held._stack is not request_stack(http.scope):
            held = http.scope["poolkit"] = RequestLeases(http.scope)
        return held

    @staticmethod
    def begun(http: HTTPConnection) -> RequestLeases:
        """Return what a request holds, which is given back at the end of the function scope."""
        held = RequestLeases.of(http)
        if not held._has_begun:
            function_scope.stack_of(http).push(held._end)
            held._begin()
        return held

    # -- the life of a request -------------------------------------------------------------------

    def _begin(self) -> None:
        """Be the one that code in this context belongs to."""
        self._has_begun = True
        before, label = second_acquire.current.get(), labels.get()
        second_acquire.current.set(self)
        # A text is of a block of the user's, who knows better; or is left of another request.
        if type(label) is not str or (before is not None and label is before.label):
            labels.set_for_context(self.label)

    def _end(
        self,
        kind: type[BaseException] | None,  # noqa: ARG002  # so an exit is called
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Give back what is held, as the endpoint has ended; have FastAPI answer what it raised."""
        self._has_ended = True
        for lease in self._leases.values():
            lease.end(error, AT_THE_END)
        self._leases.clear()
        if error is not None:
            try:
                self._answer(error)
            finally:
                del error, traceback  # which would hold this frame, and be held by it

    def end_stream(self, pool: Pool[Any], error: BaseException | None) -> None:
        """Give back what was held for the whole response."""
        lease = self._streams.pop(pool)
        if error is None and lease.is_in_block:
            # The client has left, and the generator that streamed waits at a `yield` in its block.
            error = GeneratorExit()
        lease.end(error, AFTER_THE_RESPONSE)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Raise `PoolUnavailable` in the form that FastAPI answers."""
        try:
            yield
        except BaseException as error:
            self._answer(error)
            raise

    def _answer(self, error: BaseException) -> None:
        """Give an error the form that FastAPI answers; raise the one that a task group has wrapped.

        That is, the first of a group of nothing else.
        """
        if isinstance(error, PoolUnavailable):
            make_answer(error, self._called, self.label, websocket=self._is_websocket)
        elif isinstance(error, BaseExceptionGroup) and error.split(PoolUnavailable)[1] is None:
            first: Any = error
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            make_answer(first, self._called, self.label, websocket=self._is_websocket)
            try:
                raise first from first.__cause__
            finally:
                del first, error  # which would hold this frame, and be held by it

    # -- its leases ------------------------------------------------------------------------------

    def lease(self, pool: Pool[Any], dependency: object) -> LazyConnection[Any]:
        """Return the request's lease of a pool; it is acquired when it is first needed.

        Raises `PoolConfigError` where it would be given back before the endpoint begins.
        """
        if self.begins_late(dependency):
            raise PoolConfigError(
                f"{self.label} is a generator: it streams, and its body begins when connections "
                f"were given back. Either {INSTEAD}, or depend on poolkit.fastapi."
                "streaming_connection or on streaming_transaction, which is held until the client "
                "has read everything"
            )
        if pool in self._streams:
            self._refuse_mix()
        lease = self._leases.get(pool)
        if lease is None:
            second_acquire.ensure(pool)
            lease = self._leases[pool] = LazyConnection(pool, self)
        return lease

    def ends_next(self, stack: contextlib.AsyncExitStack) -> bool:
        """Tell whether it is all given back before anything else on the stack is done."""
        return framework.comes_next(stack, self._end)

    def begins_late(self, dependency: object) -> bool:
        """Tell whether an endpoint takes what would have ended before its body begins."""
        return framework.is_generator(self._called) and routes.takes(self._route, dependency)

    def stream(self, pool: Pool[Any]) -> tuple[LazyConnection[Any], bool]:
        """Return the lease for the whole response, and whether it is new."""
        if pool in self._leases:
            self._refuse_mix()
        is_new = pool not in self._streams
        if is_new:
            second_acquire.ensure(pool)
            self._streams[pool] = LazyConnection(pool, self)
        return self._streams[pool], is_new

    def _refuse_mix(self) -> NoReturn:
        raise PoolConfigError(
            f"{self.label} depends on streaming_connection or streaming_transaction, which is held "
            "until the response is sent, beside connection, lazy or transaction, which are given "
            "back before: a request has one connection. Use one kind in all its dependencies, or "
            "take the others from poolkit.fastapi.pool"
        )

    def holds(self, pool: Pool[Any]) -> bool:
        """Tell whether a dependency of this request holds a connection of the pool."""
        return any(
            pool in leases and leases[pool].is_held for leases in (self._leases, self._streams)
        )
