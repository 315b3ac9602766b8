"""What a test that goes through many cases says of the one that fails brings back that one."""

from __future__ import annotations

import shlex

import pytest

from tests import effort


def test_error_of_a_case_has_the_command_that_tries_it_alone(
    request: pytest.FixtureRequest,
) -> None:
    """The variables, the interpreter and the test, for a shell."""
    with pytest.raises(ZeroDivisionError) as caught, effort.told({"ping": "own cancellation"}):
        raise ZeroDivisionError
    (note,) = caught.value.__notes__
    words = shlex.split(note)
    assert words[0] == "again:"
    assert "POOLKIT_TEST_CASE=ping: own cancellation" in words
    assert words[-1] == request.node.nodeid


def test_only_the_named_case_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a name that no case has is an error, not a success."""
    cases = [{"ping": "ok"}, {"ping": "never"}]
    assert list(effort.each(cases)) == cases
    monkeypatch.setattr(effort, "CASE", "ping: never")
    assert list(effort.each(cases)) == [{"ping": "never"}]
    with pytest.raises(LookupError, match="ping: never"):
        list(effort.each(range(3)))
