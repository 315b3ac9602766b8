"""How hard to look: 1 is what `make test` does in passing, 4 what CI does, `make soak` goes on from there.

And how to look at one case again, of those that a test goes through: its failure ends with the command.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

EFFORT: Final = int(os.environ.get("POOLKIT_TEST_EFFORT", "1"))

#: How much of what CI explores is explored now: an eighth on a desk.
SHARE: Final = 1 / 8 if EFFORT < 2 else EFFORT / 4

#: The one case to try, as a failure has named it, of those that a test goes through.
CASE: Final = os.environ.get("POOLKIT_TEST_CASE")

T = TypeVar("T")


def shown(case: object) -> str:
    """Return a case as one writes it in a shell without much ado."""
    if isinstance(case, dict):
        return ", ".join(f"{name}: {value}" for name, value in case.items())
    return str(case)


def each(cases: Iterable[T], name: Callable[[T], str] = shown) -> Iterator[T]:
    """Yield the cases, or only the one that POOLKIT_TEST_CASE names."""
    chosen = [case for case in cases if name(case) == CASE] if CASE is not None else cases
    if CASE is not None and not chosen:
        raise LookupError(f"no case of this test, at this effort, is called {CASE}")
    yield from chosen


@contextlib.contextmanager
def told(name: object) -> Iterator[None]:
    """Have an error of the case say how to bring it back."""
    try:
        yield
    except BaseException as error:
        error.add_note(again(name))
        raise


def again(name: object) -> str:
    """Return the command that runs one case of the test that is running."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    effort = f"POOLKIT_TEST_EFFORT={EFFORT} " if EFFORT != 1 else ""
    case = f"POOLKIT_TEST_CASE={shlex.quote(shown(name))}"
    return f"again: {effort}{case} {sys.executable} -m pytest {shlex.quote(test)}"
