"""The base of a session: what setting it up has left, and what a reset goes back to.

The server's own RESET and DISCARD go back to what the login began with: a role that ``on_connect``
has taken on would be gone after the first lease. So it is captured once, in one round trip, and put
back at the end of each reset, in the same round trip. What cannot be put back is refused.

Settings with a dot in their names are in no catalogue: of these, the ones that the statements of
the setting up have named are known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from poolkit._errors import PoolConfigError
from poolkit.drivers.asyncpg import _internals as internals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: When a statement was prepared, in microseconds: another one of the same name was so at another
#: time, and nothing that it contains has to be compared.
_PREPARED_AT: Final = (
    "(pg_catalog.date_part('epoch', prepare_time) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8"
)
#: Fails unless all statements that were prepared in setting up are what they were.
_UNCHANGED: Final = """\
DO $poolkit$BEGIN
    IF EXISTS (SELECT 1 FROM (VALUES {}) own (own_name, prepared_at, is_needed)
        LEFT JOIN pg_catalog.pg_prepared_statements
        ON name OPERATOR(pg_catalog.=) own_name
        WHERE CASE WHEN name IS NULL THEN is_needed
        ELSE {} OPERATOR(pg_catalog.<>) prepared_at END)
    THEN RAISE EXCEPTION 'a lease has replaced what on_connect had prepared';
    END IF;
END$poolkit$;"""
#: A session that is serializable, read only and deferrable would wait for all others' writes
#: before its first query. The BEGIN is for asyncpg, which prepares without ending the transaction
#: in which the server does it, where this would come too late.
_AT_ONCE: Final = "BEGIN;COMMIT;SET TRANSACTION NOT DEFERRABLE;"
#: COPY is what brings an answer back in one round trip: others are prepared first.
_CAPTURE: Final = """\
COPY (
WITH known AS (SELECT name, setting, source FROM pg_catalog.pg_settings)
SELECT pg_catalog.json_build_object(
  'session_authorization', pg_catalog.current_setting('session_authorization'),
  'role', pg_catalog.current_setting('role'),
  'settings', (SELECT pg_catalog.json_object_agg(name, setting) FROM known
    WHERE source = 'session' AND name NOT IN
    ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')),
  'named', (SELECT pg_catalog.json_object_agg(name, pg_catalog.current_setting(name, true))
    FROM pg_catalog.unnest(ARRAY[{names}]::text[]) name
    WHERE pg_catalog.lower(name) NOT IN (SELECT pg_catalog.lower(k.name) FROM known k)),
  'temporary', (SELECT pg_catalog.json_agg(pg_catalog.pg_describe_object(classid, objid, 0))
    FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
    AND refobjid = pg_catalog.pg_my_temp_schema()),
  'locks', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()),
  'channels', (SELECT pg_catalog.json_agg(c) FROM pg_catalog.pg_listening_channels() c),
  'cursors', (SELECT pg_catalog.json_agg(name) FROM pg_catalog.pg_cursors WHERE is_holdable),
  'prepared', (SELECT pg_catalog.json_agg(name) FROM pg_catalog.pg_prepared_statements
    WHERE from_sql),
  'statements', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(name, {prepared_at},
    from_sql)) FROM pg_catalog.pg_prepared_statements
    WHERE pg_catalog.left(name, 10) <> '__asyncpg_')
)) TO STDOUT (ENCODING 'UTF8')"""

#: What statements may call a setting with a dot in its name, among much else.
_NAME: Final = r'(?:"[^"]++"|[^\W\d][\w$]*+)'
_DOTTED: Final = re.compile(rf"(?<![\w$]){_NAME}(?:\s*+\.\s*+{_NAME})+")
#: Statements of asyncpg's own, by which it learns of types.
_ASYNCPGS: Final = internals.texts_of_asyncpg()
#: So many names are asked for; all tables and columns that are named count.
_MOST: Final = 10_000
#: Collections in which there are no names.
_NO_TEXT: Final = (bytes, bytearray, memoryview, range)


class Statements:
    """The names with a dot in them of all statements since; a query logger of asyncpg's."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def __call__(self, record: Any) -> None:
        """Read the text of a statement, and its arguments: ``set_config($1, $2, false)``."""
        if record.query not in _ASYNCPGS:
            self.read(record.query, record.args)

    def read(self, *values: Any) -> None:
        """Read what are strings, also inside of others: arguments of `executemany`, of codecs."""
        rest = list(values)
        seen: dict[int, object] = {}  # has them, so that no other one gets the same id
        while rest:
            value = rest.pop()
            if isinstance(value, str):
                for match in _DOTTED.finditer(value):
                    if len(self.names) <= _MOST:
                        self.names[re.sub(r'["\s]', "", match[0])] = None
            elif isinstance(value, _NO_TEXT) or id(value) in seen:
                continue
            elif isinstance(value, Collection):
                seen[id(value)] = value
                with contextlib.suppress(TypeError):  # as numpy's arrays without dimensions
                    rest += value.items() if isinstance(value, Mapping) else value

    def all_names(self) -> list[str]:
        """Return the names; raises `PoolConfigError` if there are more than can be asked for."""
        if len(self.names) > _MOST:
            raise PoolConfigError(
                f"more than {_MOST} names with a dot in them are in the statements by which the "
                "session is set up: which of them are settings cannot be asked. Do what is no "
                "setting up elsewhere, and give settings in connect_kwargs={'server_settings': ...}"
            )
        return list(self.names)


