"""What the archives say of the project, where the files of the repository are not."""

from __future__ import annotations

import datetime as dt
import email
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import IO, Any, cast

import pytest
from hatchling.builders.sdist import SdistBuilder

import poolkit
from scripts import metadata

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
AT = "https://code.example/poolkit"


def test_readme_has_no_relative_link_while_there_is_no_address() -> None:
    """An index page has none of the files: their names become text; what only leads there is gone."""
    text = metadata.readme(README, "", "1.2.3")
    assert not re.findall(r"\]\((?!https?://)", text)
    assert "<!--" not in text
    assert "\n\n\n" not in text
    for gone in ("links to the tests", "Bars:", "What acquire", "state machine", "(psycopg)"):
        assert gone not in text
    assert re.search(r"no waiter is forgotten\.\n2\. \*\*One holder", text)
    assert "TCP, TLS, Unix sockets)," in text
    assert "How to use it with FastAPI" in text
    assert "All tables: waiting in line" in text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[Changes](CHANGELOG.md)", f"[Changes]({AT}/blob/v1.2.3/CHANGELOG.md)"),
        ("[a](docs/b.md#c-d)", f"[a]({AT}/blob/v1.2.3/docs/b.md#c-d)"),
        ("![What it costs](docs/x.svg)", f"![What it costs]({AT}/raw/v1.2.3/docs/x.svg)"),
        ("[`Pool[C]`](docs/x.md)", f"[`Pool[C]`]({AT}/blob/v1.2.3/docs/x.md)"),
        ("[site](https://docs.example/)", "[site](https://docs.example/)"),
        ("[above](#promises)", "[above](#promises)"),
        ("list[int] (docs)", "list[int] (docs)"),
        ("a\n<!--- invisible\nx --->\nb", "a\nb"),
    ],
)
def test_readme_links_to_the_address(markdown: str, expected: str) -> None:
    """Relative links become absolute ones; others stay as they are."""
    assert metadata.readme(markdown, AT, "1.2.3") == expected


def test_readme_with_an_address_has_all_that_the_file_has() -> None:
    """But for what nobody is to see; a version on its way has no tag to lead to."""
    text = metadata.readme(README, AT, "1.2.3")
    assert "Each one links to the tests" in text
    assert f"([view]({AT}/blob/v1.2.3/tests/pool/test_view.py)," in text
    assert "<!--" not in text
    assert metadata.readme("[a](b.md)", AT, "1.3.0.dev0") == f"[a]({AT}/blob/main/b.md)"


@pytest.mark.parametrize("address", ["", AT, f"{AT}/"])
def test_addresses_come_from_one_setting(address: str) -> None:
    """Without it there are none, and none are made up."""
    hook: Any = metadata.Metadata(str(ROOT), {"repository": address})
    said: dict[str, Any] = {"version": "1.2.3"}
    hook.update(said)
    urls = said.get("urls", {})
    assert bool(urls) == bool(address)
    assert all(url.startswith(AT) and "//blob" not in url for url in urls.values())
    assert said["readme"]["text"] == metadata.readme(README, address.rstrip("/"), "1.2.3")


@pytest.mark.parametrize("address", ["", AT])
def test_archive_is_built_with_the_address_that_is_set_and_no_other(
    address: str, tmp_path: Path
) -> None:
    """It is one setting: nothing else of the project has to change when there is one."""
    ignored = shutil.ignore_patterns(".*", "var", "build", "dist", "__pycache__")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    settings = copy / "pyproject.toml"
    line = re.compile('^repository = ".*"$', re.MULTILINE)
    text, changed = line.subn(f'repository = "{address}"', settings.read_text())
    assert changed == 1
    settings.write_text(text)
    made = next(SdistBuilder(str(copy)).build(directory=str(tmp_path)))
    with tarfile.open(made) as archive:
        name = next(each for each in archive.getnames() if each.endswith("/PKG-INFO"))
        said = email.message_from_binary_file(cast("IO[bytes]", archive.extractfile(name)))
    assert (f"Source, {AT}" in said.get_all("Project-URL", [])) == bool(address)
    page = cast("bytes", said.get_payload(decode=True)).decode()
    assert page.strip() == metadata.readme(README, address, poolkit.__version__).strip()


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
