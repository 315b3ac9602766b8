"""Runs modules in processes forked from one interpreter, which imports once what all of them need."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

#: Nothing of the project's, nor of the libraries that its drivers are for.
_PROGRAM: Final = """
import asyncio, inspect, json, logging, os, runpy, ssl, sys, urllib.parse
import anyio.lowlevel, typing_extensions
import anyio._backends._asyncio
for line in sys.stdin:
    module, arguments, paths, out, err = json.loads(line)
    if not (pid := os.fork()):
        for name, number in ((out, 1), (err, 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.path[:0], sys.argv[1:] = paths, arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """How a process has ended, and what it said."""

    returncode: int
    out: str
    err: str


class Forking:
    """The interpreter; one module runs at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, module: str, *arguments: str, paths: Sequence[Path]) -> Done:
        """Run a module, found on ``paths`` first; what it says goes through files in ``folder``."""
        out, err = folder / "out", folder / "err"
        asked = [module, arguments, [str(path) for path in paths], str(out), str(err)]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        returncode = int(self._process.stdout.readline())
        return Done(returncode, out.read_text(), err.read_text())


@contextlib.contextmanager
def forking() -> Iterator[Forking]:
    """Start the interpreter; at the end it is gone, and what it may still run."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield Forking(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
