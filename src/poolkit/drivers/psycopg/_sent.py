"""What poolkit itself sends and reads on a connection of psycopg's, as generators of its kind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import generators, pq, waiting

if TYPE_CHECKING:
    from collections.abc import Generator

_OFF: Final = int(pq.PipelineStatus.OFF)
_FATAL: Final = int(pq.ExecStatus.FATAL_ERROR)


def simple(pgconn: Any, text: str) -> Generator[Any, Any, list[Any]]:
    """Send a text by the simple protocol, in which it may have several statements."""
    pgconn.send_query(text.encode() if text.isascii() else text.encode(pgconn._encoding))
    results: list[Any] = yield from generators.execute(pgconn)
    for result in results:
        if result.status == _FATAL:
            raise psycopg.errors.error_from_result(result, encoding=pgconn._encoding)
    return results


def leftovers(pgconn: Any) -> Generator[Any, Any, None]:
    """Read what an abandoned operation has left to be read: rows, a COPY, a pipeline."""
    in_pipeline = pgconn.pipeline_status != _OFF
    if in_pipeline:
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
    status = pq.ExecStatus
    while True:
        result = yield from generators.fetch(pgconn)
        if result is None:
            if not in_pipeline:
                return
        elif result.status in (status.COPY_IN, status.COPY_BOTH):
            pgconn.put_copy_end(b"the lease is over")
            yield from generators.send(pgconn)
        elif result.status == status.COPY_OUT:
            while (size := pgconn.get_copy_data(1)[0]) >= 0:
                if not size:
                    yield waiting.WAIT_R
                    pgconn.consume_input()
        elif result.status == status.PIPELINE_SYNC:
            with contextlib.suppress(psycopg.OperationalError):  # there is more to read
                pgconn.exit_pipeline_mode()
                return
