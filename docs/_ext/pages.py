"""The pages read the same on a code host and here: links out of this folder, and contents.

- A link to a file outside of ``docs/`` leads to the repository, whose address is `repository` in
  pyproject.toml. While that is empty, the link is plain text.
- The contents of a folder are the pages that its ``index.md`` links to, in that order; then the
  others. So a page that is added is there, and its index says where.
- Code that only tests see is left out.
- Nothing on a page is fetched from another host.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

log = logging.getLogger(__name__)

_LINK = re.compile(r"\]\(([\w./-]+\.md)(?:#[\w-]*)?\)")
_HIDDEN = re.compile(r"^<!---.*?--->$", re.MULTILINE | re.DOTALL)


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Blank what is hidden, and add the contents to an index."""
    # Lines stay where they are, for the warnings that name them.
    source[0] = _HIDDEN.sub(lambda found: "\n" * found[0].count("\n"), source[0])
    if Path(name).name == "index" and (others := contents(app, name, source[0])):
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n\n{others}\n```\n"


def contents(app: Sphinx, index: str, text: str) -> str:
    """Return the pages that belong to an index, a line each."""
    home, found = PurePosixPath(index).parent, app.env.found_docs

    def belongs(page: PurePosixPath) -> bool:
        """Whether it is of this folder, the index of one inside, or of one that has no index."""
        own = str(page.parent / "index")
        return page.parent == home or (
            own not in found if page.name != "index" else page.parent.parent == home
        )

    linked = [os.path.normpath(home / link)[:-3] for link in _LINK.findall(text)]
    others = [name for name in sorted(found) if PurePosixPath(name).parent == home]
    return "\n".join(
        f"/{name}"
        for name in dict.fromkeys([*linked, *others])
        if name in found and name != index and belongs(PurePosixPath(name))
    )


class LinksOut(SphinxTransform):
    """Links to files outside of ``docs/``: to the repository, or nowhere."""

    default_priority = 20

    def apply(self, **_kwargs: Any) -> None:
        """Replace them on one page."""
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("reftype") == "myst" and node.get("refdomain") == "doc":
                self._replace(node, f"{node['reftarget']}.md")
        for node in list(self.document.findall(addnodes.download_reference)):
            self._replace(node, node["reftarget"])

    def _replace(self, node: nodes.Element, target: str) -> None:
        top = Path(self.env.srcdir)
        path = Path(os.path.normpath(Path(self.document["source"]).parent / target))
        if path.is_relative_to(top) or not path.exists():
            return
        inside = path.relative_to(top.parent).as_posix()
        address = self.config.repository.rstrip("/")
        attributes = {"refuri": f"{address}/blob/main/{inside}"} if address else {}
        kind = nodes.reference if address else nodes.inline
        node.replace_self(kind("", "", *node.children, **attributes))


def check_assets(app: Sphinx, error: Exception | None) -> None:
    """Warn of what a browser would fetch from elsewhere: pages work without a network."""
    for page in [] if error else sorted(Path(app.outdir).rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*", text):
            if re.search(r"""(?:src|href)=["'](?:https?:)?//""", tag):
                log.warning("of another host: %s", tag, location=str(page))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add both to Sphinx."""
    app.add_config_value("repository", "", "env", str)
    app.connect("source-read", read)
    app.connect("build-finished", check_assets)
    app.add_transform(LinksOut)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
