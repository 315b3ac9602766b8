"""What is acquired by hand in a request: labelled with its route, and reported if it is a second.

A context variable leads from anywhere in a request, child tasks and streams included, to what it
holds. Only pools that serve an application are attended to; the others pay nothing for it.
"""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.callsite import place
from poolkit._shell.log import Told
from poolkit.fastapi import _routes as routes

if TYPE_CHECKING:
    from poolkit._shell.lease import Lease
    from poolkit._shell.pool import Pool
    from poolkit.fastapi._request import RequestLeases

logger = logging.getLogger("poolkit")

#: The request that the running code belongs to.
current: Final = contextvars.ContextVar["RequestLeases"]("poolkit_request")


def attend(pool: Pool[Any]) -> None:
    """Look at each acquire from a pool before it happens."""
    if "_acquire_nowait" not in vars(pool):
        vars(pool)["_acquire_nowait"] = _Attendant(pool)


def dismiss(pool: Pool[Any]) -> None:
    """Look no longer, unless the pool goes on serving: another application, for example."""
    if not pool._state.is_open:
        vars(pool).pop("_acquire_nowait", None)


class _Attendant:
    """Stands before the pool's own method."""

    def __init__(self, pool: Pool[Any]) -> None:
        self._pool = pool
        self._acquire = pool._acquire_nowait
        self._reported = Told()

    def __call__(self, lease: Lease[Any]) -> Any:
        request = current.get(None)
        if request is not None and lease._code is not request.code:
            new = request.label not in self._reported
            if new and self._pool._state.is_open and self._is_second(request):
                self._report(request.label, lease)
            lease._code = routes.labelled(lease._code, request.label)
        return self._acquire(lease)

    def _is_second(self, request: RequestLeases) -> bool:
        """Tell whether somebody holds a connection and waits for this one.

        What the dependencies hold, they hold during all of it. Otherwise only a task waits for
        what it does itself: its siblings may well hold one each.
        """
        if request.holds(self._pool):
            return True
        task = self._pool._runtime.task()
        holders = (slot.holder for slot in self._pool._state.leased if slot.holder)
        return any(one[0]() is task and one[1].co_name == request.label for one in holders)

    def _report(self, label: str, lease: Lease[Any]) -> None:
        self._reported.add(label)
        logger.warning(
            "%s holds a connection of pool %r and acquires another at %s: when all are held like "
            "this, everybody waits for somebody else. Use the one it has, or give that back first "
            "(depend on poolkit.fastapi.lazy, or on pool); told once for each route",
            label,
            self._pool.name,
            place(lease._code, lease._lasti),
        )
