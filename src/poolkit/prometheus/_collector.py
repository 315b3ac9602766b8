"""`Collector`: what a registry of prometheus-client asks for the metrics of pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector as _Collector

from poolkit._errors import PoolConfigError
from poolkit._shell.pool import Pool
from poolkit.prometheus._families import families
from poolkit.prometheus._snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric


class Collector(_Collector):
    """The metrics of some pools, for a registry: ``REGISTRY.register(Collector(pool))``.

    A registry has every metric once: give all pools of a registry to one collector, at once or with
    `add` later. A pool that is given twice is there once. Pools may be open or closed, and those of
    another event loop or thread; a registry may ask from any thread.

    prometheus-client's multiprocess mode asks no collectors: each process tells its own pools.

    Raises `PoolConfigError` for what is no pool.
    """

    def __init__(self, *pools: Pool[Any]) -> None:
        self._pools: tuple[Pool[Any], ...] = ()
        for pool in pools:
            self.add(pool)

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
        """Return the metrics, as they are now."""
        return families([snapshot(pool) for pool in self._pools])
