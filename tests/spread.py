"""Long tables of cases share out the event loops: on a desk each case runs on one of them.

In CI, where the effort is 4, each runs on all. What is left out is deselected, and told as that; all
of it is collected, and asserted to be (`tests/repo/test_collected.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pytest

#: What the event loop is a part of, by the name of the parameter.
LOOPS: Final = ("anyio_backend", "case", "run", "part")
#: A table with fewer cases runs on all of its loops. Of one with more, each loop has two at least.
MANY: Final = 6

#: What tells a case from the others: its parameters but for the loop, each by a name and a value.
Case = tuple[tuple[str, Hashable], ...]
#: The tests of one function, by their cases and loops.
Table = dict[Case, dict[Hashable, "pytest.Item"]]


def spread(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the tests to run, in their order, and those to leave out.

    Each value of each parameter meets all loops, or as many as there are cases with it.
    """
    tables: dict[Any, Table] = defaultdict(dict)
    for item in items:
        if (name := loop_of(item)) is not None:
            loop, case = split(item, name)
            table = tables[item.nodeid.partition("[")[0], name]
            times = 0
            while loop in table.setdefault((*case, ("times", times)), {}):
                times += 1  # the same case is written down twice
            table[*case, ("times", times)][loop] = item
    chosen = {
        id(item)
        for table in tables.values()
        for item in (_one_each(table) if len(table) >= MANY else _all(table))
    }
    run = [item for item in items if id(item) in chosen or loop_of(item) is None]
    return run, [item for item in items if not (id(item) in chosen or loop_of(item) is None)]


def loop_of(item: pytest.Item) -> str | None:
    """Return which of a test's parameters says on what event loop it runs, if one does."""
    parameters = getattr(item, "callspec", None)
    return next((name for name in LOOPS if parameters and name in parameters.params), None)


def split(item: pytest.Item, name: str) -> tuple[Hashable, Case]:
    """Return the loop of a test, and what it has in common with the same test on another loop."""
    values: dict[str, Any] = dict(item.callspec.params)  # type: ignore[attr-defined]
    loop = values.pop(name)
    if name == "case":  # of which a driver is the other part
        values["driver"] = loop[0]
    case = tuple((name, _known_by(values[name])) for name in sorted(values))
    return _known_by(loop), case


def _known_by(value: Any) -> Hashable:
    """Return what every process that shares in the tests tells this value by from others."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def _one_each(table: Table) -> Iterator[pytest.Item]:
    """Return each case on one loop: the next one if any of its parameters has its next value."""
    columns = zip(*([value for _, value in case] for case in table), strict=True)
    # Parameters that go together count as one.
    every_rank = zip(*set(map(_numbered, columns)), strict=True)
    for ranks, on_loops in zip(every_rank, table.values(), strict=True):
        loops = list(on_loops.values())
        yield loops[sum(ranks) % len(loops)]


def _numbered(column: Iterable[Hashable]) -> tuple[int, ...]:
    """Return for each value as which new one it came."""
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(value, len(numbers)) for value in column)


def _all(table: Table) -> Iterator[pytest.Item]:
    for on_loops in table.values():
        yield from on_loops.values()
