"""`Collector`: what a registry of prometheus-client asks for the metrics of pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector as _Collector

from poolkit._errors import PoolConfigError
from poolkit._shell.pool import Pool
from poolkit._snapshots import Exchange, folder_of
from poolkit.prometheus._families import families
from poolkit.prometheus._snapshot import snapshot
from poolkit.prometheus._workers import PART, left_of, told_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from typing import Self

    from prometheus_client.core import Metric


class Collector(_Collector):
    """The metrics of some pools, for a registry: ``REGISTRY.register(Collector(pool))``.

    A registry has every metric once: give all pools of a registry to one collector, at once or with
    `add` later. A pool that is given twice is there once. Pools may be open or closed, and those of
    another event loop or thread; a registry may ask from any thread.

    prometheus-client's multiprocess mode asks no collectors. Where a server has several processes,
    let the collector of each take part, from when its event loop runs, and any tells of all, with
    a label ``worker``::

        collector = Collector(pool, workers_folder="/run/shop/poolkit")
        ...
        async with pool:
            with collector:
                ...  # serve

    Args:
        pools: to tell of.
        workers_folder: in which the processes meet. None: this process tells of itself alone, and
            ``with collector:`` does nothing.

    Raises `PoolConfigError` for what is no pool, and for a folder that cannot be used.
    """

    def __init__(
        self, *pools: Pool[Any], workers_folder: str | os.PathLike[str] | None = None
    ) -> None:
        self._pools: tuple[Pool[Any], ...] = ()
        for pool in pools:
            self.add(pool)
        self._exchange: Exchange | None = None
        if workers_folder is not None:
            self._folder = folder_of(workers_folder, PART)
            self._exchange = Exchange(self._folder, lambda _: left_of(self._pools))

    def __enter__(self) -> Self:
        """Begin to leave what this process has to tell: on the event loop, else RuntimeError."""
        if self._exchange is not None:
            self._exchange.begin()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no more, and remove what was left."""
        if self._exchange is not None:
            self._exchange.end()

    def add(self, pool: Pool[Any], /) -> None:
        """Tell of this pool as well."""
        if not isinstance(pool, Pool):
            raise PoolConfigError(f"a Collector is given pools, not a {type(pool).__name__}")
        if not any(pool is known for known in self._pools):
            self._pools = (*self._pools, pool)

    def remove(self, pool: Pool[Any], /) -> None:
        """Tell of this pool no more."""
        self._pools = tuple(known for known in self._pools if known is not pool)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without a sample, so that a registry knows their names."""
        return families(())

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: as they are now, or with ``workers_folder`` up to a second ago.

        Raises `OSError` if that folder cannot be read.
        """
        if self._exchange is None:
            return families([snapshot(pool) for pool in self._pools])
        return told_of(self._folder.read(), self._exchange.worker, self._pools)
