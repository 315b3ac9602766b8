"""On what it was measured."""

from __future__ import annotations

import datetime as dt
import functools
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

_LIBRARIES = (
    "poolkit",
    "anyio",
    "trio",
    "uvloop",
    "asyncmy",
    "asyncpg",
    "psycopg",
    "psycopg-pool",
    "sqlalchemy",
    "databases",
    "aiosqlite",
    "aiosqlitepool",
    "asyncio-connection-pool",
    "connpool",
    "redis",
    "fastapi",
    "uvicorn",
)


@functools.cache
def describe() -> dict[str, str]:
    """Return date, machine and versions."""
    found = {name: _version(name) for name in _LIBRARIES}
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {_processor()}, {platform.system()} {platform.machine()}",
        "load": _load(),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "libraries": ", ".join(f"{name} {version}" for name, version in found.items() if version),
    }


def sentence() -> str:
    """Return the same in one paragraph."""
    facts = describe()
    return (
        f"{facts['date']}; {facts['machine']}; load average at the start {facts['load']}; "
        f"{facts['python']}; {facts['libraries']}"
    )


def occasion() -> str:
    """Return the day, the processor, and how busy the machine was before."""
    facts = describe()
    return f"{facts['date']}, {facts['machine']}, load average at the start {facts['load']}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "processor"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
