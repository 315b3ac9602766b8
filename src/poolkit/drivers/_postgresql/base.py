"""The base of a session: its role, authorization and settings when `on_connect` had run.

The server's own RESET and DISCARD return to what the login began with, so a role that
``on_connect`` has set would be gone after the first lease. `capture` therefore asks the server for
the base once, in one round trip. Each reset restores the base at its end, in the reset's own round
trip. What no reset could restore is refused at connect.

Settings with a dot in their names are in no catalogue of the server's. `DottedNames` collects those
that the statements of ``on_connect`` have named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from poolkit import PoolConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: When a statement was prepared, in microseconds. It tells a statement from another one of the same
#: name, so that their texts need not be compared.
_PREPARED_AT: Final = (
    "(pg_catalog.date_part('epoch', prepare_time) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8"
)
#: Fails if a statement that ``on_connect`` has prepared was replaced or dropped.
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
#: Without this a session that is serializable, read only and deferrable would wait for all others'
#: writes before its first query. asyncpg may have prepared a statement, for which the server has
#: begun a transaction that asyncpg does not end. In it the SET would come too late: hence BEGIN and
#: COMMIT.
AT_ONCE: Final = "BEGIN;COMMIT;SET TRANSACTION NOT DEFERRABLE;"
_CAPTURE: Final = """\
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
    WHERE pg_catalog.left(name, 10) <> '__asyncpg_' AND pg_catalog.left(name, 5) <> '_pg3_')
)"""

#: Names with a dot in a statement: settings, and also tables, columns and functions.
_NAME: Final = r'(?:"[^"]++"|[^\W\d][\w$]*+)'
_DOTTED: Final = re.compile(rf"(?<![\w$]){_NAME}(?:\s*+\.\s*+{_NAME})+")
#: Names that the server is asked about at most; names of tables and columns count, too.
_MOST_NAMES: Final = 10_000
#: Collections that contain no text.
_NO_TEXT: Final = (bytes, bytearray, memoryview, range)


class DottedNames:
    """Collects the names with a dot in all statements that it is told of.

    ``of_library``: statements of the library's own, in which no user has named a setting.
    """

    def __init__(self, of_library: Collection[str] = ()) -> None:
        self.names: dict[str, None] = {}
        self._of_library = of_library

    def __call__(self, record: Any) -> None:
        """Read a statement and its arguments (``set_config($1, $2, false)``), as a query logger."""
        if record.query not in self._of_library:
            self.read(record.query, record.args)

    def read(self, *values: Any) -> None:
        """Read each string, also in collections: arguments of `executemany` and of codecs."""
        rest = list(values)
        seen: dict[int, object] = {}  # keeps each alive, so that no other one gets the same id
        while rest:
            value = rest.pop()
            if isinstance(value, str):
                for match in _DOTTED.finditer(value):
                    if len(self.names) <= _MOST_NAMES:
                        self.names[re.sub(r'["\s]', "", match[0])] = None
            elif isinstance(value, _NO_TEXT) or id(value) in seen:
                continue
            elif isinstance(value, Collection):
                seen[id(value)] = value
                with contextlib.suppress(TypeError):  # numpy's array without dimensions raises it
                    rest += value.items() if isinstance(value, Mapping) else value

    def all_names(self) -> list[str]:
        """Return the names. Raises `PoolConfigError` if they are too many to ask the server."""
        if len(self.names) > _MOST_NAMES:
            raise PoolConfigError(
                f"the statements that set up the session have more than {_MOST_NAMES} names with a "
                "dot, too many to ask the server which of them are settings. Do only what sets up "
                "the session there, or give settings in connect_kwargs={'server_settings': ...}"
            )
        return list(self.names)


@dataclasses.dataclass(frozen=True)
class Base:
    """Whose session it is, and its settings."""

    session_authorization: str
    role: str
    settings: Mapping[str, str]

    def differences(self, other: Base) -> list[str]:
        """Return the names of what is different in another base."""
        names = ["session authorization", "role", *{**self.settings, **other.settings}]
        ours = (self.session_authorization, self.role, *map(self.settings.get, names[2:]))
        theirs = (other.session_authorization, other.role, *map(other.settings.get, names[2:]))
        return [name for name, a, b in zip(names, ours, theirs, strict=True) if a != b]

    def to_rights(self, login: str) -> str:
        """Return the SQL that sets authorization and role in a session with the login's rights."""
        own = self.session_authorization
        authorization = "" if own == login else set_config({"session_authorization": own})
        return authorization + ("" if self.role == "none" else set_config({"role": self.role}))

    def to_settings(self) -> str:
        """Return the SQL that sets the settings."""
        return set_config(self.settings)


