"""What the archives say of the project, where the files of the repository are not."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder

import poolkit
from scripts import metadata

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
AT = "https://code.example/poolkit"


def test_readme_has_no_relative_link_while_there_is_no_address() -> None:
    """An index page has none of the files: their names become text, and pictures their titles."""
    text = metadata.readme(README, "")
    assert not re.findall(r"\]\((?!https?://)", text)
    assert "<!---" not in text
    assert "How to use it with FastAPI" in text
    assert "All tables: waiting in line" in text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[Changes](CHANGELOG.md)", f"[Changes]({AT}/blob/main/CHANGELOG.md)"),
        ("[a](docs/b.md#c-d)", f"[a]({AT}/blob/main/docs/b.md#c-d)"),
        ("![What it costs](docs/x.svg)", f"![What it costs]({AT}/raw/main/docs/x.svg)"),
        ("[`Pool[C]`](docs/x.md)", f"[`Pool[C]`]({AT}/blob/main/docs/x.md)"),
        ("[site](https://docs.example/)", "[site](https://docs.example/)"),
        ("[above](#promises)", "[above](#promises)"),
        ("list[int] (docs)", "list[int] (docs)"),
        ("a\n<!--- invisible\nx --->\nb", "a\nb"),
    ],
)
def test_readme_links_to_the_address(markdown: str, expected: str) -> None:
    """Relative links become absolute ones; others stay as they are."""
    assert metadata.readme(markdown, AT) == expected


@pytest.mark.parametrize("address", ["", AT, f"{AT}/"])
def test_addresses_come_from_one_setting(address: str) -> None:
    """Without it there are none, and none are made up."""
    hook: Any = metadata.Metadata(str(ROOT), {"repository": address})
    said: dict[str, Any] = {}
    hook.update(said)
    urls = said.get("urls", {})
    assert bool(urls) == bool(address)
    assert all(url.startswith(AT) and "//blob" not in url for url in urls.values())
    assert said["readme"]["text"] == metadata.readme(README, address.rstrip("/"))


def test_there_is_no_address_yet() -> None:
    """So nothing else in the project may name one; see `scripts/metadata.py`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"] == ""
    assert "urls" not in project["project"]


def test_source_archive_is_the_repository(tmp_path: Path) -> None:
    """So that `make test` runs in it: pages, pictures, workflows and scripts included."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is the source archive")
    there = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    made = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path)))
    with tarfile.open(made) as archive:
        files = {each.name.partition("/")[2] for each in archive if each.isfile()}
    assert files == {*there.split("\0"), "PKG-INFO"} - {""}


def test_newest_heading_of_the_changelog_is_the_version() -> None:
    """With its date, below a place for what comes next; a version on its way has only that place."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\](?: - (.+))?$", changes, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    released, date = headings[1]
    assert dt.date.fromisoformat(date)
    assert poolkit.__version__ == released or ".dev" in poolkit.__version__
