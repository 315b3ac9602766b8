"""What servers can undo: `poolkit.drivers._postgresql.survey`, as asyncpg asks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncpg import exceptions as pg

from poolkit.drivers._postgresql import survey
from poolkit.drivers.asyncpg import _internals as internals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.drivers.asyncpg._settings import Settings


class Survey(survey.Survey):
    """What one driver has found out about its servers."""

    def __init__(self, settings: Settings, arguments: Mapping[str, Any]) -> None:
        has_cache = bool(arguments.get("statement_cache_size", 1))
        super().__init__(
            tries_undo=settings.reset != "none" and settings.pooler != "transaction",
            looks_for_pooler=has_cache and settings.pooler is None,
            server_error=pg.PostgresError,
            parameter=lambda c, name: getattr(c.get_settings(), name, None),
        )

    async def examine(self, c: Any, pool: str, *, is_other: bool = False) -> None:
        """Find out what a fresh connection's server can undo, and whether there is a pooler."""
        await super().examine(c, pool, is_other=is_other or internals.is_not_postgresql(c))

    async def send_plain_reset(self, c: Any, query: str) -> bool:
        """Send a reset in one round trip; return False if nothing was sent.

        An operation may be under way of a statement that a task has kept, say. asyncpg knows that,
        and refuses, which costs a fifth of asking before.
        """
        send = c._parts.send_query
        if send is None:
            return False
        try:
            await send(query, None)
        except TypeError:  # it takes other arguments
            return False
        except pg.InterfaceError:
            if c.is_closed():
                raise
            return False
        except pg.PostgresError as error:
            self.reset_failed(c, error)
            raise
        c._must_unlisten = False
        if c.is_in_transaction():
            raise ConnectionError("the connection is in a transaction after its reset")
        return True