@dataclasses.dataclass(frozen=True)
class Restoration:
    """The SQL by which a reset returns a session to its base."""

    #: Names with a dot that may be settings.
    names: tuple[str, ...] = ()
    #: Returns to the rights of the login; each reset begins with it.
    first: str = "RESET SESSION AUTHORIZATION;RESET ROLE;"
    #: Sets the rights of the base in a session with the login's; "" if they are the same.
    rights: str = ""
    #: Restores all of the base after the server's own resets; "" if those suffice.
    last: str = ""
    #: The statements that ``on_connect`` has prepared: name, when, and whether by SQL.
    statements: tuple[tuple[str, int, bool], ...] = ()

    @property
    def prepared(self) -> tuple[str, ...]:
        """The names of the statements that ``on_connect`` has prepared by SQL."""
        return tuple(name for name, _, by_sql in self.statements if by_sql)

    def check(self) -> str:
        """Return the SQL that fails if a statement of ``on_connect``'s was replaced or dropped.

        A statement that asyncpg has prepared may be missing: asyncpg drops those it does not need.
        """
        own = ", ".join(
            f"({literal(name)}, {at}::pg_catalog.int8, {by_sql})"
            for name, at, by_sql in self.statements
        )
        return _UNCHANGED.format(own, _PREPARED_AT) if own else ""

    @classmethod
    def candidates(
        cls, found: Captured, names: tuple[str, ...], login: str
    ) -> Iterator[Restoration]:
        """Yield what may restore a base: only the login may set some settings, or only the role."""
        base = found.base
        # RESET ROLE would set the login's default role, if it has one.
        first = cls.first
        if base.role == "none":
            first = first.replace("RESET ROLE", "SET ROLE NONE")
        if base.settings.get("default_transaction_deferrable") == "on":
            first = AT_ONCE + first
        rights, settings = base.to_rights(login), base.to_settings()
        for last in dict.fromkeys((settings + rights, rights + settings)):
            yield cls(names, first, rights, last, found.statements)


@dataclasses.dataclass(frozen=True)
class Captured:
    """A session as the server describes it."""

    base: Base
    #: As in `Restoration`.
    statements: tuple[tuple[str, int, bool], ...]
    #: In words, by its kind, what the session has that no reset could restore.
    unrestorable: Mapping[str, str]


def capture_query(names: Iterable[str]) -> str:
    """Return the query that tells what a session is like, as JSON.

    ``names``: names with a dot, of which those that are settings become part of the base.
    """
    return _CAPTURE.format(names=", ".join(map(literal, names)), prepared_at=_PREPARED_AT)


def read_captured(answer: str) -> Captured:
    """Return what the answer to `capture_query` says."""
    found = json.loads(answer)
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
    unrestorable = {kind: _in_words(*what) for kind, what in words.items() if what[1]}
    return Captured(base, tuple(map(tuple, found["statements"] or ())), unrestorable)


def refusal(by: str, lost: Iterable[str]) -> PoolConfigError:
    """Return the error for what a reset would undo and could not restore."""
    return PoolConfigError(
        f"{by} has left what no reset can restore: {'; '.join(lost)}. Only the first lease would "
        "have it: make it where it is used, or choose a reset that leaves it, such as "
        "reset='transaction', which leaves the session alone"
    )


def unable(by: str, error: Exception | None, names: Iterable[str]) -> PoolConfigError:
    """Return the error for a role or settings that the login's rights do not suffice to restore."""
    why = ", ".join(names) if error is None else str(error)
    return PoolConfigError(
        f"{by} has changed the session in a way that the login cannot restore after a reset: "
        f"{why}. Give settings in connect_kwargs={{'server_settings': ...}} or "
        "by ALTER ROLE ... SET, and take on only roles that the login may take on by itself"
    )


def set_config(settings: Mapping[str, str], *, is_local: bool = False) -> str:
    """Return the SQL that sets settings, in their order, and returns no rows; "" for none.

    ``is_local``: until the transaction ends. The values, if they were returned, might not exist in
    the session's ``client_encoding``.
    """
    each = ",".join(f"({literal(name)},{literal(value)})" for name, value in settings.items())
    return (
        f"SELECT FROM (VALUES {each}) base (name, value) "
        f"WHERE pg_catalog.set_config(name, value, {str(is_local).lower()}) IS NULL;"
        if settings
        else ""
    )


def literal(text: str) -> str:
    """Return a string in SQL that means the same whatever a lease has set.

    Without the E, ``standard_conforming_strings`` would decide what a backslash means. Other
    characters than ASCII are escaped: asyncpg sends them in UTF-8, but the server reads them by
    ``client_encoding``.
    """
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return "E'" + "".join(c if c.isascii() else f"\\U{ord(c):08x}" for c in escaped) + "'"


def _in_words(kind: str, what: Any) -> str:
    if isinstance(what, int):
        return f"{what} {kind}{'s' * (what > 1)}"
    names = ", ".join(repr(name) for name in what[:5])
    return f"{kind} {names}{', ...' if len(what) > 5 else ''}"  # noqa: PLR2004  # names shown
