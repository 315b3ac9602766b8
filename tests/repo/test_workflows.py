"""The workflows run commands that there are."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_commands_of_the_makefile(workflow: Path) -> None:
    """Or those in `.ci`, which run them."""
    text = workflow.read_text()
    commands = re.findall(r"run: (?:>-\n +)?(.+)", text)
    assert commands
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands:
        made = re.search(r"\bmake ([a-z-]+)", command)
        if made is not None:
            assert made[1] in targets
        else:
            first = command.split()[0]
            assert (ROOT / first).exists() or first in {"python", "test"} or ".venv" in first


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_may_do_nothing_but_what_each_job_names(workflow: Path) -> None:
    """No permission by default, and no action that somebody could change meanwhile."""
    text = workflow.read_text()
    assert "\npermissions: {}\n" in text
    assert "\nconcurrency:\n" in text
    used = re.findall(r"uses: (.+)", text)
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action) for action in used), used


def test_every_python_of_the_classifiers_is_tested() -> None:
    """And the newest without its lock, where that takes no server."""
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert set(classifiers) == set(re.findall(r"^ +(3\.\d+)$", text, re.MULTILINE))
    assert f"python: {classifiers[-1]}t" in text


def test_newest_versions_are_upgraded_in_an_environment_of_their_own() -> None:
    """Pre-releases of what poolkit drives and is driven by, and of nothing else by name."""
    said = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "test-newest"],
        cwd=ROOT,
        # As `make test VENV=...` passes on to whatever make it starts.
        env={**os.environ, "MAKEFLAGS": "", "MAKEOVERRIDES": "", "ARGS": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    install, upgrade, tests, again = said
    assert install.startswith("sh scripts/venv.sh .venv-newest ")
    assert upgrade.endswith(
        "--upgrade --pre aiosqlite asyncmy asyncpg fastapi psycopg sqlalchemy starlette"
    )
    assert tests.startswith(".venv-newest/bin/python -m pytest ")
    assert "tests/drivers" in tests
    assert "-p tests.integrations.without_function_stack" in again
    assert "tests/integrations/test_fastapi_dependencies.py" in again
    assert "make test-newest" in (ROOT / ".github/workflows/newest.yml").read_text()
    assert "cron:" in (ROOT / ".github/workflows/newest.yml").read_text()
