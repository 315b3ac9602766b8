"""OpenTelemetry: the nine ``db.client.connection.*`` metrics of a pool, and spans of its waits.

`instrument` adds a pool, `uninstrument` takes it away. What the pool counts itself is read when the
metrics are collected, and costs nothing between two collections. The three histograms need each
value: an observer is told them, once a second or some hundred at a time, and they are recorded when
the metrics are collected, in the thread that collects. No acquire and no release pays for it.

The names are those of semantic conventions 1.44, where all nine are still "in development": they
may change, here and nowhere else.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from poolkit import __version__
from poolkit._driver import missing_extra
from poolkit._errors import PoolConfigError
from poolkit._shell.pool import Pool
from poolkit._text import one_line

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import Observation
except ImportError as _missing:
    raise missing_extra("otel", _missing) from _missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import CallbackOptions, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from poolkit._core.slot import Outcome
    from poolkit._stats import PoolStats

__all__ = ["instrument", "uninstrument"]

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
POOL_NAME: Final = "db.client.connection.pool.name"
STATE: Final = "db.client.connection.state"
COUNT: Final = "db.client.connection.count"
IDLE_MAX: Final = "db.client.connection.idle.max"
IDLE_MIN: Final = "db.client.connection.idle.min"
MAX: Final = "db.client.connection.max"
PENDING_REQUESTS: Final = "db.client.connection.pending_requests"
TIMEOUTS: Final = "db.client.connection.timeouts"
CREATE_TIME: Final = "db.client.connection.create_time"
WAIT_TIME: Final = "db.client.connection.wait_time"
USE_TIME: Final = "db.client.connection.use_time"
#: poolkit's own: values that were not recorded, because too many came between two collections.
DROPPED: Final = "poolkit.measurements.dropped"
#: Of the span of a wait.
SPAN: Final = "poolkit.wait"
LABEL: Final = "poolkit.label"
OUTCOME: Final = "poolkit.outcome"

#: Seconds; those of ``db.client.operation.duration``, as the conventions have none for pools.
BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
#: Characters of a pool's name that are kept.
_LONGEST: Final = 200


def instrument(
    pool: Pool[Any],
    meter_provider: MeterProvider | None = None,
    *,
    tracer_provider: TracerProvider | None = None,
    spans: bool = False,
    buffer_size: int = 10_000,
) -> None:
    """Report a pool's metrics from now on, until `uninstrument`; an open pool or a closed one.

    A pool is reported once: what is given the second time takes the place of the first. Pools of
    the same name are reported as one, with their sums.

    Args:
        pool: the pool.
        meter_provider: where its metrics go; the global one by default, also if that is set later.
        tracer_provider: where its spans go, if it is to have any; the global one by default.
        spans: whether each wait for a connection is a span, a child of what is under way there. An
            acquire that finds an idle connection has none.
        buffer_size: values that each of the three histograms keeps between two collections. Of more
            the newest are kept, and the others counted, in ``poolkit.measurements.dropped``.

    Raises `PoolConfigError` for what is no pool.
    """
    _check(pool, "instrument")
    if not isinstance(buffer_size, int) or isinstance(buffer_size, bool) or buffer_size < 1:
        raise PoolConfigError(f"buffer_size={buffer_size!r} is not a whole number from 1 up")
    tracer = None
    if spans or tracer_provider is not None:
        tracer = trace.get_tracer("poolkit", __version__, tracer_provider, SCHEMA)
    with _lock:
        uninstrument(pool)
        meter = _meter_of(meter_provider)
        measures = _Measures(pool, meter, buffer_size)
        if tracer is not None:
            measures = _Traced(pool, meter, buffer_size, tracer)
        _instrumented[pool] = weakref.ref(measures)
        meter.measured = (*meter.without(None), weakref.ref(measures))
        measures.stop = pool.observe(measures)


def uninstrument(pool: Pool[Any]) -> None:
    """Report a pool's metrics no more; what was measured before is still recorded.

    If another thread than the pool's calls, the values of the last second are not.
    """
    _check(pool, "uninstrument")
    with _lock:
        found = _instrumented.pop(pool, None)
        measures = None if found is None else found()
        if measures is not None:
            measures.stop()
            measures.meter.measured = measures.meter.without(measures)
            measures.meter.record(measures)


def _check(pool: object, function: str) -> None:
    if not isinstance(pool, Pool):
        kind = type(pool).__name__
        raise PoolConfigError(f"{function}() was given an object of type {kind}: give a pool")


class _Measures:
    """What one pool has measured since the metrics were collected: an observer.

    The pool holds it. It holds the pool, too, so nothing else may hold it.
    """

    stop: Callable[[], None]

    def __init__(self, pool: Pool[Any], meter: _Meter, size: int) -> None:
        self.pool = pool
        self.meter = meter
        # What exporters cannot encode, such as half a surrogate pair, is escaped.
        self.attributes = {POOL_NAME: one_line(pool.name, _LONGEST)}
        self._size = size
        self.values: dict[str, deque[float]] = {
            name: deque(maxlen=size) for name in (CREATE_TIME, WAIT_TIME, USE_TIME)
        }
        self._created, self._waited, self._used = self.values.values()
        self.dropped = 0  # in all
        self._timeouts = 0

    def connected(self, pool: Pool[Any], seconds: float) -> None:  # noqa: ARG002
        """Keep how long a connect has taken."""
        self._keep(self._created, seconds)

    def timed(self, pool: Pool[Any], what: str, seconds: tuple[float, ...]) -> None:  # noqa: ARG002
        """Keep how long acquires, or leases, have taken."""
        self._keep(self._waited if what == "wait" else self._used, *seconds)

    def timeouts(self, stats: PoolStats) -> int:
        """Return a counter that never falls.

        An acquire that timed out, and is cancelled before its caller has noticed, is counted anew.
        """
        self._timeouts = max(self._timeouts, stats.timed_out)
        return self._timeouts

    def _keep(self, values: deque[float], *seconds: float) -> None:
        self.dropped += max(0, len(values) + len(seconds) - self._size)
        values.extend(seconds)


class _Traced(_Measures):
    """The same, with a span for each wait."""

    def __init__(self, pool: Pool[Any], meter: _Meter, size: int, tracer: Tracer) -> None:
        super().__init__(pool, meter, size)
        self._tracer = tracer

    def wait_ended(
        self,
        pool: Pool[Any],  # noqa: ARG002
        label: str | None,
        seconds: float,
        outcome: Outcome,
    ) -> None:
        """Make the span of a wait, in the task that has waited."""
        end = time.time_ns()
        attributes = {**self.attributes, OUTCOME: outcome}
        if label is not None:
            attributes[LABEL] = label
        span = self._tracer.start_span(
            SPAN,
            kind=trace.SpanKind.INTERNAL,
            attributes=attributes,
            start_time=end - int(seconds * 1e9),
        )
        if outcome != "served":
            span.set_status(trace.StatusCode.ERROR, outcome)
        span.end(end)


class _Meter:
    """The instruments of one provider, and the pools that are read by them."""

    def __init__(self, provider: MeterProvider | None) -> None:
        #: Replaced, never changed: it is read by the thread that collects, which may hold a lock
        #: of the SDK's that is needed to make an instrument.
        self.measured: tuple[weakref.ref[_Measures], ...] = ()
        meter = metrics.get_meter("poolkit", __version__, provider, SCHEMA)
        self._histograms = {
            name: meter.create_histogram(
                name, "s", f"The time it took {what}", explicit_bucket_boundaries_advisory=BUCKETS
            )
            for name, what in (
                (CREATE_TIME, "to create a new connection"),
                (WAIT_TIME, "to obtain an open connection from the pool"),
                (USE_TIME, "between borrowing a connection and returning it to the pool"),
            )
        }
        for name, unit, read, what in _GAUGES:
            meter.create_observable_up_down_counter(name, [self._read(read)], unit, what)
        for name, unit, read, what in _COUNTERS:
            meter.create_observable_counter(name, [self._read(read)], unit, what)

    def without(self, gone: _Measures | None) -> tuple[weakref.ref[_Measures], ...]:
        """Return what is measured, but for one and for what was collected."""
        return tuple(ref for ref in self.measured if ref() not in (gone, None))

    def record(self, measures: _Measures) -> None:
        """Record what a pool has measured."""
        for name, values in measures.values.items():
            for _ in range(len(values)):
                try:
                    seconds = values.popleft()
                except IndexError:  # another thread collects as well
                    break
                self._histograms[name].record(seconds, measures.attributes)

    def _read(self, read: _Read) -> Callable[[CallbackOptions], list[Observation]]:
        """Return what is called when the metrics are collected, and records what was measured."""

        def collect(_: CallbackOptions) -> list[Observation]:
            sums: dict[tuple[str, str | None], int] = {}
            for ref in self.measured:
                if (measures := ref()) is not None:
                    stats = measures.pool.stats()  # tells times, too, if this is the pool's loop
                    self.record(measures)
                    name = measures.attributes[POOL_NAME]
                    for state, number in read(measures, stats).items():
                        sums[name, state] = sums.get((name, state), 0) + number
            return [
                Observation(number, {POOL_NAME: name, **({STATE: state} if state else {})})
                for (name, state), number in sums.items()
            ]

        return collect


#: Returns a number, or those of each state.
_Read: TypeAlias = "Callable[[_Measures, PoolStats], dict[str | None, int]]"


_GAUGES: Final[tuple[tuple[str, str, _Read, str], ...]] = (
    (
        COUNT,
        "{connection}",
        lambda _, stats: {"idle": stats.idle, "used": stats.leased},
        "The number of connections that are currently in the state described by the attribute",
    ),
    (
        IDLE_MAX,
        "{connection}",
        lambda _, stats: {None: stats.max_size},
        "The maximum number of idle open connections allowed",
    ),
    (
        IDLE_MIN,
        "{connection}",
        lambda _, stats: {None: stats.min_size},
        "The minimum number of idle open connections allowed",
    ),
    (
        MAX,
        "{connection}",
        lambda _, stats: {None: stats.capacity},
        "The maximum number of open connections allowed",
    ),
    (
        PENDING_REQUESTS,
        "{request}",
        lambda _, stats: {None: stats.waiting},
        "The number of current pending requests for an open connection",
    ),
)
_COUNTERS: Final[tuple[tuple[str, str, _Read, str], ...]] = (
    (
        TIMEOUTS,
        "{timeout}",
        lambda measures, stats: {None: measures.timeouts(stats)},
        "The number of timeouts that have occurred trying to obtain a connection from the pool",
    ),
    (
        DROPPED,
        "{measurement}",
        lambda measures, _: {None: measures.dropped},
        "Values that were not recorded, because too many came between two collections",
    ),
)
_lock: Final = threading.RLock()
_instrumented: Final[weakref.WeakKeyDictionary[Pool[Any], weakref.ref[_Measures]]] = (
    weakref.WeakKeyDictionary()
)
#: By provider: instruments of the same name in one meter would be reported twice.
_meters: Final[weakref.WeakKeyDictionary[Any, _Meter]] = weakref.WeakKeyDictionary()
#: Of the global provider, whether it is set already or later.
_global: Final[list[_Meter]] = []


def _meter_of(provider: MeterProvider | None) -> _Meter:
    current = metrics.get_meter_provider()
    if provider is None and current in _meters:  # it was given by hand, before it became the global
        provider = current
    if provider not in _meters:
        if provider is None or provider is current:
            if not _global:
                _global.append(_Meter(None))
            return _global[0]
        _meters[provider] = _Meter(provider)
    return _meters[provider]
