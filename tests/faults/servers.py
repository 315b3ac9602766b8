"""A Redis and a server of lines, each in a process of its own that may be stopped and killed."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import redis

from tests.postgres import Program, need
from tests.proxy import HOST
from tests.testing.resp import PROGRAMS


class RedisServer(Program):
    """A Redis of our own, without a file; ``client`` keeps its connection, to ask it from outside."""

    _end = "SIGTERM"

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:  # before there is anything to be closed
            need("redis", "there is no redis-server", "sh scripts/test-tools.sh redis-server")
        super().__init__("redis")
        self._program = program
        self.client = redis.Redis(host=HOST, port=self.port, socket_timeout=10)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ("--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no")
        self._launch(self._program, *words)
        self._wait_until(self._answers, 20)

    def close(self) -> None:
        """End it for good."""
        self.client.close()
        super().close()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


class LineServer(Program):
    """`line_server`, which any Python can run."""

    _end = "SIGTERM"
    _is_demoted = False  # this Python may lie where nobody else may go

    def __init__(self) -> None:
        super().__init__("lines")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        script = Path(__file__).with_name("line_server.py")
        self._launch(sys.executable, "-I", script, str(self.port))
        self._wait_until(self._answers, 20)

    def ask(self, question: str) -> str:
        """Ask on a connection of its own."""
        with socket.create_connection((HOST, self.port), timeout=10) as sock:
            sock.sendall(f"{question}\n".encode())
            answer = b""
            while not answer.endswith(b"\n"):
                answer += sock.recv(1000)
            return answer.decode().strip()

    def _answers(self) -> bool:
        try:
            return self.ask("ping") == "pong"
        except OSError:
            return False
