"""Whether SQL ends one transaction and begins another, which the server does not tell.

For a text with several statements the server reports only how the last one went. For ``COMMIT AND
CHAIN``, which begins another transaction at once, it reports nothing. So texts are read here:
comments, strings and quoted names are skipped, and the first words of each statement count.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A text that ends a transaction and begins another one has one of these words in it.
_BEGINNING: Final = ("chain", "begin", "start")
#: Matches the beginning of a single statement that may end a transaction.
_may_end: Final = re.compile(r"\s*+(?:;|--|/\*|commit|end|rollback|abort)", re.IGNORECASE).match
#: Words of a statement that are read.
_MOST_WORDS: Final = 5
_TOKENS: Final = {
    is_standard: re.compile(
        r"(?P<line>--[^\n\r]*+)|(?P<comment>/\*)"
        rf"|(?P<string>{prefix}'(?:[^'\\]++|''|\\.)*+'?|'(?:[^']++|'')*+'?)"
        r'|(?P<name>"(?:[^"]++|"")*+"?)'
        r"|(?P<dollar>\$(?:[^\W\d]\w*+)?\$)"
        r"|(?P<word>[^\W\d][\w$]*+)|(?P<end>;)",
        re.DOTALL,
    )
    for is_standard, prefix in ((True, "[eE]"), (False, "[eE]?"))
}
_in_comment: Final = re.compile(r"/\*|\*/").finditer
_has_body: Final = re.compile(r"\bbegin\s+atomic\b(?!\s+end\b)", re.IGNORECASE).search


def goes_on(sql: str, *, is_standard: bool = True) -> bool:
    """Tell whether a text ends one transaction and begins another.

    ``is_standard``: backslashes in plain strings are not special, which is the server's default.
    """
    small = sql.lower()
    if not any(word in small for word in _BEGINNING):
        return False
    has_ended = False
    for words in _statements(sql, is_standard=is_standard):
        if words[0] in ("BEGIN", "START"):
            if has_ended:
                return True
        elif _ends(words):
            if "CHAIN" in words and "NO" not in words:
                return True
            has_ended = True
    return False


def chains(statement: str) -> bool:
    """Tell whether a single statement ends a transaction and begins another."""
    return _may_end(statement) is not None and goes_on(statement)


def _ends(words: list[str]) -> bool:
    if words[0] not in ("COMMIT", "END", "ROLLBACK", "ABORT"):
        return words[:2] == ["PREPARE", "TRANSACTION"]
    after = words[2:3] if words[1:2] in (["WORK"], ["TRANSACTION"]) else words[1:2]
    return after not in (["TO"], ["PREPARED"])


def _statements(sql: str, *, is_standard: bool) -> Iterator[list[str]]:
    """Yield the first words of each statement, in capitals."""
    words: list[str] = []
    begins = 0
    in_body = False  # CREATE FUNCTION ... BEGIN ATOMIC ...; END
    for kind, start, end in _tokens(sql, is_standard=is_standard):
        if kind == "end":
            if words and not in_body:
                yield words
                in_body = words[0] == "CREATE" and _has_body(sql, begins, start) is not None
            elif words:
                in_body = words[0] != "END"
            words = []
        else:
            if not words:
                begins = start
            if len(words) < _MOST_WORDS:
                words.append(sql[start:end].upper() if kind == "word" else "")
    if words and not in_body:
        yield words


def _tokens(sql: str, *, is_standard: bool) -> Iterator[tuple[str, int, int]]:
    """Yield words, quoted names and ends of statements, each by its kind, start and end."""
    search = _TOKENS[is_standard].search
    at = 0
    while found := search(sql, at):
        kind, at = found.lastgroup or "", found.end()
        if kind == "comment":
            at = _end_of_comment(sql, at)
        elif kind == "dollar":
            closing = sql.find(found[0], at)
            at = len(sql) if closing < 0 else closing + len(found[0])
        elif kind in ("word", "name", "end"):
            yield kind, found.start(), at


def _end_of_comment(sql: str, at: int) -> int:
    """Return where a comment ends that has begun; comments may be nested."""
    depth = 1
    for mark in _in_comment(sql, at):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    return len(sql)
