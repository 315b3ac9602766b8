"""A server that answers lines, in a process of its own: ``python line_server.py PORT``.

``ping`` is answered by ``pong``, ``who`` by the port of the client, ``list`` by the ports of all
clients, and of those that wait, whom ``wait`` leaves without an answer; ``end PORT`` hangs up on one.
"""

from __future__ import annotations

import asyncio
import sys

writers: dict[str, asyncio.StreamWriter] = {}
waiting: set[str] = set()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client until it hangs up."""
    port = str(writer.get_extra_info("peername")[1])
    writers[port] = writer
    try:
        while line := await reader.readline():
            word, _, rest = line.decode().strip().partition(" ")
            if word == "end" and rest in writers:
                writers[rest].close()
            if word == "wait":
                waiting.add(port)
                continue
            shown = f"{' '.join(writers.keys() - {port})};{' '.join(waiting)}"
            answer = {"ping": "pong", "who": port, "list": shown}.get(word, "done")
            writer.write(f"{answer}\n".encode())
            await writer.drain()
    except OSError:
        pass
    finally:
        del writers[port]
        waiting.discard(port)
        writer.close()


async def main() -> None:
    """Listen until killed."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
