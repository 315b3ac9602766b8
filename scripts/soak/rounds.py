"""The tests that explore, again and again, each round with other seeds and more effort."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPLORING = [
    "tests/state/test_model.py",
    "tests/state/test_state_machine.py",
    "tests/pool/test_schedules.py",
    "tests/pool/test_gates.py",
    "tests/pool/test_days.py",
]


def run(minutes: float, first: int) -> int:
    """Run rounds until the time is over, or one fails."""
    end = time.monotonic() + minutes * 60
    rounds = 0
    while time.monotonic() < end:
        effort, seed = 4 * (1 + 2 * rounds), first + rounds
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
            again = f"POOLKIT_TEST_EFFORT={effort} {' '.join(command)}"
            print(f"== found something; again, or with the name of the test alone: {again}")
            return done.returncode
        rounds += 1
    print(f"== {rounds} whole rounds in {minutes:g} minutes, and nothing found")
    return 0
