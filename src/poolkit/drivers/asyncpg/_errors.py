"""What an error of asyncpg says about its connection, about the others and about connecting."""

from __future__ import annotations

import ssl
from typing import Any, Final

from asyncpg import exceptions as pg

from poolkit import PoolConfigError, Verdict

# -- connecting ----------------------------------------------------------------------------------

#: Errors that are raised again until somebody changes the configuration, here or on the server.
_FATAL: Final = (
    pg.InvalidAuthorizationSpecificationError,  # 28000, 28P01: user or password
    pg.InvalidCatalogNameError,  # 3D000: no such database
    pg.InsufficientPrivilegeError,  # 42501: may not connect
    pg.UndefinedObjectError,  # 42704: no such setting
    pg.InvalidParameterValueError,  # 22023: a setting's value
    pg.ClientConfigurationError,
    ssl.SSLCertVerificationError,  # an OSError, too
    PoolConfigError,
    TypeError,
    ValueError,
)
#: Classes of SQLSTATE codes for errors that pass: connection lost, insufficient resources, operator
#: intervention, system error.
_PASSING: Final = ("08", "53", "57", "58")
#: Poolers have one code, 08P01, for all errors. Those with these words in them do not pass.
_POOLERS_FATAL: Final = (
    "unsupported startup parameter",
    "no such",
    "does not exist",
    "not allowed",
    "auth failed",
    "authentication failed",
    "config error",
)


def of_connecting(error: BaseException) -> Verdict | None:
    """Classify what a connect has raised."""
    if isinstance(error, _FATAL):
        return Verdict.FATAL
    text = str(error)
    if "rejected SSL upgrade" in text:
        return Verdict.FATAL
    if isinstance(error, pg.ProtocolViolationError) and any(w in text for w in _POOLERS_FATAL):
        return Verdict.FATAL
    if isinstance(error, (OSError, pg.TargetServerAttributeNotMatched)):
        return Verdict.TRANSIENT
    return Verdict.TRANSIENT if _code(error)[:2] in _PASSING else None


def is_refusal(error: BaseException) -> bool:
    """Tell whether another password may help: 28P01, 28000, as PAM answers, or a pooler's code."""
    if isinstance(error, pg.ProtocolViolationError):
        return "auth failed" in str(error) or "authentication failed" in str(error)
    return isinstance(error, pg.InvalidAuthorizationSpecificationError)


# -- using ---------------------------------------------------------------------------------------

#: If one of these is raised on a connection, its protocol may be out of step, or others use it too.
_SUSPECT: Final = (
    pg.PostgresConnectionError,  # 08*
    pg.ProtocolError,
    pg.InternalClientError,
    pg.InvalidSQLStatementNameError,  # 26000 and 42P05: a pooler has given another session
    pg.DuplicatePreparedStatementError,
)
#: asyncpg's errors about its own caches, which it corrects itself, and about choosing a host.
_OF_ASYNCPG_ALONE: Final = (pg.OutdatedSchemaCacheError, pg.TargetServerAttributeNotMatched)
#: Codes by which the server has ended this session alone: it was idle too long, or idle in a
#: transaction.
_SESSION_ONLY: Final = ("57P05", "25P03")


def of_lease(error: BaseException, *, closed: bool) -> Verdict:
    """Classify an error that was raised in a lease; it may be of another database."""
    if not closed and isinstance(error, pg.PostgresError) and not _is_out_of_step(error):
        return Verdict.OK
    if isinstance(error, _OF_ASYNCPG_ALONE) or not isinstance(error, _SUSPECT):
        return Verdict.DEAD if closed and isinstance(error, pg.InterfaceError) else Verdict.OK
    if not closed:
        return Verdict.SUSPECT
    # asyncpg makes its own error from the last one that the server has sent.
    if _code(error) in _SESSION_ONLY or _code(error.__cause__) in _SESSION_ONLY:
        return Verdict.DEAD
    return Verdict.SERVER_GONE


def restated(error: Exception, *, closed: bool) -> Exception | None:
    """Return an error that says "connection lost" for one about asyncpg's internal state.

    When the server has ended the connection, and asyncpg has not read that yet, an operation fails
    because asyncpg's protocol is not in the state for it. (While another operation runs, asyncpg
    raises another error.) Return None for other errors.
    """
    if not isinstance(error, pg.InternalClientError) or isinstance(error, _OF_ASYNCPG_ALONE):
        return None
    if not (closed or str(error).startswith("cannot switch to state")):
        return None
    return pg.ConnectionDoesNotExistError(
        "connection was closed in the middle of operation: the server, or something on the way to "
        f"it, has ended the connection (asyncpg says: {error}). Acquire another one, and do all of "
        "it again, unless it may have taken effect"
    )


def _is_out_of_step(error: pg.PostgresError) -> bool:
    """Tell whether a server's error is about asyncpg's own statements or the protocol."""
    return isinstance(error, pg.ProtocolViolationError) or "__asyncpg_" in str(error)


def _code(error: Any) -> str:
    return getattr(error, "sqlstate", None) or ""
