"""Metrics for Prometheus: ``REGISTRY.register(poolkit.prometheus.Collector(pool))``.

They are those of ``pool.stats()`` and ``pool.leases()``, read when they are asked for, so that a
pool does nothing for them between two scrapes. Their names are those that OpenTelemetry's exporter
for Prometheus makes of ``db.client.connection.*``; what OpenTelemetry has no name for begins with
``poolkit_``. ``poolkit.fastapi.router(metrics=True)`` serves them.
"""

from __future__ import annotations

from poolkit._driver import missing_extra

try:
    import prometheus_client as _prometheus_client  # noqa: F401  # first: it says what is missing
except ImportError as _missing:
    raise missing_extra("prometheus", _missing) from _missing

from poolkit.prometheus._collector import Collector
from poolkit.prometheus._families import families
from poolkit.prometheus._snapshot import Snapshot, snapshot

__all__ = ["Collector", "Snapshot", "families", "snapshot"]
