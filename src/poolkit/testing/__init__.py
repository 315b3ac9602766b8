"""Instruments for tests: of programs that use poolkit, and of drivers for it.

- Programs: `rollback` leaves no rows behind, `check_pool` finds what was not given back,
  `FakeDriver` is a database that fails when told to, `VirtualTimeLoop` makes hours pass at once,
  `verify_auto_reset` finds out whether ``reset="auto"`` is sound for a schema.
- Drivers: `check_driver` checks every line of the protocol's contract, with a `Probe` that you
  make for your library; `OneStepLoop` runs whatever schedule is chosen for it.

Fixtures for pytest are in ``poolkit.testing.pytest``, which is not imported by itself.
"""

from poolkit.testing._at_rest import check_pool
from poolkit.testing._auto_reset import verify_auto_reset
from poolkit.testing._check_driver import check_driver
from poolkit.testing._contract import ContractBroken, Probe, Report
from poolkit.testing._fake import NEVER, FakeConnection, FakeDriver, Fault
from poolkit.testing._loops import OneStepLoop, VirtualTimeLoop
from poolkit.testing._rollback import rollback

__all__ = [
    "NEVER",
    "ContractBroken",
    "FakeConnection",
    "FakeDriver",
    "Fault",
    "OneStepLoop",
    "Probe",
    "Report",
    "VirtualTimeLoop",
    "check_driver",
    "check_pool",
    "rollback",
    "verify_auto_reset",
]
