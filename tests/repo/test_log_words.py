"""Every word of the log is on the page about the log, and the page has no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "poolkit"
PAGE = ROOT / "docs" / "howto" / "logs.md"


def _calls() -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.Call]]:
    """Yield each call in poolkit's source, with each function around it."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for call in ast.walk(node):
                    # (SQLAlchemy's pools have a logger of their own.)
                    if isinstance(call, ast.Call) and _name(_owner(call)) != "logger":
                        yield node, call


def _owner(call: ast.Call) -> ast.expr:
    """Return what a method is called of."""
    return getattr(call.func, "value", call.func)


def _name(function: ast.expr) -> str:
    """Return the last part of a name."""
    return getattr(function, "attr", getattr(function, "id", ""))


def _values(event: ast.expr) -> list[ast.expr]:
    return [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]


def _words() -> set[str]:
    """Return the events that are given to `say`, or to what hands its own on to `say`."""
    calls = [*_calls()]
    words: set[str] = set()
    #: What logs, and where among its arguments the event stands.
    logs = {"say": 1}
    known: dict[str, int] = {}
    while known != logs:
        known = dict(logs)
        for around, call in calls:
            given = call.args
            at = logs.get(_name(call.func))
            for place, each in enumerate(given):
                if _name(each) in logs:  # `tell(say, level, event, ...)`
                    at = place + 1 + logs[_name(each)]
            if at is None or at >= len(given):
                continue
            parameters = [each.arg for each in around.args.args if each.arg != "self"]
            for value in _values(given[at]):
                if isinstance(value, ast.Constant):
                    words.add(str(value.value))
                elif isinstance(value, ast.Name) and value.id in parameters:
                    logs[around.name] = parameters.index(value.id)
                else:
                    raise AssertionError(f"which event is it? {ast.unparse(call)}")
    return words


def test_every_word_of_the_log_is_in_the_table() -> None:
    """In the first column, and no other word is."""
    table = PAGE.read_text("utf-8").partition("| `poolkit_event` |")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = [word for row in rows for word in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(_words())
