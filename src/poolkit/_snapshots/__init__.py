"""What the processes of one server show each other: each leaves a snapshot of its pools.

`numbers_of` makes the snapshot of a pool, `Folder` has the files, and an `Exchange` writes and
reads them once a second. The live page shows all processes by it; whatever adds up over processes
may::

    def make(wanted: bool) -> dict[str, Any]:
        return {"pools": {"default": numbers_of(pool)}}

    exchange = Exchange(Folder("/run/shop"), make)
    exchange.begin()  # on the event loop
    for snapshot in await exchange.snapshots():
        if not snapshot.is_old:
            snapshot.pid, snapshot.pools["default"]["stats"]["leased"]
    exchange.end()
"""

from poolkit._snapshots.exchange import Exchange
from poolkit._snapshots.folder import HOST, Folder, Snapshot
from poolkit._snapshots.plain import numbers_of, plain

__all__ = ["HOST", "Exchange", "Folder", "Snapshot", "numbers_of", "plain"]
