"""poolkit's driver: `poolkit.create_pool("kvline://host:port")` finds `from_url` by entry point."""

from kvline.client import Client, Refused
from poolkit import Verdict
from poolkit.drivers.helpers import URL, parse_url


class KvlineDriver:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.name = f"{host}:{port}"

    async def connect(self) -> Client:
        return await Client.connect(self.host, self.port)

    def is_dead(self, c: Client) -> bool:
        return c.is_closed

    async def reset(self, c: Client) -> None:
        if c.unanswered:  # an answer may still arrive, and it would be the next user's
            raise ConnectionError("an answer is outstanding")
        await c.ask("reset")

    async def ping(self, c: Client) -> None:
        await c.ask("ping")

    async def close(self, c: Client) -> None:
        c.close()

    def terminate(self, c: Client) -> None:
        c.close()

    def classify(self, exc: BaseException, c: Client | None) -> Verdict | None:
        return Verdict.OK if c and isinstance(exc, Refused) else None


def from_url(url: URL) -> KvlineDriver:
    address = parse_url(url, schemes=["kvline"])
    return KvlineDriver(address.host, address.port or 7379)
