"""Making a pool: what is refused, and what the message says."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

import poolkit
from poolkit import Options, Pool, PoolConfigError, PoolError
from tests.fakes import FakeDriver

if TYPE_CHECKING:
    from pathlib import Path


def test_unknown_scheme_names_the_known_ones() -> None:
    """The remedy is in the message."""
    with pytest.raises(
        PoolConfigError,
        match=r"'mongodb'.*postgresql, postgresql\+asyncpg, postgresql\+psycopg, .*sqlite, ",
    ):
        poolkit.create_pool("mongodb://localhost")


def test_url_without_a_scheme_is_refused_without_repeating_it() -> None:
    """It may hold a password."""
    with pytest.raises(PoolConfigError) as caught:
        poolkit.create_pool("user:secret@host/db")
    assert "secret" not in str(caught.value)
    assert "sqlite:///app.db" in str(caught.value)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command to paste."""
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    monkeypatch.delitem(sys.modules, "poolkit.drivers.aiosqlite", raising=False)
    with pytest.raises(PoolConfigError, match=r"pip install 'poolkit\[aiosqlite\]'"):
        poolkit.create_pool("sqlite:///app.db")


@pytest.mark.parametrize("name", ["max_sise", "pool_size", "nonsense"])
def test_unknown_option_is_refused(name: str) -> None:
    """With the names it may have meant and all that are known."""
    with pytest.raises(PoolConfigError, match=f"unknown option '{name}'.*max_size"):
        Pool(FakeDriver(), **cast("dict[str, Any]", {name: 1}))


def test_bare_timeout_is_refused_naming_the_candidates() -> None:
    """There are five, and drivers have one of their own."""
    with pytest.raises(PoolConfigError) as caught:
        Pool(FakeDriver(), timeout=1)  # type: ignore[call-arg]
    for name in ("acquire_timeout", "connect_timeout", "ping_timeout", "reset_timeout"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"min_size": 11}, "min_size=11 is above max_size=10"),
        ({"min_size": -1}, "min_size=-1 is below 0"),
        ({"max_size": 0}, "no unlimited pool"),
        ({"max_size": -3}, "max_size=-3"),
        ({"max_size": 2.5}, "max_size=2.5 is not a whole number"),
        ({"max_size": True}, "max_size=True"),
        ({"max_size": None}, "max_size=None"),
        ({"max_overflow": -1}, "max_overflow=-1"),
        ({"max_waiting": -1}, "max_waiting=-1"),
        ({"max_waiting": 0, "min_size": 0}, "max_waiting=0 with min_size=0"),
        ({"max_connecting": 0}, "max_connecting=0"),
        ({"max_uses": 0}, "max_uses=0"),
        ({"acquire_timeout": -0.1}, "acquire_timeout=-0.1"),
        ({"max_lifetime": 0}, "max_lifetime=0: each connection"),
        ({"connect_timeout": 0.0}, "connect_timeout=0: no connect could"),
        ({"ping_timeout": 0}, "ping_timeout=0: no ping could"),
        ({"reset_timeout": 0}, "reset_timeout=0: no reset could"),
        ({"acquire_timeout": math.nan}, "acquire_timeout=nan"),
        ({"acquire_timeout": math.inf}, "give None"),
        ({"acquire_timeout": "5"}, "acquire_timeout='5'"),
        ({"backoff_min": None}, "backoff_min=None"),
        ({"backoff_min": 2.0, "backoff_max": 1.0}, "backoff_min=2.0 is above backoff_max=1.0"),
        ({"on_connect": 3}, "on_connect=3 is not callable"),
        ({"name": 3}, "name=3"),
    ],
)
def test_impossible_option_is_refused_with_its_value(
    options: dict[str, Any], complaint: str
) -> None:
    """At once, as a PoolError that is also a ValueError."""
    with pytest.raises(PoolConfigError, match=complaint.replace("+", r"\+")) as caught:
        Pool(FakeDriver(), **options)
    assert isinstance(caught.value, PoolError)
    assert isinstance(caught.value, ValueError)


def test_url_query_gives_options_and_a_keyword_wins(tmp_path: Path) -> None:
    """As values of the right kind; the rest is the driver's."""
    url = f"sqlite:///{tmp_path}/a.db?max_size=7&acquire_timeout=none&min_size=0&name=shop"
    pool = poolkit.create_pool(url, min_size=2)
    assert pool.name == "shop"
    assert pool._state.options == Options(max_size=7, acquire_timeout=None, min_size=2, name="shop")


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("max_size=many", "max_size='many' in the URL is not a whole number"),
        ("acquire_timeout=soon", "acquire_timeout='soon' in the URL is not a number of seconds"),
        ("on_connect=f", "on_connect cannot be given in a URL"),
        ("max_size=0", "max_size=0"),
        ("nonsense=1", "nonsense"),
    ],
)
def test_impossible_query_is_refused(query: str, complaint: str) -> None:
    """Whoever's it is."""
    with pytest.raises(PoolConfigError, match=complaint):
        poolkit.create_pool(f"sqlite:///app.db?{query}")


def test_resize_refuses_what_cannot_work_and_changes_nothing() -> None:
    """As when the pool was made."""
    pool = Pool(FakeDriver(), min_size=2)
    with pytest.raises(PoolConfigError, match="min_size=2 is above max_size=1"):
        pool.resize(max_size=1)
    assert pool._state.options.max_size == 10


def test_driver_may_refuse_options() -> None:
    """When the pool is made and when it is resized."""

    class Picky(FakeDriver):
        def check_options(self, options: Options) -> None:
            if options.capacity > 2:
                raise PoolConfigError("at most 2")

    with pytest.raises(PoolConfigError, match="at most 2"):
        Pool(Picky())
    pool = Pool(Picky(), max_size=2)
    with pytest.raises(PoolConfigError, match="at most 2"):
        pool.resize(max_overflow=1)


def test_pool_is_named_by_option_then_driver_then_class() -> None:
    """So that an error says which pool it was."""

    class Nameless(FakeDriver):
        name = None  # type: ignore[assignment]

    assert Pool(FakeDriver(), name="mine").name == "mine"
    assert Pool(FakeDriver()).name == "fake"
    assert "'mine'" in repr(Pool(FakeDriver(), name="mine"))
    assert Pool(Nameless()).name == "Nameless"
