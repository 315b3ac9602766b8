"""What an error says of a COMMIT: it took effect or not, or nobody knows."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit.drivers._postgresql.fold import commit_and_reset
from poolkit.drivers._postgresql.outcome import is_unknown, may_repeat


class ServerError(Exception):
    """What a server answers."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("code", "again", "unknown"),
    [
        ("40001", True, False),  # serialization failure
        ("40P01", True, False),  # deadlock
        ("57P01", True, True),  # shut down by an administrator
        ("57P02", True, True),  # crash
        ("57P05", True, True),  # idle for too long
        ("25P03", True, True),  # in a transaction
        ("08006", True, True),  # connection failure
        ("08007", False, True),  # transaction resolution unknown
        ("08P01", False, True),  # a pooler's answer
        ("58000", False, True),  # of another pooler, which goes on without its server
        ("40003", False, True),  # statement completion unknown
        ("23505", False, False),  # unique violation
        ("57014", False, False),  # cancelled
        ("25P02", False, False),  # failed transaction
        (None, False, True),
    ],
)
def test_code_says_what_became_of_a_transaction(
    code: str | None, *, again: bool, unknown: bool
) -> None:
    """Only an answer on a session that goes on says that nothing was committed."""
    error = ServerError(code)
    assert may_repeat(error) is again
    assert not may_repeat(error, has_ended=True)
    assert is_unknown(error, closed=False) is unknown
    assert is_unknown(error, closed=True)
    assert not may_repeat(ConnectionError())
    assert is_unknown(TimeoutError(), closed=False)
    assert not is_unknown(ConnectionError(), closed=True, unsent=True)


class Session:
    """A session that answers as it is told to: None, or an error."""

    def __init__(
        self, *answers: Exception | None, open_after: int = 0, closed: bool = False
    ) -> None:
        self.answers = list(answers)
        self.open_after = open_after
        self.closed = closed
        self.texts: list[str] = []
        self.undone = False

    async def execute_own(self, text: str) -> None:
        """Answer."""
        self.texts.append(text.split(maxsplit=1)[0].rstrip(";"))
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer

    def is_closed(self) -> bool:
        """Tell so."""
        return self.closed

    def is_in_transaction(self) -> bool:
        """Tell whether so few texts were sent that the transaction is open."""
        return len(self.texts) <= self.open_after

    def was_reset(self) -> None:
        """Note it."""
        self.undone = True


async def commit(session: Any) -> tuple[str, bool]:
    """Commit, and reset with it."""
    return await commit_and_reset(session, "RESET ALL", ServerError)


async def test_commit_with_its_reset_takes_effect_or_does_not() -> None:
    """And what of it has failed is found out."""
    session = Session(None)
    assert (await commit(session), session.undone) == (("COMMIT", True), True)
    session = Session(ServerError("42501"), None)  # the reset has failed: there was a COMMIT
    assert (await commit(session), session.undone) == (("COMMIT", False), False)
    session = Session(ServerError("25P02"), None, open_after=1)
    assert await commit(session) == ("ROLLBACK", False)
    assert session.texts == ["SET", "ROLLBACK"]


@pytest.mark.parametrize("code", ["40001", "23505"])
async def test_commit_that_the_server_has_refused_is_known(code: str) -> None:
    """The server says that there was none."""
    with pytest.raises(ServerError, match=code) as caught:
        await commit(Session(ServerError(code), ServerError("22012")))
    assert not is_unknown(caught.value, closed=False)


@pytest.mark.parametrize("code", ["57014", "42501", "57P01", None])
async def test_commit_is_unknown_if_the_server_does_not_say_whether_there_was_one(
    code: str | None,
) -> None:
    """The question may fail in any way: that is no answer."""
    with pytest.raises(ServerError) as caught:
        await commit(Session(ServerError("40001"), ServerError(code)))
    assert is_unknown(caught.value, closed=False)


@pytest.mark.parametrize("error", [ValueError("another operation"), TimeoutError()])
async def test_commit_is_unknown_if_the_server_cannot_be_asked(error: Exception) -> None:
    """Also if that was not sent: the COMMIT was."""
    with pytest.raises(type(error)) as caught:
        await commit(Session(ServerError("57014"), error))
    assert is_unknown(caught.value, closed=False, unsent=True)
    better = LookupError("restated")
    better.__cause__ = caught.value
    assert is_unknown(better, closed=False, unsent=True)


async def test_commit_on_a_session_that_is_gone_is_unknown() -> None:
    """Whatever its last word was."""
    with pytest.raises(ServerError) as caught:
        await commit(Session(ServerError("40001"), closed=True))
    assert is_unknown(caught.value, closed=True)
    with pytest.raises(ServerError, match="57P01") as caught:  # before its end was read
        await commit(Session(ServerError("XX000"), ServerError("57P01"), open_after=2))
    assert is_unknown(caught.value, closed=False)
