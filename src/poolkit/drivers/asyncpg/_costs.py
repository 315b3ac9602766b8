"""The undocumented parts of asyncpg that poolkit uses, and what it costs to do without each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import asyncpg

from poolkit.drivers.helpers import say

if TYPE_CHECKING:
    from collections.abc import Iterable

_RETIRED: Final = "a connection is closed after a lease"
_SLOWER: Final = (
    f"a reset takes a round trip more, and {_RETIRED} that has left something under way"
)
_NOT_AUTO: Final = "reset='auto' is no faster than 'full'"

#: Each part, and what it costs to do without.
COSTS: Final = {
    # in asyncpg's modules
    "asyncpg.connect": "what an agent has put around connections is taken off",
    "connect_utils._cancel": "what runs on a connection that is given up goes on at the server",
    "connection._ConnectionProxy": "isinstance(conn, asyncpg.Connection) may be False",
    "protocol.BaseProtocol": _SLOWER,
    "protocol.NO_TIMEOUT": "a reset waits for what was cancelled no longer than command_timeout",
    "protocol.PreparedStatementState": _SLOWER,
    # of the class of connections
    "Connection._unwrap": f"{_RETIRED} that has set callbacks",
    "Connection._get_statement": (
        f"behind a pooler cursors leave statements in its sessions, and {_NOT_AUTO}"
    ),
    "Connection._prepare": f"{_RETIRED} that has prepared statements",
    "Connection._executemany": "a reset ends settings that on_connect names only in executemany()",
    "Connection._copy_out": "a reset ends settings that on_connect names only in COPY",
    "Connection._introspect_type": f"{_RETIRED} that has changed type codecs",
    "Connection._introspect_types": f"{_RETIRED} that has changed type codecs",
    "Connection._drop_local_statement_cache": f"{_RETIRED} that has changed type codecs",
    "Connection._drop_local_type_cache": f"{_RETIRED} that has changed type codecs",
    "Connection._drop_global_statement_cache": "each connection finds out schema changes itself",
    "Connection._drop_global_type_cache": "each connection finds out schema changes itself",
    "Connection._cancel_current_command": f"{_RETIRED} if the server missed a cancellation",
    "Connection._mark_stmts_as_closed": f"{_RETIRED} that has deallocated statements in SQL",
    # of a connection
    "Connection._protocol": _SLOWER,
    "Connection._transport": "tcp_timeout has no effect: dead peers are noticed late",
    "Connection._params": "a reset may set the session authorization without need",
    "Connection._pool_release_ctr": f"{_RETIRED} that has made statements, cursors or transactions",
    "Connection._top_xact": f"{_RETIRED} that has made transactions",
    "Connection._listeners": f"{_RETIRED} that has set callbacks",
    "Connection._log_listeners": f"{_RETIRED} that has set callbacks",
    "Connection._termination_listeners": f"{_RETIRED} that has set callbacks",
    "Connection._query_loggers": f"{_RETIRED} that has set callbacks",
    "Connection._stmt_cache": f"{_RETIRED} with codecs, of SQLAlchemy's, or with full+prepared",
    "Connection._stmts_to_close": f"{_RETIRED} that has changed type codecs",
    "Connection._stmt_cache_enabled": "behind a pooler cursors leave statements in its sessions",
    "Connection._server_caps": "poolkit finds out what the server can undo by trying it",
    # of its protocol
    "Protocol._is_cancelling": f"each lease is followed by a reset, and {_NOT_AUTO}",
    "Protocol._wait_for_cancellation": f"{_RETIRED} that has left something under way",
    "Protocol._request_cancel": f"{_RETIRED} that has left something under way",
    "Protocol.close_statement": _SLOWER,
    "Protocol.query": "agents and query loggers see the pool's own statements",
    "Protocol.copy_out": "reading what on_connect has set up takes two round trips, not one",
    "Protocol.queries_count": f"max_queries has no effect, and {_NOT_AUTO}",
    # of its settings
    "ConnectionSettings.remove_python_codec": f"{_RETIRED} that has changed type codecs",
    "ConnectionSettings.add_python_codec": f"{_RETIRED} that has changed type codecs",
    "ConnectionSettings.set_builtin_type_codec": f"{_RETIRED} that has changed type codecs",
    "ConnectionSettings.register_data_types": f"{_RETIRED} that has changed type codecs",
}


class MissingParts:
    """The missing parts that one driver has warned of."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def report(self, pool: str, names: Iterable[str]) -> None:
        """Warn of parts that are missing, and of what that costs: once for each part."""
        new = [name for name in dict.fromkeys(names) if name not in self._reported]
        self._reported.update(new)
        if new:
            say(
                logging.WARNING,
                "unknown_version",
                "%s: parts of asyncpg %s are not as poolkit knows them; has an agent replaced "
                "them? The pool does without: %s",
                pool,
                getattr(asyncpg, "__version__", "?"),
                "; ".join(f"{name} ({COSTS[name]})" for name in new),
                pool=pool,
            )
