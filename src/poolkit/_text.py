"""The text of what is a driver's or a user's, whatever its own code does."""

from __future__ import annotations

import re
from typing import Final

#: What follows a name like ``password=`` or ``'password':``.
_PASSWORD: Final = re.compile(
    r"""((?:password|passwd|pwd)(?:\s*=|\\?['"]\s*:)\s*)"""
    r"""(\\?'[^']*'|\\?"[^"]*"|[^\s&,;)]+)""",
    re.IGNORECASE,
)


class Lines(str):
    """A text of several lines, each of which is safe to be one of a log."""

    __slots__ = ()


def shown(value: object) -> str:
    """Return the `repr` of something of a driver's, or of a user's, also if it has none to give."""
    try:
        return masked(repr(value))
    except BaseException:  # whatever its own code does
        return f"<{type(value).__name__}, whose repr() raises>"


def told(error: BaseException) -> str:
    """Return the class of an error and what it says, also if saying it raises."""
    name = type(error).__name__
    try:
        return masked(f"{name}: {error}")
    except BaseException:  # whatever its own code does
        return f"{name}, whose str() raises"


def masked(text: str) -> str:
    """Return a text without what looks like a password: in a URL, or after ``password=``."""
    if "://" in text:
        text = re.sub(r"\S+", _without_login, text)
    return _PASSWORD.sub(r"\1***", text) if "=" in text or ":" in text else text


def _without_login(word: re.Match[str]) -> str:
    # Not by one pattern: that would take long for a word that somebody has made for it.
    before, at, host = word[0].rpartition("@")
    scheme, colon, login = before.partition("://")
    return f"{scheme}://***@{host}" if colon and login else f"{before}{at}{host}"


def one_line(text: str, longest: int) -> str:
    """Return a text as one line: what cannot be printed is escaped, and what is too long is cut."""
    if len(text) <= longest and text.isprintable():
        return text
    # Cut before it is escaped, which costs time for each character, and after, as that adds some.
    escaped = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:longest])
    return escaped if len(escaped) <= longest >= len(text) else f"{escaped[: longest - 1]}…"
