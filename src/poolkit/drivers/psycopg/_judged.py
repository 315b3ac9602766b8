"""What of psycopg sends nothing but texts that are judged, at ``reset="auto"``.

Cursors tell the session of each text before they send it. psycopg hands all I/O of a lease to
``AsyncConnection.wait()`` as a generator, so **whatever generator is not one of these is more than
plain statements**: copies, streams, notifications, cursors of the server's, two-phase commits, and
what a later version of psycopg may bring.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.transaction import AsyncTransaction

from poolkit.drivers.psycopg._sent import simple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.drivers.psycopg._session import Session

#: The cursors that tell of each text before they send it. Classes of users may do otherwise.
JUDGED_CURSORS: Final[frozenset[Any]] = frozenset(
    {psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor}
)


def _codes(kind: Any, *names: str) -> Iterator[object]:
    """Yield the codes of a class's generators, as far as this version of psycopg has them."""
    for name in names:
        method = getattr(kind, name, None)
        if inspect.isgeneratorfunction(method):
            yield method.__code__


#: Send one text, any number of times.
_OF_CURSORS: Final = frozenset(
    _codes(
        psycopg.AsyncCursor,
        *("_execute_gen", "_executemany_gen_pipeline", "_executemany_gen_no_pipeline"),
    )
)
#: Begin and end transactions, set savepoints, or send nothing; those of pipelines send what the
#: others have put into them. And the pool's own texts.
_OTHERS: Final = frozenset(
    {
        *_codes(psycopg.AsyncConnection, "_commit_gen", "_rollback_gen", "_set_autocommit_gen"),
        *_codes(psycopg.AsyncConnection, "_set_isolation_level_gen", "_set_read_only_gen"),
        *_codes(psycopg.AsyncConnection, "_set_deferrable_gen"),
        *_codes(AsyncTransaction, "_enter_gen", "_exit_gen"),
        *_codes(psycopg.AsyncPipeline, "_enter_gen", "_exit_gen", "_sync_gen", "_fetch_gen"),
        simple.__code__,
    }
)


def judge(session: Session, generator: object) -> None:
    """Judge what is about to run."""
    code = getattr(generator, "gi_code", None)
    if code in _OF_CURSORS:
        session.unheard += 1
    elif code not in _OTHERS:
        session.spoil()
