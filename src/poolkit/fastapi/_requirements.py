"""What FastAPI has to offer, before anything here is imported that needs it."""

import inspect

from poolkit._driver import missing_extra
from poolkit._errors import PoolConfigError

try:
    import fastapi
    from fastapi import Depends
except ImportError as _missing:
    raise missing_extra("fastapi", _missing) from _missing

if "scope" not in inspect.signature(Depends).parameters:
    raise PoolConfigError(
        f"fastapi {fastapi.__version__} is too old: connections are given back before the response "
        "by Depends(scope=), which came with 0.121; run: pip install -U 'poolkit[fastapi]'"
    )