@dataclasses.dataclass(frozen=True)
class Base:
    """Whose session it is, and with which settings."""

    session_authorization: str
    role: str
    settings: Mapping[str, str]

    def differences(self, other: Base) -> list[str]:
        """Return the names of what is different in another one."""
        names = ["session authorization", "role", *{**self.settings, **other.settings}]
        ours = (self.session_authorization, self.role, *map(self.settings.get, names[2:]))
        theirs = (other.session_authorization, other.role, *map(other.settings.get, names[2:]))
        return [name for name, a, b in zip(names, ours, theirs, strict=True) if a != b]

    def to_rights(self, login: str) -> str:
        """Return the SQL that takes on the role, for who has those of the login."""
        own = self.session_authorization
        authorization = "" if own == login else _set({"session_authorization": own})
        return authorization + ("" if self.role == "none" else _set({"role": self.role}))

    def to_settings(self) -> str:
        """Return the SQL that sets the settings."""
        return _set(self.settings)


@dataclasses.dataclass(frozen=True)
class Restoration:
    """The way to a base, in SQL."""

    #: Names with a dot that may be settings.
    names: tuple[str, ...] = ()
    #: Has the rights of the login: comes first in every reset.
    first: str = "RESET SESSION AUTHORIZATION;RESET ROLE;"
    #: Has the rights of the base, for who has those of the login; empty if they are the same.
    rights: str = ""
    #: Has all of the base, after the server's own resets; empty if there is nothing to be done.
    last: str = ""
    #: The statements that are the connection's own: name, when it was prepared, whether by SQL.
    statements: tuple[tuple[str, int, bool], ...] = ()

    @property
    def prepared(self) -> tuple[str, ...]:
        """The statements prepared by SQL that are the connection's own."""
        return tuple(name for name, _, by_sql in self.statements if by_sql)

    def check(self) -> str:
        """Return the SQL that fails unless all own statements are what they were.

        Those that asyncpg has prepared it may have dropped since.
        """
        own = ", ".join(
            f"({literal(name)}, {at}::pg_catalog.int8, {by_sql})"
            for name, at, by_sql in self.statements
        )
        return _UNCHANGED.format(own, _PREPARED_AT) if own else ""

    @classmethod
    def ways_to(cls, found: Captured, names: tuple[str, ...], login: str) -> Iterator[Restoration]:
        """Yield the ways that may be open: settings may be the login's to set, or the role's."""
        base = found.base
        # RESET ROLE would have the login's default, which may be another than none.
        first = cls.first
        if base.role == "none":
            first = first.replace("RESET ROLE", "SET ROLE NONE")
        if base.settings.get("default_transaction_deferrable") == "on":
            first = _AT_ONCE + first
        rights, settings = base.to_rights(login), base.to_settings()
        for last in dict.fromkeys((settings + rights, rights + settings)):
            yield cls(names, first, rights, last, found.statements)


