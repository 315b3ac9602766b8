"""Measuring by turns: A B C A B C ..., so that a busy minute of the machine falls on all alike."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some measurements, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of these."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


Measured = dict[str, list[float]]


async def by_turns(measures: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> Measured:
    """Return what each measured in each round."""
    measured: Measured = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            gc.collect()
            measured[name].append(await measure())
    return measured


def ratios(measured: Measured, name: str, to: str) -> Spread:
    """Return how many times as much one measured as another, each ratio formed inside a round."""
    return Spread.of(a / b for a, b in zip(measured[name], measured[to], strict=True))


async def calibrated(
    run: Callable[[int], Awaitable[float]], seconds: float
) -> Callable[[], Awaitable[float]]:
    """Return a measurement of one cycle that takes about so many seconds of CPU time in all.

    ``run`` runs a number of cycles and returns the CPU seconds that each took.
    """
    number = 64
    while (begin := time.process_time()) is not None:
        await run(number)
        taken = time.process_time() - begin
        if taken > seconds / 20:
            break
        number *= 4
    number = max(1, int(number * seconds / taken))

    async def measure() -> float:
        return await run(number)

    return measure


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many per cent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def jain(counts: Sequence[float]) -> float:
    """Return how equal they are: 1 if all are, 1/n if one has everything (Jain's index)."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else 0.0
