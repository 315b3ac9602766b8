"""How hard to look: `make soak` multiplies what `make test` does in passing."""

from __future__ import annotations

import os
from typing import Final

EFFORT: Final = int(os.environ.get("POOLKIT_TEST_EFFORT", "1"))
