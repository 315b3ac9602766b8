"""What the archives say of the project: the README, with links that work elsewhere, and addresses.

`repository`, beside the name of this file in pyproject.toml, is where the project is. Links and
pictures of the README lead to the tag of the version there, which stays as it is; a version on its
way has no tag, and they lead to the newest.

While `repository` is empty there is nothing to link to: links become plain text, and there are no
addresses. Left out is what would be nothing without its links: a list of links in parentheses, a
picture, and what stands between `<!-- linked -->` and `<!-- /linked -->`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: A link or a picture that is relative: its mark, its text and where it leads.
_RELATIVE = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\((?!https?://|#)([^)\s]+)\)")
#: Nothing but such links, in parentheses, with the space before.
_IN_PARENTHESES = re.compile(rf"\s*\({_RELATIVE.pattern}(?:,\s+{_RELATIVE.pattern})*\)")
_LINKED = re.compile(r"<!-- linked -->\n(.*?)<!-- /linked -->\n", re.DOTALL)
_INVISIBLE = re.compile(r"<!---.*?--->\n*", re.DOTALL)


def readme(text: str, repository: str, version: str) -> str:
    """Return a README that can be read where the repository's files are not."""
    revision = "main" if ".dev" in version else f"v{version}"

    def link(found: re.Match[str]) -> str:
        mark, says, path = found.groups()
        if not repository:
            return "" if mark else says
        return f"{mark}[{says}]({repository}/{'raw' if mark else 'blob'}/{revision}/{path})"

    text = _INVISIBLE.sub("", text)
    text = _LINKED.sub(r"\1" if repository else "", text)
    if not repository:
        text = _IN_PARENTHESES.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", _RELATIVE.sub(link, text))


class Metadata(MetadataHookInterface):
    """Called by hatchling when it builds."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set what depends on the address."""
        root = Path(self.root)
        repository = str(self.config["repository"]).rstrip("/")
        text = readme(
            (root / "README.md").read_text(encoding="utf-8"), repository, metadata["version"]
        )
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository:
            pages = {"Documentation": "docs", "Changelog": "CHANGELOG.md"}
            files = {name: f"{repository}/blob/main/{path}" for name, path in pages.items()}
            metadata["urls"] = {"Source": repository, "Issues": f"{repository}/issues", **files}
