"""The tests that CI runs where there are no servers need nothing that is not there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repo.test_windows import TAKE_AWAY

ROOT = Path(__file__).resolve().parents[2]
JOB = (ROOT / ".github/workflows/ci.yml").read_text().partition("\n  without-servers:\n")[2]

#: A plugin of pytest: what only other distributions than these bring cannot be imported.
HIDE = """
import importlib.metadata, sys
from packaging.utils import canonicalize_name

ALLOWED = {allowed!r}.split()
HIDDEN = {
    module
    for module, names in importlib.metadata.packages_distributions().items()
    if set(ALLOWED).isdisjoint(map(canonicalize_name, names))
}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is not installed there", name=name)

sys.meta_path.insert(0, Hide())
"""
#: And then: names that Windows lacks cannot be used. Libraries that choose others there have chosen.
ON_WINDOWS = f"""
import os, signal, socket, sys
import anyio._backends._asyncio, anyio._backends._trio, trio, uvicorn
{TAKE_AWAY}
"""
#: Those that the job's pytest finds by itself.
PLUGINS = [f"-p{name}" for name in ("anyio", "pytest_timeout", "_hypothesis_pytestplugin")]


def requirements() -> list[Requirement]:
    """Return what the job installs."""
    (line,) = re.findall(r"run: python -m pip install (.+)", JOB)
    edit, project, read, file = shlex.split(line)
    assert (edit, project[:2], read) == ("-e", ".[", "-r")
    lines = [text.partition("#")[0] for text in (ROOT / file).read_text().splitlines()]
    named = [Requirement(f"poolkit{project[1:]}"), *map(Requirement, filter(None, lines))]
    return [one for one in named if not one.marker or one.marker.evaluate()]


def with_dependencies(required: list[Requirement]) -> set[str]:
    """Return the names of these distributions, and of all that they need here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    while required:
        one = required.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in importlib.metadata.requires(one.name) or ():
            needed = Requirement(text)
            extras = ("", *one.extras)
            if not needed.marker or any(needed.marker.evaluate({"extra": it}) for it in extras):
                required.append(needed)
    return {name for name, _ in seen}


def collect(plugin: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Collect with a plugin, as the job does."""
    (folder / "as_there.py").write_text(plugin)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, "-pas_there", "--collect-only", "-q", *words],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def command() -> list[str]:
    """Return what the job gives to pytest, the patterns resolved."""
    (words,) = re.findall(r"run: >-\n +python -m pytest ((?:.+\n)+?) +shell: bash", JOB)
    found: list[str] = []
    for word in words.split():
        files = sorted(ROOT.glob(word)) if word[:1] != "-" else [word]
        assert files, word
        found += map(str, files)
    assert "--without-servers" in found
    return found


def test_what_tests_without_servers_import_is_there(command: list[str], tmp_path: Path) -> None:
    """Also on Windows: neither another distribution than the job's nor a name of POSIX is needed."""
    allowed = with_dependencies(requirements())
    assert {"pytest", "fastapi", "pydantic-core", "greenlet"} <= allowed
    assert not {"psycopg", "pytest-xdist"} & allowed
    plugin = HIDE.replace("{allowed!r}", repr(" ".join(allowed))) + ON_WINDOWS
    done = collect(plugin, tmp_path, *command)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    for number, line in enumerate(("import psycopg", "from signal import SIGKILL")):
        (tmp_path / f"test_{number}.py").write_text(line)
    said = collect(plugin, tmp_path, str(tmp_path)).stdout
    assert "psycopg is not installed there" in said
    assert "cannot import name 'SIGKILL'" in said
