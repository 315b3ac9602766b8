"""The public surface of `poolkit.testing`, and its page."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

from poolkit import testing
from poolkit.testing._check_driver import LINES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "testing.md"


def test_names_are_there_and_documented() -> None:
    """In the code and on the page."""
    page = PAGE.read_text()
    for name in testing.__all__:
        thing = getattr(testing, name)
        assert thing is testing.NEVER or inspect.getdoc(thing), name
        assert f"`{name}" in page, name


def test_lines_are_on_the_page_with_what_they_need() -> None:
    """In the order in which they are checked."""
    rows = [
        f"| {line.words} | {_code(line.methods)}| {_code(line.probes)}|".replace("  ", " ")
        for line in LINES
    ]
    assert "\n".join(rows) in PAGE.read_text()


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names) + " " if names else ""


def test_import_of_poolkit_does_not_import_it() -> None:
    """It comes when it is first used, and brings no pytest even then."""
    program = (
        "import sys, poolkit; assert 'poolkit.testing' not in sys.modules;"
        "poolkit.testing.FakeDriver(); assert 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
