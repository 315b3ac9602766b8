"""What a library over the pool has set on psycopg's object: it holds in its own leases only.

So it is with SQLAlchemy's ``autocommit``, adapters and handlers, and what its connect events set.
"""

from __future__ import annotations

from typing import Any, Final

from psycopg.adapt import AdaptersMap

#: Lists of handlers, of notices and of notifications.
HANDLERS: Final = ("_notice_handlers", "_notify_handlers")
#: Attributes that nobody sets, or that are kept in another way.
_OTHERS: Final = frozenset(
    {"pgconn", "lock", "_closed", "_pipeline", "_prepared", "_notifies_backlog", *HANDLERS}
    | {"_adapters", "_begin_statement"}
)
_MISSING: Final = object()


class Library:
    """What was set on a connection in this lease, which is taken back."""

    def __init__(self, c: Any) -> None:
        used, own = c.__dict__, c._poolkit_session.own
        self._adapters: AdaptersMap = c.adapters
        self._handlers = {
            name: [each for each in used[name] if each not in own[name]] for name in HANDLERS
        }
        self._attributes = {
            name: value
            for name, value in used.items()
            if own.get(name, _MISSING) is not value
            and name not in _OTHERS
            and not name.startswith("_poolkit_")
        }
        prepared = used["_prepared"]
        self._prepared = prepared.prepare_threshold, prepared.prepared_max
        for name in self._attributes:
            if name in own:
                used[name] = own[name]
            else:
                del used[name]
        for name in self._handlers:
            used[name][:] = own[name]
        prepared.prepare_threshold, prepared.prepared_max = own["_poolkit_prepared"]
        used["_begin_statement"] = b""  # which psycopg makes from the others

    def begin(self, c: Any) -> None:
        """Set the adapters, at the begin of a lease: `on_acquire` may add to them."""
        c._adapters = AdaptersMap(self._adapters)

    def use(self, c: Any) -> None:
        """Set the rest, but for what `on_acquire` has set. Calling it again changes nothing."""
        used, own = c.__dict__, c._poolkit_session.own
        for name, value in self._attributes.items():
            if used.get(name, _MISSING) is own.get(name, _MISSING):
                used[name] = value
        for name, handlers in self._handlers.items():
            used[name] += [each for each in handlers if each not in used[name]]
        prepared = used["_prepared"]
        if (prepared.prepare_threshold, prepared.prepared_max) == own["_poolkit_prepared"]:
            prepared.prepare_threshold, prepared.prepared_max = self._prepared
        used["_begin_statement"] = b""
        c._poolkit_allow_handlers()
