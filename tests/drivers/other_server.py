"""A server that is less than PostgreSQL: a real one, behind a proxy that refuses what others lack.

It says of itself what others say when a client connects, and answers statements that it does not
know with their errors: the client's text is replaced by one that raises them in the real server.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any, Final

from tests.proxy import Proxy

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

#: Instead of a code: the session ends, once.
DEATH: Final = "death"
_RAISE: Final = "DO $x$BEGIN RAISE EXCEPTION 'refused: {}' USING ERRCODE = '{}'; END$x$"


class OtherServer(Proxy):
    """Takes itself for another server; ``refuses`` has patterns of statements and error codes."""

    def __init__(
        self, host: str, port: int, *, says: Mapping[str, str], refuses: Mapping[str, str]
    ) -> None:
        super().__init__(host, port)
        self.says = says
        self.refuses = dict(refuses)
        #: The texts that clients have sent, in their order.
        self.texts: list[str] = []
        self._kept: dict[Any, bytes] = {}
        self._greeted: set[Any] = set()

    async def _received(self, source: socket.socket) -> bytes:
        """Return whole messages, changed."""
        while data := await super()._received(source):
            kept = self._kept.pop(source, b"") + data
            ours = any(link.client is source for link in self._links)
            if ours and source not in self._greeted:  # the first message has no type
                (length,) = struct.unpack("!i", kept[:4])
                self._greeted.add(source)
                return kept[:length]
            messages, rest = _split(kept)
            self._kept[source] = rest
            change = self._asked if ours else self._answered
            if changed := b"".join(change(kind, body) for kind, body in messages):
                return changed
        return b""

    def _asked(self, kind: bytes, body: bytes) -> bytes:
        if kind == b"Q":
            return _message(kind, self._text(body[:-1]) + b"\0")
        if kind == b"P":
            name, text, rest = body.split(b"\0", 2)
            return _message(kind, b"\0".join((name, self._text(text), rest)))
        return _message(kind, body)

    def _text(self, text: bytes) -> bytes:
        sql = text.decode()
        self.texts.append(sql)
        for pattern, code in self.refuses.items():
            if re.search(pattern, sql, re.IGNORECASE):
                if code == DEATH:
                    del self.refuses[pattern]
                    return b"SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())"
                return _RAISE.format(pattern.replace("\\", "").replace("'", ""), code).encode()
        return text

    def _answered(self, kind: bytes, body: bytes) -> bytes:
        name = body.partition(b"\0")[0].decode(errors="replace")
        if kind == b"S" and name in self.says:
            return _status(name, self.says[name])
        if kind == b"K":  # where the settings have been told
            new = {n: v for n, v in self.says.items() if n != "server_version"}
            return b"".join(_status(n, v) for n, v in new.items()) + _message(kind, body)
        return _message(kind, body)


def _split(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    messages = []
    while len(data) >= 5:
        (length,) = struct.unpack("!i", data[1:5])
        if len(data) <= length:
            break
        messages.append((data[:1], data[5 : length + 1]))
        data = data[length + 1 :]
    return messages, data


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _status(name: str, value: str) -> bytes:
    return _message(b"S", f"{name}\0{value}\0".encode())
