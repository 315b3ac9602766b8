"""Runs programs in processes forked from one interpreter, which imports once what all of them need."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

#: Imports nothing of the project's, and of the libraries that it works with only what it is told to.
_PROGRAM: Final = """
import asyncio, importlib, inspect, json, logging, os, runpy, ssl, sys, urllib.parse
import configparser, decimal, getpass, pathlib, platform, random, secrets, stringprep, uuid
import anyio.lowlevel, typing_extensions
import anyio._backends._asyncio
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    if isinstance(asked := json.loads(line), int):
        print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        command, paths, environment, out, err = asked
        for name, number in ((out, 1), (err, 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.path[:0] = paths
        os.environ.update(environment)
        if command[0] == "-m":
            sys.argv[1:] = command[2:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[1:] = command[1:]
            runpy.run_path(command[0], run_name="__main__")
        break
"""


class Done(NamedTuple):
    """How a process has ended, and what it said."""

    returncode: int
    out: str
    err: str


class Forked:
    """A process; nobody else gets its id before it was waited for."""

    def __init__(self, ask: Any, command: Sequence[Any], out: Path, err: Path) -> None:
        self._ask, self._out, self._err = ask, out, err
        self.pid: Final[int] = ask([*command, str(out), str(err)])

    def wait(self) -> Done:
        """Wait until it has ended."""
        returncode = self._ask(self.pid)
        return Done(returncode, self._out.read_text(), self._err.read_text())


class Forking:
    """The interpreter."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(
        self, folder: Path, *command: str, paths: Sequence[Path], **environment: str
    ) -> Forked:
        """Run a script, or what follows ``-m``, with ``paths`` first; its words go to ``folder``."""
        asked = [command, [str(path) for path in paths], environment]
        return Forked(self._ask, asked, folder / "out", folder / "err")

    def run(self, folder: Path, *command: str, paths: Sequence[Path], **environment: str) -> Done:
        """Run it to its end."""
        return self.start(folder, *command, paths=paths, **environment).wait()

    def run_text(self, folder: Path, text: str, *arguments: str, paths: Sequence[Path]) -> Done:
        """Run a script, given as its text, to its end."""
        script = folder / "script.py"
        script.write_text(text)
        return self.run(folder, str(script), *arguments, paths=paths)

    def _ask(self, what: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def forking(
    *modules: str, options: Sequence[str] = (), pass_fds: Collection[int] = ()
) -> Iterator[Forking]:
    """Start the interpreter, let it import; at the end it is gone, and what it may still run."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    process = subprocess.Popen(
        [sys.executable, *options, "-c", _PROGRAM, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    with process:
        try:
            yield Forking(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
