"""An `AsyncSession` of SQLAlchemy's over the application's pool; imported when first asked for."""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

from typing import Annotated, Final, TypeAlias

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from poolkit.fastapi._dependencies import pool
from poolkit.sqlalchemy._session import pool_session

#: Depend on the request's session: committed before the response is sent, or rolled back.
session: Final = pool_session(pool)

Session: TypeAlias = Annotated[AsyncSession, Depends(session)]
"""``session: Session`` depends on `session`, with its type."""
