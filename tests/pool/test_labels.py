"""Labels: what a lease is for, from `acquire` or the block around, to everything that names it."""

from __future__ import annotations

import contextvars
import enum
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import Pool, PoolConfigError, PoolTimeout
from poolkit._shell import labels
from tests.fakes import CleanDriver, FakeConnection, FakeDriver, FullDriver


def label(pool: Pool[Any]) -> str:
    """Return the label of the only lease."""
    (info,) = pool.leases()
    return info.label


async def test_lease_has_the_label_it_was_acquired_with() -> None:
    """Also a transaction; the place says so too."""
    async with Pool(FullDriver()) as pool:
        async with pool.acquire(label="nightly import"):
            assert label(pool) == "nightly import"
            assert "in nightly import (test_lease_has" in pool.leases()[0].place
        async with pool.transaction(label="transfer"):
            assert label(pool) == "transfer"


async def test_without_a_label_a_lease_is_named_by_its_function() -> None:
    """As before there were labels, also after one that had a label."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        for given in (None, "import", None):
            async with pool.acquire(label=given):
                assert label(pool) == given or "test_without_a_label" in label(pool)
                assert ("import (" in pool.leases()[0].place) is (given is not None)


async def test_block_labels_all_that_is_acquired_in_it() -> None:
    """The innermost counts, and what the acquire says itself before it; then it is over."""
    async with Pool(FakeDriver(), max_size=1) as pool:
        with poolkit.labelled("outer"):
            with poolkit.labelled("inner"):
                async with pool.acquire():
                    assert label(pool) == "inner"
                async with pool.acquire(label="own"):
                    assert label(pool) == "own"
            async with pool.acquire():
                assert label(pool) == "outer"
        async with pool.acquire():
            assert "test_block_labels" in label(pool)


async def test_block_labels_child_tasks_and_threads() -> None:
    """The context leads there."""
    seen = []
    async with Pool(FakeDriver(), max_size=1) as pool:

        async def use() -> None:
            async with pool.acquire():
                seen.append(label(pool))

        with poolkit.labelled("import"):
            async with anyio.create_task_group() as group:
                group.start_soon(use)
            await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(use))
        assert seen == ["import", "import"]


async def test_waiter_takes_its_label_along() -> None:
    """Through a hand-off, on the hot edge and on the other."""
    for options in ({}, {"max_uses": 100}):
        async with Pool(CleanDriver(), max_size=1, **options) as pool:  # type: ignore[arg-type]

            async def wait(pool: Pool[FakeConnection] = pool) -> None:
                async with pool.acquire(label="second"):
                    assert label(pool) == "second"

            async with anyio.create_task_group() as group:
                async with pool.acquire(label="first"):
                    group.start_soon(wait)
                    await wait_all_tasks_blocked()
                    assert label(pool) == "first"


async def test_timeout_names_labels_of_holders() -> None:
    """Who holds most, and who has held longest."""
    async with Pool(FakeDriver(), max_size=2) as pool:
        async with pool.acquire(label="report"), pool.acquire(label="report"):
            with pytest.raises(PoolTimeout, match=r"report holds 2 of 2.* in report \(test_time"):
                await pool.acquire(timeout=0.01)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("GET /t/a\nERROR forged", "GET /t/a\\nERROR forged"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("übung", "übung"),
        ("\ud800", "\\ud800"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 199 + "…"),
        ("\n" * 150, "\\n" * 99 + "\\…"),
        ("x" * 1_000_000, "x" * 199 + "…"),
    ],
    ids=["a line", "colours", "letters", "surrogate", "200", "201", "escaped", "a million"],
)
async def test_label_is_one_line_of_200_characters_at_most(given: str, kept: str) -> None:
    """Whoever forges a line of the log with it, forges none."""
    assert len(kept) <= labels.LONGEST
    async with Pool(FakeDriver(), max_size=1) as pool:
        async with pool.acquire(label=given):
            assert label(pool) == kept
        with poolkit.labelled(given):
            async with pool.acquire():
                assert label(pool) == kept


@pytest.mark.parametrize(
    "wrong", ["", 3, b"import", object()], ids=["empty", "3", "bytes", "object"]
)
async def test_label_that_says_nothing_is_refused(wrong: Any) -> None:
    """At once, with its value."""
    pool = Pool(FakeDriver())
    with pytest.raises(PoolConfigError, match="says nothing: give a text"):
        poolkit.labelled(wrong)
    with pytest.raises(PoolConfigError, match="says nothing: give a text"):
        pool.acquire(label=wrong)
    with pytest.raises(PoolConfigError, match="says nothing: give a text"):
        pool.transaction(label=wrong)


async def test_label_may_be_found_out_when_it_is_asked_for() -> None:
    """An integration may know it only later; None is no label."""
    known: list[str | None] = [None]
    async with Pool(FakeDriver(), max_size=1) as pool:
        with labels.within(lambda: known[0]):
            async with pool.acquire():
                assert "test_label_may_be" in label(pool)
            known[0] = "GET /items"
            async with pool.acquire():
                assert label(pool) == "GET /items"
            assert labels.current() == "GET /items"


def test_block_that_ends_in_another_context_ends() -> None:
    """A generator with such a block may be closed by the collector, anywhere."""
    block = poolkit.labelled("import")
    contextvars.copy_context().run(block.__enter__)
    block.__exit__(None, None, None)
    assert labels.current() is None


def test_integration_is_told_whether_its_label_was_set_in_this_context() -> None:
    """Elsewhere it has nothing of its own to restore either."""
    before = labels.set_for_context("GET /items")
    assert contextvars.copy_context().run(labels.restore, before) is False
    assert labels.current() == "GET /items"
    assert labels.restore(before) is True
    assert labels.current() is None


def test_until_a_label_is_set_nobody_looks_for_one() -> None:
    """In a thread of its own, whose context is empty."""
    labels.in_use.clear()
    seen: list[Any] = []

    def look() -> None:
        pool = Pool(FakeDriver())
        seen.append(pool.acquire()._label)
        for _ in range(2):
            with poolkit.labelled("import"):
                seen.append(pool.acquire()._label)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [None, "import", "import"]
    assert len(labels.in_use) == 1  # however many are set


def test_block_is_no_decorator() -> None:
    """Of an ``async def`` it would label nothing."""
    with pytest.raises(TypeError, match="not callable"):
        poolkit.labelled("import")(print)  # type: ignore[operator]


def test_text_of_another_class_is_kept_as_a_text() -> None:
    """Not the object, nor its name."""

    class Kind(str, enum.Enum):  # noqa: UP042  # whose str() is another
        IMPORT = "nightly import"

    with poolkit.labelled(Kind.IMPORT):
        label = labels.current()
    assert (type(label), label) == (str, "nightly import")
