"""The server: `python -m kvline.server PORT`. A line for a question, a line for an answer.

ping · set KEY VALUE · get KEY · use NAMESPACE · which (namespace) · reset (to the first one)
count (of connections) · wait (for ever)
"""

from __future__ import annotations

import sys

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

_LONGEST = 65536


class Server:
    """Keys and values in memory, in namespaces, of which each session uses one."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], str] = {}
        self.sessions = 0

    async def serve(self, stream: SocketStream) -> None:
        """Answer one client until it hangs up; `listener.serve(server.serve)`."""
        self.sessions += 1
        namespace = "default"
        lines = BufferedByteReceiveStream(stream)
        try:
            async with stream:
                while True:
                    line = await lines.receive_until(b"\n", _LONGEST)
                    match line.decode().split(" ", 2):
                        case ["ping"]:
                            answer = "pong"
                        case ["set", key, value]:
                            self._values[namespace, key] = value
                            answer = "ok"
                        case ["get", key]:
                            answer = self._values.get((namespace, key), "error no such key")
                        case ["use", name]:
                            namespace = name
                            answer = "ok"
                        case ["reset"]:
                            namespace = "default"
                            answer = "ok"
                        case ["which"]:
                            answer = namespace
                        case ["count"]:
                            answer = str(self.sessions)
                        case ["wait"]:
                            await lines.receive_until(b"\n", _LONGEST)
                            continue
                        case _:
                            answer = "error no such command"
                    await stream.send(f"{answer}\n".encode())
        except (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.DelimiterNotFound):
            pass
        finally:
            self.sessions -= 1


async def main(port: int) -> None:
    """Serve until interrupted."""
    async with await anyio.create_tcp_listener(local_port=port) as listener:
        await listener.serve(Server().serve)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]))
