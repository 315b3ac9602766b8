"""The applications of one server that take part: each for as long as it runs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit._errors import PoolConfigError
from poolkit._shell.pool import Pool
from poolkit._snapshots.exchange import Exchange
from poolkit._snapshots.folder import Folder

if TYPE_CHECKING:
    import os

Pools = Mapping[str, Pool[Any]]


def folder_of(workers_folder: str | os.PathLike[str], part: str = "") -> Folder:
    """Return the folder that an option names, or one in it. Raises `PoolConfigError`."""
    try:
        return Folder(Path(workers_folder, part))
    except (OSError, TypeError, ValueError) as error:
        raise PoolConfigError(
            f"workers_folder={workers_folder!r} cannot be used: {error}. Give the path of a folder "
            "that this program may write to, on a disk that all processes see"
        ) from error


class Applications:
    """The exchanges of the applications that this process serves.

    Args:
        folder: where they leave their snapshots.
        pools_of: returns the pools for the scope of an application, or of a request.
        make: returns what to leave of some pools, and is told whether all of it is wanted.

    """

    def __init__(
        self,
        folder: Folder,
        pools_of: Callable[[Any], Pools],
        make: Callable[[Pools, bool], Mapping[str, Any]],
    ) -> None:
        self._folder = folder
        self._pools_of = pools_of
        self._make = make
        self._exchanges: weakref.WeakKeyDictionary[Any, Exchange] = weakref.WeakKeyDictionary()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Take part while an application runs."""
        exchange = self._join(app, lambda: self._pools_of({"app": app}))
        try:
            yield
        finally:
            exchange.end()
            self._exchanges.pop(app, None)

    def meet(self, app: Any, pools: Pools) -> Exchange:
        """Return the exchange of an application that serves a request.

        The lifespan of an application within another is not run: then it begins to take part here.
        """
        return self._join(app, lambda: pools)

    def _join(self, app: Any, pools: Callable[[], Pools]) -> Exchange:
        exchange = self._exchanges.get(app)
        if exchange is None or exchange.has_ended:
            make = self._make
            exchange = Exchange(self._folder, lambda wanted: make(pools(), wanted))
            self._exchanges[app] = exchange
        exchange.begin()
        return exchange
