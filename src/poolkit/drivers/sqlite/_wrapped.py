"""Functions of sqlite3 and aiosqlite that an agent has replaced: poolkit does not use them.

Agents that trace databases have ``sqlite3.connect`` return proxies. With a proxy poolkit could not
promise that a statement has ended, or that a cursor is closed. So connections are opened and used
without proxies. The agent does not see them; a warning says so once.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import types
from typing import Any, Final

from poolkit.drivers.helpers import Told, say, shown

_told: Final = Told()


def look_for_wrappers(library: Any = None) -> None:
    """Warn, once for each, of replaced functions of sqlite3, and of a library over it."""
    found = [("sqlite3.connect", sqlite3.connect, "_sqlite3")]
    for name in ("Connection", "Cursor") if library is not None else ():
        members = getattr(getattr(library, name, None), "__dict__", {})
        found += [
            (f"aiosqlite.{name}.{member}", function, "aiosqlite")
            for member, function in members.items()
            # (The library's own decorators may be those of typing_extensions, for example.)
            if callable(function) and not member.startswith("_") and not _is_general(function)
        ]
    passed: dict[str, list[str]] = {}
    for name, function, owner in found:
        whose = _whose(function)
        if whose.partition(".")[0] != owner and _told.add((name, whose)):
            passed.setdefault(whose, []).append(f"{name}()")
    for whose, names in passed.items():
        say(
            logging.WARNING,
            "wrapped_library",
            "%s has replaced %s: poolkit's connections do not use it, so its traces of SQLite do "
            "not include them (said once). The pool's observers are told of connections; "
            "statements can be traced through SQLAlchemy",
            shown(whose),
            ", ".join(names),
        )


def _is_general(function: object) -> bool:
    """Tell whether a wrapper belongs to the standard library or to typing_extensions."""
    module = _whose(function).partition(".")[0]
    return module in sys.stdlib_module_names or module == "typing_extensions"


def _whose(function: object) -> str:
    """Return the module whose code runs first when a function is called."""
    wrapper = getattr(function, "_self_wrapper", function)  # of wrapt's
    if type(wrapper) is types.FunctionType:
        return str(wrapper.__globals__.get("__name__", ""))
    if type(wrapper) is types.BuiltinFunctionType:
        return str(wrapper.__module__)
    return type(wrapper).__module__
