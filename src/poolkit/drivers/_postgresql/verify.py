"""Asks the server, in tests, whether leases leave something whose reset ``"auto"`` would put off.

The text of a statement does not say what triggers, views, policies and defaults do. So the session
is read before the reset and after it: what the reset has changed, the lease had left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers._postgresql.base import DottedNames

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from poolkit.drivers._postgresql.auto import PutsOff

#: All code in the database, in which settings with a dot may be named: those are in no catalogue.
_CODE: Final = """\
WITH ours AS (SELECT oid FROM pg_catalog.pg_namespace
  WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast'))
SELECT pg_catalog.pg_get_functiondef(oid) FROM pg_catalog.pg_proc
  WHERE pronamespace IN (SELECT oid FROM ours) AND prokind IN ('f', 'p')
UNION ALL SELECT pg_catalog.pg_get_viewdef(oid) FROM pg_catalog.pg_class
  WHERE relnamespace IN (SELECT oid FROM ours) AND relkind = 'v'
UNION ALL SELECT pg_catalog.pg_get_ruledef(oid) FROM pg_catalog.pg_rewrite
  WHERE rulename <> '_RETURN' AND ev_class IN
    (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace IN (SELECT oid FROM ours))
UNION ALL SELECT pg_catalog.pg_get_triggerdef(oid) FROM pg_catalog.pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT pg_catalog.pg_get_expr(polqual, polrelid) FROM pg_catalog.pg_policy
UNION ALL SELECT pg_catalog.pg_get_expr(polwithcheck, polrelid) FROM pg_catalog.pg_policy
UNION ALL SELECT pg_catalog.pg_get_expr(adbin, adrelid) FROM pg_catalog.pg_attrdef
UNION ALL SELECT pg_catalog.pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint
  WHERE connamespace IN (SELECT oid FROM ours) AND contype = 'c'"""
#: Characters of a statement that an error shows.
_SHOWN: Final = 300
#: Statements of a lease that an error shows: the last ones.
_MOST_SHOWN: Final = 10


class Verification:
    """What one verification has found; it takes the place of resets that might be put off."""

    def __init__(self) -> None:
        #: How many leases were looked at.
        self.checked: int = 0
        #: What they have left, in words, with their statements.
        self.found: list[str] = []
        self._names: list[str] | None = None

    async def reset(
        self, driver: PutsOff, c: Any, reset: Callable[[], Awaitable[str | None]]
    ) -> str | None:
        """Reset a connection, and find out whether that was needed."""
        texts = list(driver.judged(c)._texts or ())
        if self._names is None:
            self._names = await _dotted_names(driver, c)
        before = await driver.captured(c, self._names)
        left_behind = await reset()
        after = await driver.captured(c, self._names)
        self.checked += 1
        left = before.base.differences(after.base)
        left += [
            words
            for kind, words in before.unrestorable.items()
            if words != after.unrestorable.get(kind)
        ]
        if left:
            self.found.append(f"{', '.join(left)}, after: {'; '.join(_shown(texts))}")
        return left_behind


def begin_verifying(driver: PutsOff) -> Verification:
    """Have a driver put no reset off, and find out which of them are needed."""
    driver.verification = Verification()
    for c in driver.connections:
        driver.judged(c)._texts = []
    return driver.verification


def end_verifying(driver: PutsOff) -> None:
    """Have a driver put resets off again."""
    driver.verification = None
    for c in driver.connections:
        driver.judged(c)._texts = None


async def _dotted_names(driver: PutsOff, c: Any) -> list[str]:
    """Return the names with a dot in all code in the database."""
    names = DottedNames()
    names.read(await driver.column(c, _CODE))
    return names.all_names()


def _shown(texts: Iterable[object]) -> Iterable[str]:
    for text in [*dict.fromkeys(map(str, texts))][-_MOST_SHOWN:]:
        shown = " ".join(text.split())
        yield shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