@dataclasses.dataclass(frozen=True)
class Captured:
    """A session as it is now: what can be restored, and words for what cannot, by its kind."""

    base: Base
    statements: tuple[tuple[str, int, bool], ...]
    lost: Mapping[str, str]


async def capture(c: Any, names: Iterable[str]) -> Captured:
    """Ask the server, in one round trip."""
    chunks: list[bytes] = []

    async def keep(data: bytes) -> None:
        chunks.append(bytes(data))

    query = _CAPTURE.format(names=", ".join(map(literal, names)), prepared_at=_PREPARED_AT)
    await internals.copy_out(c, _AT_ONCE, query, keep)
    found = json.loads(b"".join(chunks).decode().replace("\\\\", "\\"))
    named = {name: value for name, value in (found["named"] or {}).items() if value is not None}
    base = Base(
        found["session_authorization"], found["role"], {**(found["settings"] or {}), **named}
    )
    words = {
        "temporary": ("in pg_temp:", found["temporary"]),
        "locks": ("advisory lock", found["locks"]),
        "channels": ("LISTEN", found["channels"]),
        "cursors": ("cursor WITH HOLD", found["cursors"]),
        "prepared": ("PREPARE", found["prepared"]),
    }
    lost = {kind: _said(*what) for kind, what in words.items() if what[1]}
    return Captured(base, tuple(map(tuple, found["statements"] or ())), lost)


def refusal(by: str, lost: Iterable[str]) -> PoolConfigError:
    """Return the error for what a reset would undo, and could not do again."""
    return PoolConfigError(
        f"{by} has left what no reset can restore: {'; '.join(lost)}. The first lease would "
        "have it, and the others not: make it where it is used, or choose a reset that leaves it "
        "(reset='transaction', say, which leaves the session alone)"
    )


def unable(by: str, error: Exception | None, names: Iterable[str]) -> PoolConfigError:
    """Return the error for a role or for settings to which there is no way back for the login."""
    why = ", ".join(names) if error is None else str(error)
    return PoolConfigError(
        f"{by} has changed the session in a way that the login cannot restore after a reset: "
        f"{why}. Give settings in connect_kwargs={{'server_settings': ...}} or "
        "by ALTER ROLE ... SET, and take on only roles that the login may take on by itself"
    )


def _set(settings: Mapping[str, str]) -> str:
    """Return the SQL that sets them. It answers nothing: the client's encoding may lack letters."""
    each = ",".join(f"({literal(name)},{literal(value)})" for name, value in settings.items())
    return (
        f"SELECT FROM (VALUES {each}) base (name, value) "
        "WHERE pg_catalog.set_config(name, value, false) IS NULL;"
        if settings
        else ""
    )


def literal(text: str) -> str:
    """Return a string in SQL that means the same whatever a lease has set.

    Without the E, ``standard_conforming_strings`` would say what a backslash means; and asyncpg
    sends UTF-8, of which ``client_encoding`` would say how it is read.
    """
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return "E'" + "".join(c if c.isascii() else f"\\U{ord(c):08x}" for c in escaped) + "'"


def _said(kind: str, what: Any) -> str:
    if isinstance(what, int):
        return f"{what} {kind}{'s' * (what > 1)}"
    names = ", ".join(repr(name) for name in what[:5])
    return f"{kind} {names}{', ...' if len(what) > 5 else ''}"  # noqa: PLR2004  # a few will do
