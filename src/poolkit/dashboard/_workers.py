"""The processes of one server, as the page shows them: each by its snapshot in a shared folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, Final

from poolkit._snapshots import (
    HOST,
    Applications,
    Exchange,
    Pools,
    Snapshot,
    folder_of,
    numbers_of,
)
from poolkit.dashboard._history import samples_of
from poolkit.dashboard._snapshot import see

#: What the table of the processes has of each one's `PoolStats`.
_NUMBERS: Final = ("leased", "idle", "waiting", "oldest_wait", "size", "capacity")
#: What comes of a snapshot of another program, or another version.
_ODD: Final = (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError)


class Workers:
    """The processes, if there is a folder in which they meet; else this one alone."""

    def __init__(
        self, folder: str | os.PathLike[str] | None, pools_of: Callable[[Any], Pools]
    ) -> None:
        self._all: Final = (
            None if folder is None else Applications(folder_of(folder), pools_of, _left)
        )
        #: For the router; None if no process takes part.
        self.lifespan: Final = None if self._all is None else self._all.lifespan

    async def meet(self, app: Any, pools: Pools) -> Meeting:
        """Return the processes as they are seen by a request."""
        if self._all is None:
            return Meeting(None, [], "", pools)
        exchange = self._all.meet(app, pools)
        try:
            return Meeting(exchange, await exchange.snapshots(), exchange.trouble, pools)
        except OSError as error:
            return Meeting(exchange, [], type(error).__name__, pools)


class Meeting:
    """What one request sees of the processes."""

    def __init__(
        self, exchange: Exchange | None, found: list[Snapshot], trouble: str, pools: Pools
    ) -> None:
        self._exchange = exchange
        self._trouble = trouble
        self._pools = pools
        self.own = "" if exchange is None else exchange.worker
        self._others = {one.worker: one for one in found if one.worker != self.own}

    def head(self, name: str) -> dict[str, Any]:
        """Return the process that answers, and the table of all that have a pool of this name."""
        own = {"worker": self.own, "pid": os.getpid(), "host": HOST}
        stats = self._pools[name].stats()
        few = {number: getattr(stats, number) for number in _NUMBERS}
        rows = [{**own, "age": 0.0, "stats": few}]
        rows += [row for one in self._others.values() if (row := _row(one, name)) is not None]
        rows.sort(key=lambda row: (row["host"], row["pid"], row["worker"]))
        return {"process": own, "workers": rows, "trouble": self._trouble}

    def other(self, worker: str) -> Snapshot | None:
        """Return what another process has left, and ask it for all of it; None: it has ended."""
        found = self._others.get(worker)
        if found is not None and self._exchange is not None:
            self._exchange.want(worker)
        return found


def _left(pools: Pools, all_of_it: bool) -> dict[str, Any]:  # noqa: FBT001
    """Return what this process leaves for the others."""
    left: dict[str, dict[str, Any]] = {name: numbers_of(pool) for name, pool in pools.items()}
    if all_of_it:
        for name, pool in pools.items():
            made = see(pool).decode()  # first: it takes a sample
            left[name]["page"] = {"json": made, "samples": samples_of(pool, float("-inf"))}
    return {"pools": left}


def page_of(snapshot: Snapshot, name: str, after: float) -> tuple[bytes, list[Any]] | None:
    """Return what a process has left of one pool's page, and new samples; None: not yet."""
    try:
        page = snapshot.pools[name]["page"]
        samples = [_checked(sample) for sample in page["samples"] if sample[0] > after]
        text = page["json"].strip().encode("ascii")
        # It is sent as it is: it must be JSON, and an object that has something in it.
        is_whole = isinstance(made := json.loads(text, parse_constant=_refuse), dict) and made
    except _ODD:
        return None
    return (text, samples) if is_whole else None


def _row(one: Snapshot, name: str) -> dict[str, Any] | None:
    """Return what the table has of a process; None if it has left nothing of such a pool."""
    try:
        few = {number: 0 + one.pools[name]["stats"][number] for number in _NUMBERS}
        _checked(few.values())
    except _ODD:
        return None
    return {"worker": one.worker, "pid": one.pid, "host": one.host, "age": one.age, "stats": few}


def _checked(numbers: Iterable[Any]) -> list[Any]:
    """Return numbers that JSON has, or None in their place. Raises what else they make raise."""
    checked = list(numbers)
    if not all(number is None or math.isfinite(number) for number in checked):
        raise ValueError
    return checked


def _refuse(_: str) -> None:
    raise ValueError  # NaN: browsers cannot read it
