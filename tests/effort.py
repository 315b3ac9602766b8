"""How hard to look: 1 is what `make test` does in passing, 4 what CI does, `make soak` goes on from there."""

from __future__ import annotations

import os
from typing import Final

EFFORT: Final = int(os.environ.get("POOLKIT_TEST_EFFORT", "1"))

#: How much of what CI explores is explored now: an eighth on a desk.
SHARE: Final = 1 / 8 if EFFORT < 2 else EFFORT / 4
