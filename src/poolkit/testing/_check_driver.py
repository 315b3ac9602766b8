"""The conformance battery: every line of a driver's contract, tried out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from poolkit.testing import _contract_cancelling as _lines_cancelling
from poolkit.testing import _contract_clean as _lines_clean
from poolkit.testing import _contract_connection as _lines_connection
from poolkit.testing import _contract_handles as _lines_handles
from poolkit.testing import _contract_hints as _lines_hints
from poolkit.testing import _contract_lease as _lines_lease
from poolkit.testing._bench import Bench
from poolkit.testing._contract import Broken, C, ContractBroken, Probe, Report, WrongProbe

if TYPE_CHECKING:
    from poolkit._driver import Driver

#: All lines, in the order in which they are checked: the later ones rely on the earlier ones.
LINES: Final = (
    *_lines_connection.LINES,
    *_lines_cancelling.LINES,
    *_lines_clean.LINES,
    *_lines_lease.LINES,
    *_lines_hints.LINES,
    *_lines_handles.LINES,
)


async def check_driver(
    driver: Driver[C], probe: Probe[C] | None = None, *, patience: float = 5.0
) -> Report:
    """Check every line of the contract in `poolkit.Driver` against a driver and its database.

    First on its connections, then on handles of a pool's, which are what users have.

    Lines about optional methods that the driver does not have are skipped, and so are those for
    which the probe lacks a part. It opens some hundred connections, two at a time at most, for a
    few seconds in all; whatever is in the database stays, but for what the probe does.

    Args:
        driver: the one to check. It must be able to connect.
        probe: what to do with its connections (`Probe`); without one, lines are skipped.
        patience: seconds after which a call is taken for one that hangs, and a leaked connection
            for one that stays.

    Raises:
        ContractBroken: the first line that the driver breaks, and what happened.
        ValueError: the probe is wrong: its ``operate`` ends by itself, for example.

    """
    probe = Probe() if probe is None else probe
    bench = Bench(driver, probe, patience)
    checked: list[str] = []
    skipped: dict[str, str] = {}
    for line in LINES:
        if wants := line.wants(driver, probe):
            skipped[line.words] = wants
            continue
        try:
            await line.check(bench)
        except WrongProbe:
            raise
        except Broken as broken:
            raise ContractBroken(driver, line.words, str(broken)) from broken.__cause__
        except Exception as error:
            raise ContractBroken(driver, line.words, f"this was raised: {error!r}") from error
        checked.append(line.words)
    return Report(checked=tuple(checked), skipped=skipped)
