"""The metrics of all processes of a server: each tells of all, by the snapshots they have left.

What a process tells of itself it takes from the folder, too. So the counters of a process never
fall from one scrape to the next, whichever processes answer them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.prometheus._families import families
from poolkit.prometheus._snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from poolkit._shell.pool import Pool
    from poolkit._snapshots import Snapshot as Left

#: The folder in the ``workers_folder`` that the metrics have for themselves.
PART: Final = "metrics"
_NOBODY: Final = {"worker": ""}


def left_of(pools: Iterable[Pool[Any]]) -> dict[str, Any]:
    """Return what a process leaves of its pools."""
    return {"pools": {str(n): snapshot(pool) for n, pool in enumerate(pools)}}


def told_of(found: Iterable[Left], own: str, pools: Iterable[Pool[Any]]) -> Iterator[Metric]:
    """Yield the metrics of all processes that have left something within the last 10 s.

    If ``own``, the one that answers, has not, then it could not yet, or cannot write: its pools are
    told of as they are now.
    """
    left = {each.worker: list(each.pools.values()) for each in found if not each.is_old}
    if own not in left:
        left[own] = [snapshot(pool) for pool in pools]
    told = [(worker, pool) for worker, each in left.items() for pool in each if _is_whole(pool)]
    return families([pool for _, pool in told], labels=[{"worker": worker} for worker, _ in told])


def _is_whole(pool: Any) -> bool:
    """Tell whether all there is to tell can be told of it: another version may have left less."""
    try:
        samples = [each for metric in families([pool], labels=[_NOBODY]) for each in metric.samples]
        for sample in samples:
            float(sample.value)
            "".join(sample.labels.values()).encode()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return True
