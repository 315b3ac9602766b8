"""The oldest versions under test are those that pyproject.toml declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Extras that users do not install, or that repeat others.
UNTESTED = {"all", "check", "docs", "test"}


def test_oldest_versions_are_the_declared_floors() -> None:
    """Neither may move without the other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = list(project["dependencies"])
    for extra, requirements in extras.items():
        if extra not in UNTESTED:
            declared += requirements
    floors = {_parts(requirement, ">=") for requirement in declared}
    text = (ROOT / "tests" / "oldest.txt").read_text()
    lines = text.partition("# What goes with")[0].splitlines()  # the tests' own come after
    oldest = {_parts(line, "==") for line in lines if not line.startswith("#")}
    assert floors == oldest


def test_every_library_is_in_the_extras_of_all() -> None:
    """Who wants all of them gets all, and so do the tests."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    everything = f"poolkit[{','.join(sorted(extras.keys() - UNTESTED))}]"
    assert extras["all"] == [everything]
    assert everything in extras["test"]


def _parts(requirement: str, relation: str) -> tuple[str, tuple[int, ...]]:
    name, _, version = requirement.partition(relation)
    numbers = [int(number) for number in version.split(".")]
    return re.sub(r"\[.*\]", "", name), tuple([*numbers, 0, 0][:3])
