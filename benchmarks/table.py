"""What came out of a benchmark: rows for people and for programs, and whether a target was met."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from benchmarks import chart, machine
from benchmarks.rounds import Spread


@dataclasses.dataclass(frozen=True)
class Target:
    """What a benchmark is held to, and what came out."""

    says: str
    value: float
    at: Literal["most", "least"]
    limit: float

    @property
    def is_met(self) -> bool:
        """Whether it was reached."""
        return self.value <= self.limit if self.at == "most" else self.value >= self.limit

    def __str__(self) -> str:
        """Return the sentence."""
        verdict = "met" if self.is_met else "MISSED"
        return f"{verdict}: {self.says}, at {self.at} {number(self.limit)}: {number(self.value)}"


@dataclasses.dataclass
class Table:
    """Some rows of the same columns."""

    name: str
    """Names the files: letters, digits and hyphens."""
    title: str
    about: str
    """How it was measured, in a sentence or three."""
    columns: list[str]
    rows: list[list[Any]] = dataclasses.field(default_factory=list)
    """Cells are texts, numbers or spreads."""
    notes: list[str] = dataclasses.field(default_factory=list)
    targets: list[Target] = dataclasses.field(default_factory=list)
    charted: str | None = None
    """The column that the chart shows."""

    def add(self, *cells: Any) -> None:
        """Add a row."""
        assert len(cells) == len(self.columns), cells
        self.rows.append(list(cells))

    # -- for people ------------------------------------------------------------------------------

    def text(self) -> str:
        """Return it for a terminal."""
        cells = [self.columns, *([cell_text(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [self.title, f"  {self.about}", ""]
        for row in cells:
            first, *rest = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(["", first, *rest]).rstrip())
        lines += ["", *(f"  {note}" for note in self.notes)] if self.notes else []
        lines += ["", *(f"  {target}" for target in self.targets)] if self.targets else []
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return it for the documentation."""
        head = "| " + " | ".join(self.columns) + " |"
        rule = "| --- |" + " ---: |" * (len(self.columns) - 1)
        body = ["| " + " | ".join(cell_text(cell) for cell in row) + " |" for row in self.rows]
        lines = [f"**{self.title}** {self.about}", "", head, rule, *body]
        if self.targets:
            lines += ["", *(f"- {target}" for target in self.targets)]
        if self.notes:
            fold = ["<details><summary>Settings, and why</summary>", ""]
            lines += ["", *fold, *(f"- {note}" for note in self.notes), "", "</details>"]
        return "\n".join(lines)

    # -- for programs ----------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """Write it as JSON, and as a chart if there is something to draw."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {**dataclasses.asdict(self), "machine": machine.describe()}
        facts["targets"] = [
            {**dataclasses.asdict(target), "met": target.is_met} for target in self.targets
        ]
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        self.draw(folder)

    def draw(self, folder: Path) -> Path | None:
        """Write the chart, if there is something to draw, and return where it is."""
        if self.charted is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.svg"
        drawn = chart.bars(self.title, self.charted, self._bars())
        path.write_text(drawn, encoding="utf-8")
        return path

    def _bars(self) -> list[tuple[str, Spread]]:
        column = self.columns.index(self.charted or "")
        found = ((str(row[0]), row[column]) for row in self.rows)
        return [
            (name, cell if isinstance(cell, Spread) else Spread(cell, cell, cell))
            for name, cell in found
            if isinstance(cell, (int, float, Spread))
        ]


def cell_text(cell: Any) -> str:
    """Return a cell as people read it."""
    if isinstance(cell, Spread) and cell.low == cell.high:
        return number(cell.median)
    if isinstance(cell, Spread):
        return f"{number(cell.median)} ({number(cell.low)}..{number(cell.high)})"
    if isinstance(cell, float | int):
        return number(cell)
    return "-" if cell is None else str(cell)


def number(value: float) -> str:
    """Return a number with as many digits as mean something."""
    if value == int(value) or abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"  # noqa: PLR2004
