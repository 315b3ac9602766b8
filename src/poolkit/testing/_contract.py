"""What `check_driver` is told, what it works with, and what it tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit._driver import Driver

C = TypeVar("C", default=Any)

#: What it costs a driver not to have a method.
_WITHOUT: Final = {
    "revoke": ", without which a connection that has given its user more than plain data is not "
    "used again"
}
#: Longer than anything that is to be done at once takes on a busy machine.
AT_ONCE: Final = 0.5
#: Within so many seconds whatever was cancelled or terminated has ended.
SOON: Final = 1.0


class ContractBroken(AssertionError):
    """A driver does not keep its contract: in which line, and what it did."""

    def __init__(self, driver: object, line: str, what: str) -> None:
        super().__init__(f"{type(driver).__name__} breaks its contract: {line}. But {what}")
        self.line: Final = line
        """The line of the contract, as in `Report.checked`."""
        self.what: Final = what
        """What happened instead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(Generic[C]):
    """What only you can do with your library's connections; each part enables some more lines.

    What a function returns is not looked at unless it is said to be.
    """

    count: Callable[[], Awaitable[int]] | None = None
    """Return how many connections there are, as the server sees it. Others may be among them, as
    long as they stay."""

    operate: Callable[[C], Awaitable[object]] | None = None
    """Run something that would take a minute: ``SELECT pg_sleep(60)``."""

    spoil: Callable[[C], Awaitable[object]] | None = None
    """Leave behind what the next user must not find: an open transaction, a setting."""

    is_spoiled: Callable[[C], Awaitable[bool]] | None = None
    """Tell whether anything of that is to be found."""

    derive: Callable[[C], Awaitable[Callable[[], Awaitable[object]]]] | None = None
    """Make an object, say a cursor, and return a function that uses it, say its ``fetchone``."""

    kill: Callable[[C], Awaitable[object]] | None = None
    """End the connection from outside: ``SELECT pg_terminate_backend(pid)``, on another one."""

    write: Callable[[C], Awaitable[object]] | None = None
    """Insert a row."""

    count_rows: Callable[[], Awaitable[int]] | None = None
    """Return how many such rows are committed, as another connection sees it."""

    secrets: tuple[str, ...] = ()
    """What must not be shown, like the password."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `check_driver` has checked, all of it well, and what it could not check."""

    checked: tuple[str, ...]
    """The lines of the contract that the driver keeps."""

    skipped: Mapping[str, str]
    """The other lines, each with what would enable it."""

    def __str__(self) -> str:
        """Return it as a few lines of text."""
        lines = [f"{len(self.checked)} lines checked, {len(self.skipped)} skipped"]
        lines += [f"  skipped: {line} (for want of {want})" for line, want in self.skipped.items()]
        return "\n".join(lines)


class Broken(Exception):
    """What happened, for the line being checked."""


class WrongProbe(ValueError):
    """The probe does not do what it should, so nothing can be said of the driver."""


Check: TypeAlias = "Callable[[Any], Awaitable[None]]"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the contract: the words, what checking it needs, and how it is checked."""

    words: str
    methods: tuple[str, ...]
    """Optional methods of the driver."""
    probes: tuple[str, ...]
    """Fields of the probe."""
    check: Check

    def wants(self, driver: Driver[Any], probe: Probe[Any]) -> str:
        """Return what is missing, in words."""
        missing = [
            f"the driver's {name}{_WITHOUT.get(name, '')}"
            for name in self.methods
            if not hasattr(driver, name)
        ]
        missing += [f"Probe({name}=)" for name in self.probes if not getattr(probe, name)]
        return ", ".join(missing)


class Chapter(list[Line]):
    """The lines about one subject, in the order in which they are checked."""

    def line(self, words: str, *, needs: str = "", probes: str = "") -> Callable[[Check], Check]:
        """Add a function that checks one line; it raises `Broken`."""

        def add(check: Check) -> Check:
            self.append(Line(words, tuple(needs.split()), tuple(probes.split()), check))
            return check

        return add
