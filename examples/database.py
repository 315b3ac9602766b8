"""The shop's database, and the queries in its SQL: SQLite, or what ``DATABASE_URL`` names."""

import os
from pathlib import Path

from poolkit import PoolConfigError

__all__ = ["DATABASE_URL", "shop"]

DATABASE_URL = os.environ.get("DATABASE_URL", "")
if not DATABASE_URL:
    DATABASE_URL = "sqlite:///var/example.db"
    Path("var").mkdir(exist_ok=True)

# The same functions for either database.
_scheme, _is_url, _ = DATABASE_URL.lower().partition("://")
if _scheme.startswith("sqlite"):
    from examples import shop_sqlite as shop
elif _is_url and _scheme not in ("postgresql", "postgres", "postgresql+asyncpg"):
    raise PoolConfigError(
        "the demo speaks SQLite and PostgreSQL: give a URL that begins with sqlite:/// or "
        "postgresql://"
    )
else:
    from examples import shop_postgresql as shop  # type: ignore[no-redef]
