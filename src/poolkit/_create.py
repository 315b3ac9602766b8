"""From a database URL to a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit._driver import load_driver
from poolkit._errors import PoolConfigError
from poolkit._options import NAMES, parse_options
from poolkit._pool import Pool

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit._options import PoolOptions


def create_pool(url: str, /, **options: Unpack[PoolOptions]) -> Pool[Any]:
    """Return a pool for a database URL, with the driver that serves the URL's scheme.

    Pool options may stand in the URL's query as well (``?max_size=5``); a keyword wins. What else
    stands there is the driver's.

    Raises `PoolConfigError` for an unknown scheme or option, or when the library is missing.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise PoolConfigError(
            "not a database URL: it has no '://' (for example sqlite:///app.db, "
            "postgresql://user@host/database)"
        )
    from urllib.parse import parse_qsl  # noqa: PLC0415  # a twentieth of this package's import

    address, _, query = url.partition("?")
    # What is the driver's it gets as it was written, to find fault with itself.
    rest = "&".join(part for part in query.split("&") if part.partition("=")[0] not in NAMES)
    driver = load_driver(f"{address}?{rest}" if rest else address, scheme)
    given: dict[str, Any] = {**parse_options(dict(parse_qsl(query, keep_blank_values=True)))}
    given.update(options)
    return Pool(driver, **given)
