"""The tables of a Markdown page, written where its marks are, and their charts beside it.

    <!-- bench overload -->
    ... replaced ...
    <!-- end -->

The mark ``machine`` says on what everything was measured, ``missed`` which limits were missed. That
is read from the page itself, so that it is right also if only some tables were measured again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.table import Table

_TITLE = re.compile(r"\*\*(.+?)\*\*")
_MISSED = "- MISSED: "


def fill(
    path: Path, tables: Sequence[Table], *, is_whole: bool = False, is_dated: bool = True
) -> list[str]:
    """Replace what stands between the marks of these tables; return the names without a mark.

    ``is_whole``: they are all that there are, so the machine of the page is this one.
    ``is_dated``: each says when it was measured.
    """
    text = path.read_text(encoding="utf-8")
    parts = {"machine": machine.sentence()} if is_whole else {}
    for table in tables:
        parts[table.name] = table.markdown()
        if is_dated:
            parts[table.name] += f"\n\nMeasured on {machine.occasion()}."
        if chart := table.draw(path.with_suffix("")):
            where = chart.relative_to(path.parent).as_posix()
            parts[table.name] += f"\n\n![{table.title}]({where})"
    without = []
    for name, part in parts.items():
        if (filled := _replaced(text, name, part)) is None:
            without.append(name)
        else:
            text = filled
    text = _replaced(text, "missed", _missed(text)) or text
    path.write_text(text, encoding="utf-8")
    return without


def _replaced(text: str, name: str, part: str) -> str | None:
    between = re.compile(rf"(<!-- bench {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if (found := between.search(text)) is None:
        return None
    return text[: found.start()] + f"{found[1]}\n{part}\n\n{found[2]}" + text[found.end() :]


def _missed(text: str) -> str:
    """Return a list of the limits that the tables of a page say were missed."""
    found: list[str] = []
    title = ""
    for line in text.splitlines():
        if named := _TITLE.match(line):
            title = f"- {named[1]}"
        elif line.startswith(_MISSED):
            found += [title] if title not in found else []
            found.append(f"  - {line.removeprefix(_MISSED)}")
    return "\n".join(found) or "None."
