"""What an error of asyncpg says about a connection, about the others and about connecting."""

from __future__ import annotations

import ssl
from typing import Any, Final

from asyncpg import exceptions as pg

from poolkit._driver import Verdict
from poolkit._errors import PoolConfigError

# -- connecting ----------------------------------------------------------------------------------

#: Errors that come again until somebody mends the configuration, or the server's.
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
#: Classes of errors that pass: connection lost, out of something, operator at work, the system.
_PASSING: Final = ("08", "53", "57", "58")
#: Poolers say everything by one code, 08P01; these words stand in what will be said again.
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


# -- using ---------------------------------------------------------------------------------------

#: A connection on which one of these was raised may be out of step, or not ours alone.
_SUSPECT: Final = (
    pg.PostgresConnectionError,  # 08*
    pg.ProtocolError,
    pg.InternalClientError,
    pg.InvalidSQLStatementNameError,  # 26000 and 42P05: a pooler has changed the session
    pg.DuplicatePreparedStatementError,
)
#: asyncpg says these of its own books, and mends them.
_OWN_AFFAIR: Final = (pg.OutdatedSchemaCacheError, pg.TargetServerAttributeNotMatched)
#: The session alone was ended: idle for too long, in a transaction or not.
_SESSION_ONLY: Final = ("57P05", "25P03")


def of_lease(error: BaseException, *, closed: bool) -> Verdict:
    """Classify what has passed through a lease. It may come from elsewhere: another database."""
    if not closed and isinstance(error, pg.PostgresError) and not _is_out_of_step(error):
        return Verdict.OK
    if isinstance(error, _OWN_AFFAIR) or not isinstance(error, _SUSPECT):
        return Verdict.DEAD if closed and isinstance(error, pg.InterfaceError) else Verdict.OK
    if not closed:
        return Verdict.SUSPECT
    # asyncpg's own error, made from the last one that the server has sent.
    if _code(error) in _SESSION_ONLY or _code(error.__cause__) in _SESSION_ONLY:
        return Verdict.DEAD
    return Verdict.SERVER_GONE


def restated(error: Exception, *, closed: bool) -> Exception | None:
    """Return asyncpg's error for a lost connection in place of one about its own inner state.

    An operation that begins when the server has said its last word, and the end of the connection
    has not been read yet, fails because asyncpg is not in the state for it. (That another operation
    is under way is another error of asyncpg's.)
    """
    if not isinstance(error, pg.InternalClientError) or isinstance(error, _OWN_AFFAIR):
        return None
    if not (closed or str(error).startswith("cannot switch to state")):
        return None
    return pg.ConnectionDoesNotExistError(
        "connection was closed in the middle of operation: the server, or something on the way to "
        f"it, has ended the connection (asyncpg says: {error}). Acquire another one, and do all of "
        "it again, unless it may have taken effect"
    )


def _is_out_of_step(error: pg.PostgresError) -> bool:
    """Tell whether a server's error is about asyncpg's own statements, or the protocol."""
    return isinstance(error, pg.ProtocolViolationError) or "__asyncpg_" in str(error)


def _code(error: Any) -> str:
    return getattr(error, "sqlstate", None) or ""
