"""What is left out on a desk is what another test nearly is: every case runs, on every loop some do."""

from __future__ import annotations

import itertools
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

from tests.spread import MANY, spread

A, B, C = "asyncio", "uvloop", "trio"


def table(name: str = "anyio_backend", *, loops: Any, **parameters: list[Any]) -> list[Any]:
    """Return what pytest collects of one function."""
    found: list[Any] = []
    for loop in loops:
        for values in itertools.product(*parameters.values()):
            params = {name: loop, **dict(zip(parameters, values, strict=True))}
            spec = SimpleNamespace(params=params)
            found.append(SimpleNamespace(nodeid=f"test_it[{params}]", callspec=spec))
    return found


def params(items: list[Any]) -> list[dict[str, Any]]:
    """Return the parameters of tests."""
    return [item.callspec.params for item in items]


@pytest.mark.parametrize("loops", [[A, B, C], [A, B]], ids=len)
@pytest.mark.parametrize(("x", "y"), [(2, 3), (6, 1), (3, 3), (7, 5)])
def test_each_case_runs_once_and_each_value_on_as_many_loops_as_it_can(
    loops: list[str], x: int, y: int
) -> None:
    """Nothing but the third or the half that runs is needed to see that."""
    run, left_out = spread(items := table(loops=loops, x=[*range(x)], y=[*range(y)]))
    assert len(run) == x * y
    assert sorted(map(id, [*run, *left_out])) == sorted(map(id, items))
    assert len({(p["x"], p["y"]) for p in params(run)}) == x * y
    for name, others in (("x", y), ("y", x)):
        met = defaultdict(set)
        for p in params(run):
            met[p[name]].add(p["anyio_backend"])
        assert all(len(seen) >= min(len(loops), others) for seen in met.values()), met
    shares = [sum(p["anyio_backend"] == loop for p in params(run)) for loop in loops]
    assert max(shares) - min(shares) <= 2
    assert min(shares) >= MANY // 3


def test_each_driver_has_a_loop_of_its_own_turn() -> None:
    """Where a case is a driver on a loop, neither driver is left out."""
    loops = [("aiosqlite", A), ("aiosqlite", B), ("threads", A), ("threads", B), ("threads", C)]
    run, _ = spread(table("case", loops=loops, x=[*range(3)]))
    met = {(p["x"], p["case"][0]) for p in params(run)}
    assert len(run) == len(met) == 6
    assert {p["case"] for p in params(run)} == set(loops)


def test_what_is_short_or_knows_no_loop_is_left_whole() -> None:
    """And what is asked for on one loop alone runs on that."""
    short = table(loops=[A, B, C], x=[*range(MANY - 1)])
    alone = table(loops=[B], x=[*range(9)])
    loopless = table("way", loops=[A, B], x=[*range(9)])
    plain: Any = SimpleNamespace(nodeid="test_plain")
    for items in (short, alone, loopless, [plain]):
        assert spread(items) == (items, [])
