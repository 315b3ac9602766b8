"""The counting of instructions: what is compared, and with what. Nothing here counts any."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks import instructions
from benchmarks.instructions import CASES, ROWS, Row

HERE = {
    "python": "CPython 3.13.0",
    "build": "GCC",
    "machine": "Linux",
    "anyio": "4",
    "fastapi": "1",
}
ROW = Row("A", "acquire and release")


def before(counts: dict[str, int], **other: str) -> dict[str, Any]:
    """Return what was recorded, in another environment perhaps."""
    return {"environment": {**HERE, **other}, "counts": counts}


@pytest.mark.parametrize("name", CASES)
def test_each_loop_runs(name: str) -> None:
    """Both the short one and the long one, in the smallest form."""

    async def main() -> None:
        async with CASES[name].open() as run:
            await run(2)
            await run(3)

    asyncio.run(main())


@pytest.mark.parametrize(("counted", "failed"), [(96.0, False), (102.9, False), (103.1, True)])
def test_more_than_the_slack_fails_and_less_does_not(counted: float, failed: bool) -> None:
    """A cheaper one is good news."""
    verdict = instructions.judge(ROW, {"A": counted}, HERE, before({"A": 100}))
    assert verdict.failed is failed
    assert f"{counted - 100:+.1f}% of the recorded 100" in verdict.says


@pytest.mark.parametrize("name", ["python", "build", "machine", "anyio"])
def test_another_environment_is_told_and_not_compared(name: str) -> None:
    """However much more it is."""
    verdict = instructions.judge(ROW, {"A": 900.0}, HERE, before({"A": 100}, **{name: "other"}))
    assert not verdict.failed
    assert verdict.says == f"not compared: recorded with {name} other, and this is {HERE[name]}"


def test_version_of_a_library_that_a_row_does_not_use_makes_no_difference() -> None:
    """FastAPI's says nothing of an acquire."""
    verdict = instructions.judge(ROW, {"A": 900.0}, HERE, before({"A": 100}, fastapi="0"))
    assert verdict.failed


def test_what_is_not_recorded_is_not_compared() -> None:
    """Another Python, or a new row."""
    for kept in (None, before({})):
        verdict = instructions.judge(ROW, {"A": 900.0}, HERE, kept)
        assert not verdict.failed
        assert verdict.says.startswith("not compared")


def test_row_counts_what_is_above_another_loop() -> None:
    """A dependency, above the endpoint alone."""
    row = Row("connection", "the dependency", above="empty endpoint")
    assert row.count({"connection": 700.0, "empty endpoint": 500.0}) == 200.0


def test_total_is_what_callgrind_tells(tmp_path: Path) -> None:
    """In the last lines of its file."""
    out = tmp_path / "out.1"
    out.write_text("version: 1\nevents: Ir\n\nfn=(1) f\n1 40\n\ntotals: 1234\n", "utf-8")
    assert instructions.total_of(out) == 1234


def test_without_valgrind_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And counts nothing."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(instructions.CannotCount, match="make test-tools"):
        instructions.count()


def test_every_recorded_figure_has_its_row() -> None:
    """And each row has its figure, of the Python that is recorded."""
    kept = instructions.recorded()
    assert kept
    for figures in kept.values():
        assert set(figures["counts"]) == {row.case for row in ROWS}
        assert set(figures["environment"]) == set(instructions.environment())
