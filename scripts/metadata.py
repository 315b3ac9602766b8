"""What the archives say of the project: the README, with links that work elsewhere, and addresses.

`repository`, beside the name of this file in pyproject.toml, is where the project is. While it is
empty there is nothing to link to: links and pictures of the README become plain text, and there are
no addresses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: A link or a picture that is relative: its mark, its text and where it leads.
_RELATIVE = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\((?!https?://|#)([^)\s]+)\)")
_INVISIBLE = re.compile(r"<!---.*?--->\n*", re.DOTALL)


def readme(text: str, repository: str) -> str:
    """Return a README that can be read where the repository's files are not."""

    def link(found: re.Match[str]) -> str:
        mark, says, path = found.groups()
        if not repository:
            return says
        return f"{mark}[{says}]({repository}/{'raw' if mark else 'blob'}/main/{path})"

    return _RELATIVE.sub(link, _INVISIBLE.sub("", text))


class Metadata(MetadataHookInterface):
    """Called by hatchling when it builds."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set what depends on the address."""
        root = Path(self.root)
        repository = str(self.config["repository"]).rstrip("/")
        text = readme((root / "README.md").read_text(encoding="utf-8"), repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository:
            pages = {"Documentation": "docs", "Changelog": "CHANGELOG.md"}
            files = {name: f"{repository}/blob/main/{path}" for name, path in pages.items()}
            metadata["urls"] = {"Source": repository, "Issues": f"{repository}/issues", **files}
