"""A PostgreSQL to measure on: the one that the tests start, or the one that the tests are given."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.postgres import GivenServer, Postgres, Server, find_binaries


class NoServerError(Exception):
    """There is none, and none can be started; the message says how to have one."""


@contextlib.contextmanager
def server() -> Iterator[Postgres]:
    """Run one; `POOLKIT_TEST_POSTGRES_DSN` names one that runs already."""
    if dsn := os.environ.get("POOLKIT_TEST_POSTGRES_DSN"):
        yield GivenServer(dsn)
        return
    with own_server() as own:
        yield own


@contextlib.contextmanager
def own_server() -> Iterator[Server]:
    """Run one of our own, which may be stopped."""
    try:
        binaries = find_binaries()
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        raise NoServerError(str(missing)) from None
    own = Server(binaries)
    try:
        own.configure(max_connections=300, shared_buffers="256MB")
        own.start()
        yield own
    finally:
        own.close()
