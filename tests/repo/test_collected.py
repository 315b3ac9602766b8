"""No test is lost: each folder has as many as are written down here, and nowhere else."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import COLLECTED, ROOT

#: Written down by whoever adds tests or takes some away; the failure says what to write.
TESTS = {
    "README.md": 3,
    "docs": 3,
    "docs/explanation": 2,
    "docs/howto": 158,
    "docs/reference": 6,
    "docs/tutorial": 11,
    "tests": 912,
    "tests/compat": 139,
    "tests/dashboard": 114,
    "tests/drivers": 6136,
    "tests/faults": 106,
    "tests/integrations": 1023,
    "tests/pool": 5528,
    "tests/repo": 219,
    "tests/sqlalchemy": 1069,
    "tests/state": 341,
    "tests/testing": 265,
}


@pytest.mark.skipif(sys.platform == "win32", reason="no uvloop, hence fewer, on Windows")
def test_each_folder_has_the_tests_that_are_written_down(pytestconfig: pytest.Config) -> None:
    """A file that is no longer collected, or a parameter that vanishes, would pass unnoticed."""
    asked = [ROOT / arg.partition("::")[0] for arg in pytestconfig.args if "::" not in arg]
    whole = {place for place in TESTS if {ROOT / place, *(ROOT / place).parents} & set(asked)}
    if pytestconfig.args == pytestconfig.getini("testpaths"):
        whole = TESTS.keys() | pytestconfig.stash[COLLECTED].keys()
    if not whole:
        pytest.skip("no whole folder was asked for")
    found = {place: pytestconfig.stash[COLLECTED][place] for place in sorted(whole)}
    assert found == {place: TESTS.get(place, 0) for place in sorted(whole)}
