"""TCP keepalive, by which the operating system notices a server that is gone."""

from __future__ import annotations

import contextlib
import socket
from typing import Any


def watch_peer(sock: Any, timeout: float) -> None:
    """Have the system notice a dead peer within ``timeout`` seconds, also while nothing is sent."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    timeout = min(timeout, 30_000.0)  # systems refuse more
    probes = 3
    pause = max(1, round(timeout / 9))
    idle = max(1, round(timeout) - probes * pause)
    wanted = {
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPALIVE": idle,  # as macOS calls it
        "TCP_KEEPINTVL": pause,
        "TCP_KEEPCNT": probes,
        "TCP_USER_TIMEOUT": round(timeout * 1000),
    }
    with contextlib.suppress(OSError, OverflowError):  # a system may lack some of these options
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in wanted.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
