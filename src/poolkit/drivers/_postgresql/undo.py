"""The SQL by which a server undoes what a lease has done, whatever library sends it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolkit.drivers._postgresql.base import Restoration

_AUTHORIZATION: Final = "RESET SESSION AUTHORIZATION"
_ROLE: Final = "RESET ROLE"
#: What a reset undoes, in words, and the statements that may undo it, the best one first. The role
#: comes first. Functions are named with their schema: the lease may have set a search_path that
#: finds functions of its own.
PIECES: Final[Mapping[str, tuple[str, ...]]] = {
    "session authorization": (_AUTHORIZATION, "SET SESSION AUTHORIZATION DEFAULT"),
    "role": (_ROLE, "SET ROLE NONE"),
    "settings": ("RESET ALL",),
    "advisory locks": ("SELECT pg_catalog.pg_advisory_unlock_all()",),
    "held cursors": ("CLOSE ALL",),
    "LISTEN": ("UNLISTEN *",),
    "temporary tables": ("DISCARD TEMP",),
    "currval of sequences": ("DISCARD SEQUENCES",),
}
MIDDLE: Final = ("settings", "advisory locks", "held cursors", "LISTEN")
END: Final = ("temporary tables", "currval of sequences")

#: Drops the statements prepared by SQL but for some.
DEALLOCATE: Final = """\
DO $poolkit$DECLARE n text; BEGIN
    FOR n IN SELECT name FROM pg_catalog.pg_prepared_statements
        WHERE from_sql AND name OPERATOR(pg_catalog.<>) ALL (ARRAY[{}]::text[])
    LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', n);
    END LOOP;
END$poolkit$;"""


@dataclasses.dataclass(frozen=True)
class UndoSQL:
    """The statements by which one server undoes what a lease has done."""

    #: By the words in `PIECES`; what the server cannot undo is missing.
    by_piece: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {name: statements[0] for name, statements in PIECES.items()}
    )
    #: Whether the server runs a DO block, by which a reset drops some statements and not others.
    has_do: bool = True
    #: Whether the server takes several statements in one text.
    takes_several: bool = True

    def sql(self, pieces: Iterable[str]) -> str:
        """Return the statements that undo some pieces, each with its semicolon."""
        return "".join(f"{self.by_piece[name]};" for name in pieces if name in self.by_piece)

    def first(self, base: Restoration) -> str:
        """Return the statements that return to the rights of the login."""
        sql = base.first
        for name, statement in (("session authorization", _AUTHORIZATION), ("role", _ROLE)):
            if self.by_piece.get(name) != statement:
                sql = sql.replace(f"{statement};", self.sql([name]))
        return sql

    def restore(self, base: Restoration) -> str:
        """Return the statements that restore the settings and rights of a base, and end LISTEN."""
        return f"{self.first(base)}{self.sql(['settings', 'LISTEN'])}{base.last}"
