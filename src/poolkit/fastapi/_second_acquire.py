"""The warning about a request that holds a connection and acquires another: it may wait for itself.

A context variable leads from anywhere in a request, child tasks and streams included, to what it
holds. Only pools that serve an application are observed.
"""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.callsite import place, users_place
from poolkit._shell.log import Told, say
from poolkit._shell.runtime import running_task
from poolkit._shell.shared import OnePerPool, Shared

if TYPE_CHECKING:
    from poolkit._shell.pool import Pool
    from poolkit.fastapi._request import RequestLeases

#: The request that the running code belongs to, if it has any of the dependencies.
current: Final = contextvars.ContextVar["RequestLeases | None"]("poolkit_request", default=None)


class SecondAcquire(Shared):
    """Observes one pool."""

    def __init__(self) -> None:
        self._told = Told()

    def acquire_began(self, pool: Pool[Any], label: str | None) -> None:
        """Warn if the request holds a connection of the pool, once for each route."""
        request = current.get()
        if request is None:
            return
        if request.acquires:  # for a dependency, which never waits beside what it holds
            request.acquires = False
        elif request.label not in self._told and _is_second(request, pool, label):
            self._told.add(request.label)
            found = users_place(2)
            say(
                logging.WARNING,
                "second_acquire",
                "%s holds a connection of pool %r and acquires another at %s: when all are held "
                "like this, everybody waits for somebody else. Use the one it has, or give that "
                "back first (depend on poolkit.fastapi.lazy, or on pool); told once for each route",
                request.label,
                pool.name,
                "an unknown place" if found is None else place(*found),
                pool=pool.name,
                label=request.label,
            )


def _is_second(request: RequestLeases, pool: Pool[Any], label: str | None) -> bool:
    """Tell whether somebody holds a connection and waits for this one.

    What the dependencies hold, they hold during all of it. Otherwise only a task waits for what it
    does itself: its siblings may well hold one each.
    """
    if request.holds(pool):
        return True
    task = running_task()
    return task is not None and any(
        info.label in (request.label, label) for info in pool.leases(task=task)
    )


_observers: Final = OnePerPool(SecondAcquire)

#: Of a pool that serves one more application, or one less.
begin: Final = _observers.begin
end: Final = _observers.end


def ensure(pool: Pool[Any]) -> None:
    """Have a pool observed that serves requests of whatever application."""
    if _observers.of(pool) is None:
        _observers.begin(pool)
