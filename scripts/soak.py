"""Look for what `make test` has missed, for as long as asked: `make soak MINUTES=60`.

Runs the tests that explore (models, storms, schedules, days of traffic) again and again, each round
with other seeds and more effort. What fails says how to bring it back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPLORING = [
    "tests/state/test_model.py",
    "tests/state/test_state_machine.py",
    "tests/pool/test_schedules.py",
    "tests/pool/test_gates.py",
    "tests/pool/test_days.py",
]


def main() -> int:
    """Run rounds until the time is over, or one fails."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    end = time.monotonic() + minutes * 60
    first = int(time.time())
    rounds = 0
    while time.monotonic() < end:
        effort, seed = 1 + 2 * rounds, first + rounds
        print(f"== round {rounds + 1}: POOLKIT_TEST_EFFORT={effort} --hypothesis-seed={seed}")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "--timeout=0"]
        command += [f"--hypothesis-seed={seed}", *EXPLORING]
        environment = {**os.environ, "POOLKIT_TEST_EFFORT": str(effort)}
        try:
            left = max(1.0, end - time.monotonic())
            done = subprocess.run(command, cwd=ROOT, env=environment, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            break
        if done.returncode:
            return done.returncode
        rounds += 1
    print(f"== {rounds} whole rounds in {minutes:g} minutes, and nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
