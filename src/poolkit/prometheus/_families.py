"""The metrics, made from snapshots: the only place that knows their names.

Those of ``db.client.connection.*`` are what OpenTelemetry's exporter for Prometheus makes of the
semantic conventions 1.44, in which they are "in development": they may be renamed there.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from poolkit.prometheus._snapshot import Snapshot, Times

_DB: Final = "db_client_connection"
_POOL: Final = f"{_DB}_pool_name"

_GAUGES: Final = {
    f"{_DB}_idle_max": ("The most connections that are kept open: max_size.", "idle_max"),
    f"{_DB}_idle_min": ("The connections that are kept open at least: min_size.", "idle_min"),
    f"{_DB}_max": ("The most connections there can be: max_size and max_overflow.", "max"),
    f"{_DB}_pending_requests": ("Callers that wait for a connection now.", "pending"),
    "poolkit_oldest_wait_seconds": ("How long the first in line has waited.", "oldest_wait"),
    "poolkit_oldest_lease_seconds": (
        "How long the connection is held that is held the longest.",
        "oldest_lease",
    ),
    "poolkit_listening": (
        "Connections of listeners: beside the capacity, but the server counts them.",
        "listening",
    ),
    "poolkit_open": ("1 while the pool is open, else 0.", "open"),
}
_HISTOGRAMS: Final = {
    f"{_DB}_create_time_seconds": ("How long it took to open a connection.", "create_time"),
    f"{_DB}_wait_time_seconds": (
        "How long callers waited who got a connection; those of 0 s found one idle.",
        "wait_time",
    ),
    f"{_DB}_use_time_seconds": ("How long connections were leased.", "use_time"),
}


def families(
    snapshots: Iterable[Snapshot], *, labels: Iterable[Mapping[str, str]] = ()
) -> Iterator[Metric]:
    """Yield the metrics of some pools, from what `snapshot` has returned for each.

    Of two pools with one name the second one gets ``(2)`` after it, and so on.

    Args:
        snapshots: of the pools; here, or from other processes.
        labels: more labels for each of them, such as ``{"worker": "3"}``: as many as there are
            snapshots, all with the same names; none by default.

    """
    pools = list(snapshots)
    more = list(labels) or [{}] * len(pools)
    names = (_POOL, *(more[0] if more else ()))
    seen: set[tuple[str, ...]] = set()
    each: list[tuple[tuple[str, ...], Snapshot]] = []
    for pool, extra in zip(pools, more, strict=True):
        values = (pool["pool"], *extra.values())
        nth = 1
        while values in seen:  # as is "a (2)" if a pool has that name
            nth += 1
            values = (f"{pool['pool']} ({nth})", *extra.values())
        seen.add(values)
        each.append((values, pool))

    count = GaugeMetricFamily(
        f"{_DB}_count",
        "Connections that are idle, and used: held by a caller.",
        labels=(*names, f"{_DB}_state"),
    )
    timeouts = CounterMetricFamily(
        f"{_DB}_timeouts", "Acquires that got no connection in time.", labels=names
    )
    failures = CounterMetricFamily(
        "poolkit_connect_failures", "Attempts to connect that failed.", labels=names
    )
    retried = CounterMetricFamily(
        "poolkit_retried", "Attempts at a transaction that were made again.", labels=names
    )
    refused = CounterMetricFamily(
        "poolkit_refused",
        "Acquires that got no connection for another reason than time.",
        labels=(*names, "kind"),
    )
    retired = CounterMetricFamily(
        "poolkit_retired", "Connections that were closed, by reason.", labels=(*names, "reason")
    )
    held = GaugeMetricFamily(
        "poolkit_held",
        "Connections held, by the ten routes or labels that hold the most.",
        labels=(*names, "route"),
    )
    for values, pool in each:
        count.add_metric((*values, "idle"), pool["idle"])
        count.add_metric((*values, "used"), pool["used"])
        timeouts.add_metric(values, pool["timeouts"])
        failures.add_metric(values, pool["connect_failures"])
        retried.add_metric(values, pool["retried"])
        for kind, number in pool["refused"].items():
            refused.add_metric((*values, kind), number)
        for reason, number in pool["retired"].items():
            retired.add_metric((*values, reason), number)
        for route, number in pool["held"].items():
            held.add_metric((*values, route), number)
    yield count
    for name, (about, key) in _GAUGES.items():
        unit = "seconds" if name.endswith("_seconds") else ""
        gauge = GaugeMetricFamily(name, about, labels=names, unit=unit)
        for values, pool in each:
            gauge.add_metric(values, pool[key])  # type: ignore[literal-required]
        yield gauge
    yield timeouts
    for name, (about, key) in _HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, about, labels=names, unit="seconds")
        for values, pool in each:
            times: Times = pool[key]  # type: ignore[literal-required]
            histogram.add_metric(values, _buckets(times), times["sum"])
        yield histogram
    yield from (failures, retried, refused, retired, held)


def _buckets(times: Times) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus has them: how many did not exceed each bound."""
    bounds = (*map(floatToGoString, times["bounds"]), "+Inf")
    return list(zip(bounds, itertools.accumulate(times["counts"]), strict=True))
