"""Each fault test gets a `Run`, which has to be complete; what it has found out goes to a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator
from typing import Any

import pytest

from tests.faults import harness

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on both loops of asyncio: asyncpg knows no other."""
    return request.param


@pytest.fixture
def run(request: pytest.FixtureRequest) -> harness.Run:
    """Return what the test has to complete."""
    return harness.Run(harness.FAULTS[request.function])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a fault test that has passed without having proved its row."""
    yield
    run = getattr(item, "funcargs", {}).get("run")
    if isinstance(run, harness.Run):
        harness.ROWS.append(run.finish())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave what was found out for ``scripts/faults_table.py``, unless others have a part of it."""
    if harness.ROWS and not hasattr(session.config, "workerinput"):
        ran = {row.fault for row in harness.ROWS}
        found = {
            "versions": harness.VERSIONS,
            "missing": [each.name for each in harness.FAULTS.values() if each not in ran],
            "rows": [dataclasses.asdict(row) for row in harness.ROWS],
        }
        path = session.config.rootpath / "var" / "faults.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
