"""The tables of a Markdown page, written where its marks are, and their charts beside it.

<!-- bench overload -->
... replaced ...
<!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import machine
from benchmarks.table import Table


def fill(path: Path, tables: list[Table], *, with_machine: bool = True) -> None:
    """Replace what stands between the marks of these tables, and of the machine."""
    text = path.read_text(encoding="utf-8")
    parts = {"machine": machine.sentence()} if with_machine else {}
    for table in tables:
        parts[table.name] = table.markdown()
        if chart := table.draw(path.with_suffix("")):
            where = chart.relative_to(path.parent).as_posix()
            parts[table.name] += f"\n\n![{table.title}]({where})"
    for name, part in parts.items():
        between = re.compile(rf"(<!-- bench {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if found := between.search(text):
            text = text[: found.start()] + f"{found[1]}\n{part}\n\n{found[2]}" + text[found.end() :]
    path.write_text(text, encoding="utf-8")
