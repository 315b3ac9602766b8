"""`make soak` works, and is not blind: each of its programs for a moment, with fixed seeds."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from poolkit._core.slots import Slots
from poolkit._core.state import PoolState
from poolkit._shell import derived as _data
from scripts.soak import on_asyncio, on_trio
from scripts.soak.model import RUDE, World
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no uvloop on Windows"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of a pool that is left as it is
]

VIRTUAL = [(on_asyncio, 0), (on_trio, 0)]
named = pytest.mark.parametrize(("part", "seed"), VIRTUAL, ids=["asyncio", "trio"])


def soak(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command as make does."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.soak", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("part", ["asyncio", "trio", "money"])
def test_soak_finds_nothing_in_a_moment(part: str) -> None:
    """The command runs, and the seed is a good one."""
    done = soak("--only", part, "--seed", "0", "--steps", "80", "--without", "all")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("only", [[], ["--only", "rounds"]], ids=["none", "rounds"])
def test_seed_without_its_program_is_refused(only: list[str]) -> None:
    """With the programs that have one."""
    done = soak("--seed", "0", *only)
    assert done.returncode == 2
    assert "--seed is of one program: add --only asyncio or trio or money" in done.stderr


def history(part: Any, seed: int) -> deque[str]:
    """Run one seed in virtual time, and return how it ended."""
    world = World(seed, RUDE)
    part.run(world, 80)
    return world.history


@named
def test_seed_brings_back_what_it_brought_before(part: Any, seed: int) -> None:
    """In virtual time, to the last word."""
    assert history(part, seed) == history(part, seed)


def forget_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave those in line who have gone."""
    monkeypatch.setattr(PoolState, "give_up", lambda *_: None)


def serve_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve who came last."""
    original = PoolState.enqueue

    def enqueue(state: PoolState, waiter: Any, now: float) -> bool:
        result = original(state, waiter, now)
        if waiter.outcome == "waiting":
            state.queue.move_to_end(waiter.key, last=False)
        return result

    monkeypatch.setattr(PoolState, "enqueue", enqueue)


def skip_the_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what was left behind for clean."""
    monkeypatch.setattr(PoolState, "release_dirty", PoolState.release)


def connect_above_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have room for one more than there may be."""
    monkeypatch.setattr(PoolState, "room", property(lambda state: 1 + Slots.room.__get__(state)))
    monkeypatch.setattr(PoolState, "_is_full", lambda _: False)


def forget_to_terminate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave connections open that the pool has given up."""
    monkeypatch.setattr("poolkit._shell.driver_calls.Hooks.terminate", lambda *_: None)


def heed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand on what an error of the last lease has said is broken."""
    monkeypatch.setattr("poolkit._shell.driver_calls.Hooks.heed", lambda *_, **__: None)


def take_lists_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look into none, nor into dicts and tuples."""
    original = _data.beyond_data

    def beyond_data(value: Any, **options: Any) -> str | None:
        return None if type(value) in (list, dict, tuple) else original(value, **options)

    monkeypatch.setattr(_data, "beyond_data", beyond_data)


def take_errors_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look into none."""
    monkeypatch.setattr(_data, "beyond_data_in", lambda *_, **__: None)


def never_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust in what was heard before the event loop was away."""
    monkeypatch.setattr(PoolState, "was_away", lambda *_: None)


@named
@pytest.mark.parametrize(
    "plant",
    [
        forget_to_give_up,
        serve_the_last,
        skip_the_reset,
        connect_above_capacity,
        forget_to_terminate,
        heed_nothing,
        take_lists_for_data,
        take_errors_for_data,
        never_be_away,
    ],
)
def test_planted_bug_is_found(
    part: Any, seed: int, plant: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run or two of a few hundred steps."""
    plant(monkeypatch)
    without = set(RUDE) - {"away"} if plant is never_be_away else RUDE
    with pytest.raises(BaseException) as found:  # a group, on trio
        for later in range(12):
            world = World(seed + 2 * later, without)
            part.run(world, 300)
    assert world.failure is not None, found
