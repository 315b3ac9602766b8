"""The lists of asyncpg's and SQLAlchemy's own tests that fail may only shrink."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> Any:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> Any:
    """Return the script that both compare with."""
    return load("asyncpg_pool_tests")


def test_only_what_is_listed_may_fail_and_must(script: Any) -> None:
    """Anything else has the script fail, and says what to do."""
    ended = {"a": "failed", "b": "passed"}
    assert script.compare(ended, {"a": "why"}, {}, all_ran=True) == []
    assert script.compare(ended, {}, {}, all_ran=True) == ["a: failed, and is not in the list"]
    assert script.compare(ended, {"a": "why", "b": "why"}, {}, all_ran=True) == [
        "b passes: take it off the list"
    ]
    assert script.compare(ended, {"a": ""}, {}, all_ran=True) == [
        "a is in the list without a reason"
    ]
    gone = {"a": "why", "d": "why"}
    assert script.compare(ended, gone, {}, all_ran=True) == ["d is in the list, but is no test"]
    assert script.compare(ended, gone, {}, all_ran=False) == []


def test_what_fails_sometimes_may_pass(script: Any) -> None:
    """Where the machine's speed decides."""
    why = {"a": "why", "b": "why"}
    assert script.compare({"a": "failed", "b": "passed"}, {}, why, all_ran=True) == []


@pytest.mark.parametrize("how", ["skipped", "not run"])
def test_skipped_test_needs_a_reason_too(script: Any, how: str) -> None:
    """A server that does not start must not look like success."""
    assert script.compare({"a": how}, {"a": "why"}, {}, all_ran=True) == []
    assert script.compare({"a": how}, {}, {}, all_ran=True) == [f"a: {how}, and is not in the list"]


@pytest.mark.parametrize("which", ["asyncpg_pool_tests", "sqlalchemy_tests"])
def test_every_listed_failure_has_a_reason(which: str) -> None:
    """In words."""
    always, sometimes = load(which).read_list()
    assert always
    for name, reason in (always | sometimes).items():
        assert re.search(r"\w(\.|::)test_", name)
        assert len(reason.split()) > 5
