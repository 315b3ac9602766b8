"""Tells whether a statement is plain: so that its text leaves nothing in the session.

Plain are one SELECT, INSERT, UPDATE, DELETE, WITH or VALUES that calls only functions of
PostgreSQL's own, and BEGIN, COMMIT, ROLLBACK and savepoints. This is no parser: it knows some texts
to be plain, and **whatever it does not know is not plain**. So it refuses backslashes, dollar
quotes, Unicode escapes, all but ASCII, casts to types it does not know, and much else that may be
plain.

What a statement does that its text does not say cannot be told here: triggers, rules, views,
policies, operators, casts, defaults.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from poolkit.drivers._postgresql.plain_names import (
    BEFORE_PARENTHESIS,
    BEFORE_STRING,
    CALLED_BY_DOT,
    FUNCTIONS,
    NAMES,
    TYPE_WORDS,
    TYPES,
)

#: Characters: a longer text is not plain. It would take long to read, and memory to remember.
LONGEST: Final = 4_000
#: Texts remembered at most: those of a program are few.
MOST: Final = 1_024

Token = tuple[str, str]

#: Kinds of tokens; others are the character itself, and ``::``.
_WORD, _QUOTED, _STRING, _NUMBER, _OPERATOR = "word", "quoted", "string", "number", "operator"
#: What stands between tokens; comments of the other kind are nested, and skipped by hand. To the
#: server a lone carriage return ends a comment, too.
_GAP: Final = re.compile(r"(?:[ \t\n\r\f]++|--[^\n\r]*+)++")
#: No letter may follow at once on a number: servers differ in what that is.
_TOKEN: Final = re.compile(
    r"""
      (?P<word>   [A-Za-z_][A-Za-z_0-9]*+ (?![$]) )
    | (?P<quoted> "[^"]++" (?!") )
    | (?P<string> '(?:[^']|'')*+' )
    | (?P<number> (?: [$] [0-9]++ | [0-9]++ (?:[.][0-9]++)?+ (?:[eE][+-]?+[0-9]++)?+ )
                  (?![A-Za-z_0-9$"']) )
    | (?P<double> :: )
    | (?P<one>    [()\[\],.;:] )
    | (?P<operator> [-+*/<>=~!@#%^&|`?] )
    """,
    re.VERBOSE,
)
#: A string or name with Unicode escapes.
_ESCAPED: Final = re.compile(r"\b[uU]&[\"']")
#: The prefixes of strings that a string may follow at once.
_PREFIXES: Final = frozenset("bexnBEXN")
_EDGE_OF_COMMENT: Final = re.compile(r"/\*|\*/")


def is_plain(text: object, taken: frozenset[str]) -> bool:
    """Tell whether a statement is plain; ``taken``: the names that functions of users have."""
    if type(text) is not str or len(text) > LONGEST:
        return False
    names = names_in(text)
    return names is not None and (not taken or names.isdisjoint(taken))


@functools.lru_cache(maxsize=MOST)
def names_in(text: str) -> frozenset[str] | None:
    """Return the names by which a plain statement may call something; None: it is not plain."""
    if not text.isascii() or "\\" in text or "\0" in text or _ESCAPED.search(text):
        return None
    tokens = _tokens(text)
    if tokens is None:
        return None
    while tokens and tokens[-1][0] == ";":
        tokens.pop()
    if not tokens:
        return None
    if _controls_transaction(tokens):
        return frozenset()
    return _Reader(tokens).read()


def _tokens(text: str) -> list[Token] | None:
    """Return the tokens of a text, without comments; None if there is anything else in it."""
    tokens: list[Token] = []
    at, end = 0, len(text)
    while at < end:
        if (gap := _GAP.match(text, at)) is not None:
            at = gap.end()
        elif text.startswith("/*", at):
            at = _end_of_comment(text, at)
        elif (match := _TOKEN.match(text, at)) is not None:
            kind, token = str(match.lastgroup), match[0]
            at = match.end()
            if kind == _WORD:
                if at < end and text[at] == "'" and token in _PREFIXES:
                    continue
                token = token.lower()
            elif kind == _QUOTED:
                token = token[1:-1]
            tokens.append((token if kind in ("double", "one") else kind, token))
        else:
            return None
    return tokens if at == end else None


def _end_of_comment(text: str, start: int) -> int:
    """Return where a comment ends, in which others may be; beyond the text if it does not."""
    depth = 0
    for edge in _EDGE_OF_COMMENT.finditer(text, start):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(text) + 1


# -- transactions --------------------------------------------------------------------------------

_NAME: Final = "([^ ]+)"
#: As words with a space between them. (One that begins another transaction leaves that open, which
#: the driver sees.)
_CONTROL: Final = re.compile(
    "(begin( work| transaction)?|start transaction)"
    "(,? (isolation level (serializable|repeatable read|read committed|read uncommitted)"
    "|read write|read only|(not )?deferrable))*"
    "|(commit|end|rollback|abort)( work| transaction)?( and (no )?chain)?"
    f"|rollback( work| transaction)? to( savepoint)? {_NAME}"
    f"|savepoint {_NAME}|release( savepoint)? {_NAME}"
)


def _controls_transaction(tokens: list[Token]) -> bool:
    if any(kind not in (_WORD, _QUOTED, ",") for kind, _ in tokens):
        return False
    words = ("a_name" if kind == _QUOTED else token for kind, token in tokens)
    return _CONTROL.fullmatch(" ".join(words).replace(" ,", ",")) is not None


# -- queries -------------------------------------------------------------------------------------

_VERBS: Final = frozenset(["select", "insert", "update", "delete", "values", "with"])
#: What a set of parentheses is.
_ANY, _CAST, _COLUMNS, _QUERY, _NAMES_OF_WITH = "any", "cast", "columns", "query", "with"
#: Beyond the first and the last token.
_NOWHERE: Final[Token] = ("", "")


class _Frame:
    """A pair of parentheses, or the statement itself."""

    __slots__ = ("has_query", "has_with", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.has_with = False
        #: Whether the query itself has begun, after its WITH.
        self.has_query = False


class _Reader:
    """Reads the tokens of one query from left to right."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._names: set[str] = set()
        self._frames = [_Frame(_QUERY)]
        #: What the parentheses were that have ended last.
        self._ended = ""

    def read(self) -> frozenset[str] | None:
        """Return the names of functions and types in it, and of what may be one; None: unknown."""
        kind, first = next((token for token in self._tokens if token[0] != "("), _NOWHERE)
        if kind != _WORD or first not in _VERBS:
            return None
        for at, (kind, token) in enumerate(self._tokens):
            if kind == _WORD:
                is_known = self._read_word(at, token)
            elif kind == _QUOTED:
                is_known = not token.startswith("pg_") and self._read_name(at, token)
            elif kind == _STRING:
                is_known = self._may_have_string(at)
            elif kind == "(":
                is_known = self._open(at)
            elif kind == ")":
                is_known = len(self._frames) > 1
                self._ended = self._frames.pop().kind
            elif kind == ".":
                # (f(x)).name and ($1).name may call a function, like (0.5).setseed.
                is_known = self._at(at - 1)[0] in (_WORD, _QUOTED) and (
                    self._at(at + 1)[0] in (_WORD, _QUOTED) or self._at(at + 1)[1] == "*"
                )
            elif kind == "::":
                is_known = self._read_type(at + 1)
            else:
                is_known = kind != ";"
            if not is_known:
                return None
        return frozenset(self._names) if len(self._frames) == 1 else None

    def _at(self, at: int) -> Token:
        return self._tokens[at] if 0 <= at < len(self._tokens) else _NOWHERE

    def _read_word(self, at: int, word: str) -> bool:
        frame, before = self._frames[-1], self._at(at - 1)
        if word.startswith("pg_"):
            return word == "pg_catalog" and self._at(at + 1)[0] == "."
        if before[0] == ".":
            return self._read_name(at, word)
        if word == "into":
            return before == (_WORD, "insert") and self._begins_query(at - 1)
        if word == "as" and frame.kind == _CAST:
            return self._read_type(at + 1)
        if word == "with" and not frame.has_query and before[0] in ("", "("):
            frame.has_with = True
        elif word == "select" or (word in ("update", "delete", "values") and before[0] == ")"):
            frame.has_query = True  # INSERT may be an alias, until its INTO comes
        return self._read_name(at, word)

    def _begins_query(self, at: int) -> bool:
        """Tell whether the word at a place is what its query does: it may be an alias."""
        frame, before = self._frames[-1], self._at(at - 1)
        if frame.has_query:
            return False
        frame.has_query = True
        return before[0] in ("", "(") or (frame.has_with and before[0] == ")")

    def _read_name(self, at: int, name: str) -> bool:
        """Read a word or a name in quotes, which may be that of a function without parentheses."""
        before = self._at(at - 1)
        if before[0] == ".":  # t.name calls a function that takes a row of t, or the value of t
            self._names.add(name)
            return name not in CALLED_BY_DOT
        if self._frames[-1].kind != _COLUMNS or before[0] in ("(", ","):
            return True
        # It follows on a column's name: it is the column's type.
        self._names.add(name)
        is_type = name in TYPES or name in TYPE_WORDS
        return is_type and self._at(at)[0] == _WORD and self._at(at + 1)[0] != "."

    def _read_type(self, at: int) -> bool:
        """Read the type of a cast; tell whether it is PostgreSQL's own."""
        if self._at(at) == (_WORD, "pg_catalog") and self._at(at + 1)[0] == ".":
            at += 2
        kind, name = self._at(at)
        self._names.add(name)
        return kind == _WORD and name in TYPES and self._at(at + 1)[0] != "."

    def _may_have_string(self, at: int) -> bool:
        """Tell whether a string stands by itself, or is the value of a type of PostgreSQL's."""
        kind, token = self._at(at - 1)
        if kind == _WORD and self._at(at - 2)[0] != ".":
            self._names.update({token} & NAMES)
            return token in BEFORE_STRING
        return kind in (_OPERATOR, "(", ",", "[", ":")

    # -- parentheses -----------------------------------------------------------------------------

    def _open(self, at: int) -> bool:
        """Read a parenthesis that opens: what it is depends on what stands before it."""
        kind, name = self._at(at - 1)
        if kind == _WORD:
            opened = self._after_word(at, name)
        elif kind == _QUOTED:
            opened = self._after_name(at, name)
        else:
            opened = _ANY if kind in ("", "(", ")", ",", _OPERATOR, "[") else ""
        self._frames.append(_Frame(opened))
        return bool(opened)

    def _after_word(self, at: int, word: str) -> str:
        before, frame = self._at(at - 2), self._frames[-1]
        is_type = before[0] == "::" or frame.kind == _COLUMNS
        if is_type or (frame.kind == _CAST and before == (_WORD, "as")):
            self._names.add(word)  # its modifiers
            return _ANY if word in TYPES or word == "varying" else ""
        if word == "as":
            is_function = before[0] == ")" and self._ended != _NAMES_OF_WITH
            return _COLUMNS if is_function else _QUERY
        if word == "materialized":
            return _QUERY if before in ((_WORD, "as"), (_WORD, "not")) else ""
        if word == "cast" and before[0] != ".":
            return _CAST
        return self._after_name(at, word)

    def _after_name(self, at: int, name: str) -> str:
        """Read a parenthesis after a name, of a function or a table, or after a keyword."""
        start = at - 1
        while self._at(start - 1)[0] == ".":
            start -= 2
        kind, before = self._at(start - 1)
        if kind == _WORD and before == "into":  # which was read as INSERT's
            return _ANY
        if start != at - 1:
            is_ours = start == at - 3 and self._at(start) == (_WORD, "pg_catalog")
            return _ANY if is_ours and name in FUNCTIONS else ""
        frame = self._frames[-1]
        if kind == _WORD and before == "as":  # of a table, in FROM
            return _COLUMNS
        if kind == _WORD and frame.has_with and not frame.has_query:
            first = start - 1 if before == "with" else start - 2
            if before in ("with", "recursive") and self._at(first) == (_WORD, "with"):
                return _NAMES_OF_WITH
        self._names.update({name} & NAMES)
        is_quoted = self._at(at - 1)[0] == _QUOTED
        return _ANY if name in (FUNCTIONS if is_quoted else BEFORE_PARENTHESIS) else ""
