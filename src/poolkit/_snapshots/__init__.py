"""What the processes of one server show each other: each leaves a snapshot of its pools.

`numbers_of` makes the snapshot of a pool, `Folder` has the files, and an `Exchange` writes and
reads them once a second; `Applications` has one for each application that is served. The live page
and the metrics tell of all processes by it::

    def make(wanted: bool) -> dict[str, Any]:
        return {"pools": {"default": numbers_of(pool)}}

    exchange = Exchange(Folder("/run/shop"), make)
    exchange.begin()  # on the event loop
    for snapshot in await exchange.snapshots():
        if not snapshot.is_old:
            snapshot.pid, snapshot.pools["default"]["stats"]["leased"]
    exchange.end()
"""

from poolkit._snapshots.applications import Applications, Pools, folder_of
from poolkit._snapshots.exchange import Exchange
from poolkit._snapshots.folder import HOST, Folder, Snapshot
from poolkit._snapshots.plain import numbers_of, plain

__all__ = [
    "HOST",
    "Applications",
    "Exchange",
    "Folder",
    "Pools",
    "Snapshot",
    "folder_of",
    "numbers_of",
    "plain",
]
