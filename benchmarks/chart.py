"""Bar charts as SVG, by hand: a name, a bar, a number."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.rounds import Spread

_WIDTH, _NAMES, _VALUES = 760, 250, 70
_ROW, _TOP = 24, 64
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.t { font-weight: 600; font-size: 15px }
.a { fill: #57606a }
.b { fill: #8c959f }
.o { fill: #0969da }
.w { stroke: #24292f; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .a { fill: #8d96a0 }
  .w { stroke: #e6edf3 }
}
</style>"""
#: Where bars differ by more than this, their lengths are logarithms.
_MUCH = 30


def bars(title: str, axis: str, rows: list[tuple[str, Spread]]) -> str:
    """Return a chart of these rows; poolkit's bars stand out, a whisker spans the range."""
    most = max((spread.high for _, spread in rows), default=1.0) or 1.0
    least = min((spread.low for _, spread in rows if spread.low > 0), default=most)
    by_logarithm = most / least > _MUCH
    room = _WIDTH - _NAMES - _VALUES

    def length(value: float) -> float:
        if not by_logarithm:
            return room * value / most
        low = math.log(least / 2)
        return room * max(0.0, math.log(max(value, least / 2)) - low) / (math.log(most) - low)

    scale = " (logarithmic)" if by_logarithm else ""
    height = _TOP + _ROW * len(rows) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        _STYLE,
        f"<title>{html.escape(title)}</title>",
        f'<text class="t" x="12" y="24">{html.escape(title)}</text>',
        f'<text class="a" x="12" y="46">{html.escape(axis + scale)}</text>',
    ]
    for index, (name, spread) in enumerate(rows):
        top = _TOP + _ROW * index
        middle = top + _ROW / 2
        kind = "o" if name.startswith("poolkit") else "b"
        end = _NAMES + length(spread.median)
        parts.append(f'<text x="{_NAMES - 8}" y="{middle + 4:.0f}" text-anchor="end">')
        parts.append(f"{html.escape(name)}</text>")
        parts.append(
            f'<rect class="{kind}" x="{_NAMES}" y="{top + 4}" '
            f'width="{max(1.0, end - _NAMES):.1f}" height="{_ROW - 8}"/>'
        )
        low, high = (_NAMES + length(value) for value in (spread.low, spread.high))
        if high - low > 1:
            parts.append(f'<path class="w" d="M{low:.1f} {middle}H{high:.1f}"/>')
        parts.append(
            f'<text x="{max(end, high) + 6:.1f}" y="{middle + 4:.0f}">{spread.median:,.3g}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
