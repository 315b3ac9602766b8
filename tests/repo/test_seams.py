"""The parts around the heart reach it by its two seams, and change nothing inside of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
FILES = sorted(SOURCE.rglob("*.py"))

#: What would reach into a pool past its methods: its attributes replaced, or renamed copies of code.
TRICKS = {
    "the attributes of a pool": r"vars\((self\.)?_?pool\)|\b_?pool\.__dict__",
    "a copy of code by another name": r"\bcode\.replace\(|\bco_(qual)?name=",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_nobody_reaches_into_the_heart(trick: str) -> None:
    """Labels and observers are there for what these would do."""
    found = [path.name for path in FILES if re.search(TRICKS[trick], path.read_text())]
    assert found == []


def test_tricks_would_be_found() -> None:
    """As they were written before."""
    for line in (
        'vars(pool)["_acquire_nowait"] = _Attendant(pool)',
        'vars(self._pool)["_end_lease"] = self._end',
        "copy = code.replace(co_name=label)",
    ):
        assert any(re.search(trick, line) for trick in TRICKS.values()), line


def test_live_page_reads_no_state_of_a_pool() -> None:
    """It asks by methods, and by one look that the shell gives it, which is guarded."""
    page = [path for path in FILES if path.parent.name in ("dashboard", "_snapshots")]
    assert len(page) > 8
    assert [path.name for path in page if "._state" in path.read_text()] == []
