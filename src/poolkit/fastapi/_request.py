"""What one request holds: of each pool one lease, whoever in the request asks for it.

`connection`, `transaction` and `lazy` share one, which lives to the end of the function scope at
the latest. `streaming_connection` has one of its own, to the end of the response, and goes with
nothing else.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NoReturn

from poolkit._errors import PoolConfigError, PoolUnavailable
from poolkit._shell import labels
from poolkit.fastapi import _framework as framework
from poolkit.fastapi import _routes as routes
from poolkit.fastapi import _second_acquire as second_acquire
from poolkit.fastapi._http_errors import make_answer
from poolkit.fastapi._lazy import AFTER_THE_RESPONSE, AT_THE_END, INSTEAD, LazyConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import HTTPConnection

    from poolkit._shell.pool import Pool


class RequestLeases:
    """The leases of one request, and its name."""

    def __init__(self, http: HTTPConnection) -> None:
        # Not the scope, which has this: a cycle would be left to the garbage collector.
        self._route = framework.route_of(http.scope)
        self._is_websocket = http.scope["type"] == "websocket"
        self.is_open = False
        self.label: Final = routes.label_of(http.scope)
        self._called = framework.endpoint_of(http.scope)
        #: Where the dependencies acquire, for who reads an error: the endpoint's first line.
        self.place: Final = routes.code_of(self._called), routes.ITS_BEGINNING
        #: Whether a dependency is about to acquire, and not the program.
        self.acquires = False
        self._leases: dict[Pool[Any], LazyConnection[Any]] = {}
        self._streams: dict[Pool[Any], LazyConnection[Any]] = {}

    @staticmethod
    def of(http: HTTPConnection) -> RequestLeases:
        """Return what a request holds; there is one such object, though FastAPI may ask twice.

        Before FastAPI 0.123 it does so for each set of security scopes.
        """
        held: RequestLeases | None = http.scope.get("poolkit")
        if held is None:
            held = http.scope["poolkit"] = RequestLeases(http)
        return held

    # -- the life of a request -------------------------------------------------------------------

    def begin(self) -> None:
        """Be the one that code in this context belongs to."""
        self.is_open = True
        before, label = second_acquire.current.get(), labels.get()
        second_acquire.current.set(self)
        # A text is of a block of the user's, who knows better; or is left of another request.
        if type(label) is not str or (before is not None and label is before.label):
            labels.set_for_context(self.label)

    def end(self, error: BaseException | None, http: HTTPConnection) -> None:
        """Give back what is held, as the endpoint has ended."""
        # A middleware may send the same scope on once more.
        http.scope.pop("poolkit", None)
        for lease in self._leases.values():
            lease.end(error, AT_THE_END)
        self._leases.clear()

    def end_stream(self, pool: Pool[Any], error: BaseException | None) -> None:
        """Give back what was held for the whole response."""
        lease = self._streams.pop(pool)
        if error is None and lease.is_in_block:
            # The client has left, and the generator that streamed waits at a `yield` in its block.
            error = GeneratorExit()
        lease.end(error, AFTER_THE_RESPONSE)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Raise `PoolUnavailable` in the form that FastAPI answers; task groups raise groups."""
        try:
            yield
        except PoolUnavailable as error:
            make_answer(error, self.label, websocket=self._is_websocket)
            raise
        except BaseExceptionGroup as group:
            if group.split(PoolUnavailable)[1] is not None:
                raise
            first: Any = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            make_answer(first, self.label, websocket=self._is_websocket)
            try:
                raise first from first.__cause__
            finally:
                del first  # which would hold this frame, and be held by it

    # -- its leases ------------------------------------------------------------------------------

    def lease(self, pool: Pool[Any], dependency: object) -> LazyConnection[Any]:
        """Return the request's lease of a pool; it is acquired when it is first needed.

        Raises `PoolConfigError` where it would be given back before the endpoint begins.
        """
        if self.begins_late(dependency):
            raise PoolConfigError(
                f"{self.label} is a generator: it streams, and its body begins when connections "
                f"were given back. Either {INSTEAD}, or depend on poolkit.fastapi."
                "streaming_connection, which is held until the client has read everything"
            )
        if pool in self._streams:
            self._refuse_mix()
        lease = self._leases.get(pool)
        if lease is None:
            second_acquire.ensure(pool)
            lease = self._leases[pool] = LazyConnection(pool, self)
        return lease

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
            f"{self.label} depends on streaming_connection, which is held until the response is "
            "sent, beside connection, lazy or transaction, which are given back before: a request "
            "has one connection. Use one kind in all its dependencies, or take the others from "
            "poolkit.fastapi.pool"
        )

    def holds(self, pool: Pool[Any]) -> bool:
        """Tell whether a dependency of this request holds a connection of the pool."""
        return any(
            pool in leases and leases[pool].is_held for leases in (self._leases, self._streams)
        )
