"""BEGIN, and what holds for its transaction only: settings and a role, in the same round trip.

All of them are set by one SELECT of ``set_config(name, value, true)``, and not by SET LOCAL, of
which pg_stat_statements would have an entry for each value. A SELECT takes a snapshot, so with
``repeatable_read`` and above the transaction sees the database as it is when it begins.

The server ends them with the transaction, however that ends. So a reset has nothing to undo.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from poolkit import PoolConfigError
from poolkit.drivers._postgresql.base import literal, set_config
from poolkit.drivers.helpers import shown

#: What a setting may be set to.
Value: TypeAlias = str | int | float | uuid.UUID
#: By their names.
LocalSettings: TypeAlias = Mapping[str, Value]

#: What the server takes for a name of a setting, its own or one with a dot.
_is_name: Final = re.compile(r"[^\W\d][\w$]*(?:\.[^\W\d][\w$]*)*").fullmatch
#: Settings that a transaction has by other means.
_ELSEWHERE: Final = {
    "role": "role",
    "session_authorization": "role",
    "transaction_deferrable": "deferrable",
    "transaction_isolation": "isolation",
    "transaction_read_only": "readonly",
}
#: The server's names are no longer, in bytes.
_LONGEST_ROLE: Final = 63


def begin(*, isolation: str | None, readonly: bool | None, deferrable: bool | None) -> str:
    """Return the statement that begins a transaction; None is as the session has it."""
    parts = ["BEGIN"]
    if isolation is not None:
        parts.append(f"ISOLATION LEVEL {isolation.replace('_', ' ').upper()}")
    for given, words in ((readonly, "READ ONLY"), (deferrable, "DEFERRABLE")):
        if given:
            parts.append(words)
        elif given is not None:
            parts.append("READ WRITE" if words == "READ ONLY" else f"NOT {words}")
    return " ".join(parts)


def set_locally(settings: LocalSettings | None, role: str | None) -> str:
    """Return the SQL that sets settings and role until the transaction ends; "" if there are none.

    Raises `PoolConfigError` for what cannot be a setting, a value, or a role.
    """
    if settings is None and role is None:  # most have none
        return ""
    return set_config(checked(settings, role), is_local=True)


def refuse_inside(sql: str) -> None:
    """Raise `PoolConfigError` for what would hold until the end of the transaction around it."""
    if sql:
        raise PoolConfigError(
            "settings and role are of a whole transaction, and this one is inside of another: "
            "PostgreSQL would keep them when it ends. Give them where the outermost begins"
        )


def checked(settings: LocalSettings | None, role: str | None) -> dict[str, str]:
    """Return what is to be set, as texts, in its order: the role comes last.

    Then the settings are set with the rights that the session has before.
    """
    made: dict[str, str] = {}
    if settings is not None and not isinstance(settings, Mapping):
        raise PoolConfigError(
            f"settings is a {type(settings).__name__}: give names and values, as in "
            "settings={'app.tenant': '42'}"
        )
    seen: set[str] = set()
    for name, value in (settings or {}).items():
        _check_name(name)
        if name.lower() in seen:
            raise PoolConfigError(
                f"settings: {name!r} is there twice, for capitals make no difference: leave one out"
            )
        seen.add(name.lower())
        made[name] = _text(name, value)
    if role is not None:
        made["role"] = _checked_role(role)
    return made


def _check_name(name: object) -> None:
    if not isinstance(name, str) or _is_name(name) is None:
        raise PoolConfigError(
            f"settings: {shown(name)} cannot be the name of a setting: give one of PostgreSQL's, "
            "such as 'statement_timeout', or one of your own with a dot in it, such as 'app.tenant'"
        )
    if (instead := _ELSEWHERE.get(name.lower())) is not None:
        raise PoolConfigError(f"settings: {name!r} is set by {instead}=: give that")


def _text(name: str, value: object) -> str:
    """Return a value as the server is told it; nothing of it gets into an error."""
    if isinstance(value, str):
        text = str.__str__(value)  # an enum's own would be its name
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        text = int.__repr__(value)
    elif isinstance(value, float):
        text = float.__repr__(value)
    elif isinstance(value, uuid.UUID):
        text = str(value)
    else:
        why = "None" if value is None else f"a {type(value).__name__}"
        raise PoolConfigError(
            f"settings: the value of {name!r} is {why}: give a text, a number, True, False or a "
            "UUID, or leave the setting out"
        )
    _check_text(f"settings: the value of {name!r}", text)
    return text


def _checked_role(role: object) -> str:
    if not isinstance(role, str) or not role:
        what = "empty" if role == "" else f"a {type(role).__name__}"
        raise PoolConfigError(f"role is {what}: give the name of a role as a text")
    text = str.__str__(role)
    if text == "none":
        raise PoolConfigError(
            "role='none' is no role: it means the login itself, with all of its rights. Leave role "
            "out if that is wanted"
        )
    _check_text("role", text)
    if len(text.encode()) > _LONGEST_ROLE:
        raise PoolConfigError(
            f"role is longer than {_LONGEST_ROLE} bytes, as no role's name is: PostgreSQL would "
            "cut it, and may find another role by what is left"
        )
    return text


def _check_text(what: str, text: str) -> None:
    if "\0" in text:
        raise PoolConfigError(
            f"{what} has a NUL character in it, which no text of PostgreSQL's has"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PoolConfigError(f"{what} has a lone surrogate in it, which is no character") from None


def reading(settings: LocalSettings | None, role: str | None) -> str:
    """Return the query for the names and values, as they are now, of what would be set."""
    names = ",".join(f"({literal(name)})" for name in checked(settings, role))
    return (
        "SELECT name, pg_catalog.current_setting(name, true) "  # noqa: S608  # literals
        f"FROM (VALUES {names}) own (name)"
    )


def setting_back(before: Mapping[str, Any]) -> str:
    """Return the SQL that sets, in the same transaction, what `reading` has found."""
    # The role first: what was set with the rights of the session is set back with them.
    names = sorted(before, key=lambda name: name != "role")
    return set_config({name: before[name] or "" for name in names}, is_local=True)
