"""What an error of psycopg says about its connection, about the others and about connecting."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from poolkit import PoolConfigError, Verdict

# -- connecting ----------------------------------------------------------------------------------

#: libpq gives no SQLSTATE for a connect that has failed, only a text. Texts of errors that are
#: raised again until somebody changes the configuration, here or on the server.
_FATAL: Final = (
    "password authentication failed",
    "no password supplied",
    "authentication failed",
    "does not exist",  # a role, or a database
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "is not permitted to log in",
    "is not currently accepting connections",
    "permission denied for database",
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "invalid command-line argument",
    "certificate verify failed",
    "does not match host name",
    "server does not support SSL",
    "root certificate file",
    "invalid connection option",
    "unsupported startup parameter",
    "no such database",
    "no such user",
    "not allowed",
)
#: Texts of errors that pass.
_PASSING: Final = (
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "timeout expired",
    "starting up",
    "shutting down",
    "recovery",
    "terminating connection",
    "too many clients",
    "too many connections",
    "remaining connection slots are reserved",
    "server closed the connection unexpectedly",
    "No route to host",
    "Network is unreachable",
    "could not translate host name",
    "could not receive data",
    "could not send",
    "No such file or directory",  # a socket of Unix
    "SSL SYSCALL error",
    "failed to resolve host",
    "Name or service not known",
    "Temporary failure in name resolution",
    "is not read-only",  # target_session_attrs
    "session is read-only",
    "server is in hot standby mode",
    "server is not in hot standby mode",
)


def of_connecting(error: BaseException) -> Verdict | None:
    """Classify what a connect has raised."""
    if isinstance(error, (PoolConfigError, TypeError, ValueError)):
        return Verdict.FATAL
    if isinstance(error, OSError):
        return Verdict.TRANSIENT
    if not isinstance(error, psycopg.Error):
        return None
    if not isinstance(error, psycopg.OperationalError):  # a conninfo that libpq cannot read
        return Verdict.FATAL
    text = str(error)
    # Of several hosts, one whose error passes may be had again.
    if any(words in text for words in _PASSING):
        return Verdict.TRANSIENT
    return Verdict.FATAL if any(words in text for words in _FATAL) else None


def is_refusal(error: BaseException) -> bool:
    """Tell whether another password may help."""
    return isinstance(error, psycopg.OperationalError) and "authentication failed" in str(error)


# -- using ---------------------------------------------------------------------------------------

#: Codes by which the server has ended this session alone: it was idle too long, or idle in a
#: transaction.
_SESSION_ONLY: Final = ("57P05", "25P03")
#: Codes after which the protocol may be out of step, or others use the session, too: a violation of
#: the protocol; a prepared statement that is not there, or is already.
_OUT_OF_STEP: Final = ("08P01", "26000", "42P05")


def of_lease(error: BaseException, *, closed: bool) -> Verdict:
    """Classify an error that was raised in a lease; it may be of another database."""
    if not isinstance(error, psycopg.Error):
        return Verdict.OK
    code = _code(error)
    if not closed:
        is_ours = code == "08P01" or "_pg3_" in str(error)
        return Verdict.SUSPECT if code in _OUT_OF_STEP and is_ours else Verdict.OK
    if code in _SESSION_ONLY or not isinstance(error, psycopg.OperationalError):
        return Verdict.DEAD
    return Verdict.SERVER_GONE


def _code(error: Any) -> str:
    return error.sqlstate or ""
