"""A server of several processes: `uvicorn --workers 4 tests.dashboard.many:app`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKERS = 4


class Many:
    """A server of several processes."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[str], log: Path) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = process
        self.log = log

    def ask(self, method: str, path: str) -> Any:
        """Send a request to any of them, and return the JSON that it answers."""
        return json.loads(self.read(method, path))

    def read(self, method: str, path: str) -> str:
        """Send a request to any of them, and return the text that it answers."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            conn.request(method, path)
            answer = conn.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
            return text
        finally:
            conn.close()


@contextlib.contextmanager
def serve_many(folder: Path) -> Iterator[Many]:
    """Start it, and end it."""
    log = folder / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as output:
        fd = listener.fileno()
        command = [sys.executable, "-m", "uvicorn", "tests.dashboard.many:app"]
        command += [f"--workers={WORKERS}", f"--fd={fd}", "--timeout-graceful-shutdown=3"]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "MANY": str(folder)},
            pass_fds=[fd],
            stdout=output,
            stderr=output,
            text=True,
        ) as process:
            try:
                yield Many(folder, listener.getsockname()[1], process, log)
            finally:
                (folder / "go").touch()
                process.terminate()
                try:
                    process.wait(30)
                finally:
                    process.kill()
