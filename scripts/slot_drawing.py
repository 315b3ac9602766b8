"""Draw the life of a slot from the table of its moves: docs/explanation/slot.svg.

    python scripts/slot_drawing.py

What all states in the frame have in common, the frame has.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from poolkit._core.slots import MOVES

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "slot.svg"

#: Where the middle of each state is.
PLACES: Final = {
    "new": (62, 155),
    "connecting": (220, 155),
    "idle": (400, 62),
    "leased": (400, 248),
    "recycling": (580, 155),
    "closing": (290, 382),
    "gone": (510, 382),
}
FRAMED: Final = ("connecting", "idle", "leased", "recycling")
FRAME: Final = (150, 26, 500, 292)
WIDTH, HEIGHT = 104, 34

#: Why a slot makes a move, and where that is written.
WHY: Final = {
    ("new", "connecting"): ("a connect is due", 98, 139),
    ("connecting", "idle"): ("connected", 276, 100),
    ("connecting", "leased"): ("to a waiter", 274, 216),
    ("idle", "leased"): ("acquire", 365, 159),
    ("idle", "recycling"): ("ping", 464, 128),
    ("leased", "idle"): ("release", 432, 159),
    ("leased", "leased"): ("hand-off", 400, 302),
    ("leased", "recycling"): ("reset", 522, 222),
    ("recycling", "idle"): ("done", 524, 92),
    ("recycling", "leased"): ("to a waiter", 468, 180),
    ("closing", "gone"): ("closed", 400, 374),
    ("frame", "closing"): ("retired while healthy", 224, 346),
    ("frame", "gone"): ("failed, broken, terminated", 590, 346),
}

MARKER: Final = (
    '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
    'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
)
STYLE: Final = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f; text-anchor: middle }
.why { font-size: 11px; fill: #57606a }
rect { fill: #ddf4ff; stroke: #0969da }
.frame { fill: none; stroke: #8c959f; stroke-dasharray: 4 4 }
path { fill: none; stroke: #57606a; marker-end: url(#end) }
marker path { fill: #57606a; stroke: none; marker-end: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .why { fill: #9da7b1 }
  rect { fill: #0c2d6b; stroke: #58a6ff }
  .frame { fill: none; stroke: #6e7681 }
  path { stroke: #9da7b1 }
  marker path { fill: #9da7b1 }
}
</style>"""


def drawn() -> set[tuple[str, str]]:
    """Return the arrows: the moves, those that all states in the frame have as the frame's."""
    common = set.intersection(*(MOVES[state] for state in FRAMED)) - {*FRAMED}
    arrows = {(start, end) for start, ends in MOVES.items() for end in ends}
    arrows -= {(state, end) for state in FRAMED for end in common}
    return arrows | {("frame", end) for end in common}


def _line(start: str, end: str) -> str:
    """Return the path of an arrow."""
    x2, y2 = PLACES[end]
    if start == "frame":
        return f"M{x2} {FRAME[1] + FRAME[3]}V{y2 - HEIGHT // 2 - 2}"
    x1, y1 = PLACES[start]
    if start == end:
        return f"M{x1 - 20} {y1 + HEIGHT // 2}c0 24 40 24 40 3"
    length = math.hypot(x2 - x1, y2 - y1)
    along, down = (x2 - x1) / length, (y2 - y1) / length
    aside = 9 if (end, start) in WHY else 0  # a pair of arrows, side by side
    dx, dy = -down * aside, along * aside

    def border(dx: float, dy: float, along: float, down: float) -> float:
        """Return how far it is to the border of a box from a place beside its middle."""
        ways = ((dx, along, WIDTH / 2), (dy, down, HEIGHT / 2))
        return min((half - math.copysign(o, o * u)) / abs(u) for o, u, half in ways if u)

    begin = border(dx, dy, along, down)
    stop = length - border(dx, dy, -along, -down) - 2
    return (
        f"M{x1 + along * begin + dx:.0f} {y1 + down * begin + dy:.0f}"
        f"L{x1 + along * stop + dx:.0f} {y1 + down * stop + dy:.0f}"
    )


def draw() -> str:
    """Return the drawing, as SVG."""
    x, y, width, height = FRAME
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 412" role="img">',
        STYLE,
        "<title>The states of a slot, and all moves between them</title>",
        MARKER,
        f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="12"/>',
    ]
    for start, end in sorted(drawn()):
        why, across, down = WHY[start, end]
        parts.append(f'<path d="{_line(start, end)}"/>')
        parts.append(f'<text class="why" x="{across}" y="{down}">{why}</text>')
    for state, (across, down) in PLACES.items():
        left, top = across - WIDTH / 2, down - HEIGHT / 2
        if state != "new":
            parts.append(
                f'<rect x="{left:.0f}" y="{top:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
            )
        parts.append(f'<text x="{across}" y="{down + 4}">{state}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(draw())
