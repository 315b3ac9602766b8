"""Where a slot may go: the drawing, the table and the code are one."""

from __future__ import annotations

import poolkit._core.slots
from poolkit._core.slots import MOVES
from scripts import slot_drawing


def test_drawing_of_the_moves_has_all_of_them_and_no_other() -> None:
    """The arrows at the top of the file are those that `_move` allows."""
    drawn: dict[str, set[str]] = {}
    for line in (poolkit._core.slots.__doc__ or "").splitlines():
        if " -> " in line:
            state, _, rest = line.strip().partition("->")
            drawn[state.strip()] = set(rest.split("   ")[0].replace(" ", "").split("|"))
    assert drawn == MOVES


def test_page_draws_all_moves_and_no_other() -> None:
    """What the states in the frame have in common is drawn once, from the frame."""
    drawn = slot_drawing.drawn()
    for _, end in [arrow for arrow in drawn if arrow[0] == "frame"]:
        drawn |= {(state, end) for state in slot_drawing.FRAMED}
    drawn = {arrow for arrow in drawn if arrow[0] != "frame"}
    assert drawn == {(start, end) for start, ends in MOVES.items() for end in ends}


def test_drawing_on_the_page_is_made_from_the_table() -> None:
    """After a change of the moves `python scripts/slot_drawing.py` writes it anew."""
    assert slot_drawing.PAGE.read_text() == slot_drawing.draw()
