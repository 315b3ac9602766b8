"""A driver may put an error of its library's in words that say what has happened."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from poolkit import Pool, Verdict
from tests.fakes import Boom, FakeConnection, FullDriver, gone

if TYPE_CHECKING:
    from collections.abc import Callable


class Lost(Exception):
    """Says that the connection was lost."""


class RestatingDriver(FullDriver):
    """One whose library raises nonsense."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.kind = RudeConnection
        self.verdicts = {Boom: Verdict.DEAD, Lost: Verdict.DEAD}

    def restate(self, exc: BaseException, c: FakeConnection) -> Any:
        """Give the answer for nonsense."""
        if isinstance(self.answer, BaseException) and not isinstance(self.answer, Lost):
            raise self.answer
        return self.answer if isinstance(exc, Boom) else None


class RudeConnection(FakeConnection):
    """A connection all of whose operations fail."""

    async def query(self, answer: str = "row") -> str:
        """Fail."""
        raise Boom("nonsense")

    def query_later(self) -> Any:
        """Fail later."""
        return self.query()

    def peek(self) -> int:
        """Fail at once."""
        raise Boom("nonsense")

    @property
    def state(self) -> int:
        """Fail, too."""
        raise Boom("nonsense")


OPERATIONS: dict[str, Any] = {
    "coroutine function": lambda conn: conn.query(),
    "coroutine of a plain method": lambda conn: conn.query_later(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_error_that_the_driver_restates_is_raised_from_the_librarys(operation: str) -> None:
    """And counts for the connection as that one does."""
    async with Pool(RestatingDriver(Lost("the connection is gone")), max_size=1) as pool:
        with pytest.raises(Lost) as caught:
            async with pool.acquire() as conn:
                await OPERATIONS[operation](conn)
        assert isinstance(caught.value.__cause__, Boom)
        assert gone(pool.stats()) == {"broken": 1}


async def test_what_fails_at_once_is_restated_too() -> None:
    """Plain methods, and attributes."""
    async with Pool(RestatingDriver(Lost("gone"))) as pool, pool.acquire() as leased:
        conn: Any = leased
        uses: list[Callable[[], Any]] = [lambda: conn.peek(), lambda: conn.state]
        for use in uses:
            with pytest.raises(Lost):
                use()


async def test_restated_error_says_nothing_of_another_pools_connection() -> None:
    """Through whose block it passes."""
    other = FullDriver()
    other.verdicts = {Boom: Verdict.DEAD, Lost: Verdict.DEAD}
    async with Pool(RestatingDriver(Lost("gone"))) as pool, Pool(other) as innocent:
        with pytest.raises(Lost):
            async with innocent.acquire() as mine, pool.acquire() as conn:
                await mine.query()
                await conn.query()
        assert gone(innocent.stats()) == {}
        assert gone(pool.stats()) == {"broken": 1}


@pytest.mark.parametrize("answer", [None, ValueError("rude"), "no exception"])
async def test_driver_that_has_nothing_to_say_leaves_the_error_as_it_is(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """None; one that raises, or returns something else, is reported."""
    async with Pool(RestatingDriver(answer)) as pool, pool.acquire() as conn:
        with pytest.raises(Boom, match="nonsense"):
            await conn.query()
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(said) == (0 if answer is None else 1)
    assert all("RestatingDriver.restate raised" in each for each in said)
