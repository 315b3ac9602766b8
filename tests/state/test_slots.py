"""Where a slot may go: the drawing, the table and the code are one."""

from __future__ import annotations

import poolkit._core.slots
from poolkit._core.slots import MOVES


def test_drawing_of_the_moves_has_all_of_them_and_no_other() -> None:
    """The arrows at the top of the file are those that `_move` allows."""
    drawn: dict[str, set[str]] = {}
    for line in (poolkit._core.slots.__doc__ or "").splitlines():
        if " -> " in line:
            state, _, rest = line.strip().partition("->")
            drawn[state.strip()] = set(rest.split("   ")[0].replace(" ", "").split("|"))
    assert drawn == MOVES
