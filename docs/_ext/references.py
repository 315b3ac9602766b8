"""References to names: poolkit's own must be documented; those of others must exist.

Without a network there are no inventories of other projects to link to. So what is not poolkit's is
imported: if it is there, its name stays as it is; if not, Sphinx warns.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import inspect
import pkgutil
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from docutils import nodes
from sphinx import addnodes
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

import poolkit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from sphinx.application import Sphinx

NOTHING = object()


def find(name: str) -> Any:
    """Return the object of a dotted name, or `NOTHING`."""
    first, *rest = name.split(".")
    thing: Any = getattr(builtins, first, NOTHING)
    if thing is NOTHING and rest:  # a word alone is no module, or "this" would be one
        try:
            thing = importlib.import_module(first)
        except ImportError:
            return NOTHING
    for part in rest:
        inner = getattr(thing, part, NOTHING)
        if inner is NOTHING and inspect.ismodule(thing):
            with contextlib.suppress(ImportError):
                inner = importlib.import_module(f"{thing.__name__}.{part}")
        if inner is NOTHING:
            # What only instances have: a field.
            known = part in getattr(thing, "__annotations__", ())
            return None if known else NOTHING
        thing = inner
    return thing


class References(SphinxPostTransform):
    """Resolve the names of Python, before Sphinx would look for anything that ends alike."""

    default_priority = 9

    def run(self, **_kwargs: Any) -> None:
        """Resolve those of one page that are found; of the others Sphinx warns."""
        self.known: dict[str, Any] = self.env.domains.python_domain.objects
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("refdomain") == "py":
                self._resolve(node)

    def _resolve(self, node: addnodes.pending_xref) -> None:
        text = next(iter(node), nodes.Text(""))
        if isinstance(text, addnodes.pending_xref_condition):  # in a signature: the last part alone
            text = nodes.Text(node["reftarget"].rpartition(".")[2])
        for name in self._candidates(node):
            entry = self.known.get(name)
            if entry is not None:
                page = self.env.docname
                link = make_refnode(
                    self.app.builder, page, entry.docname, entry.node_id, text, name
                )
                node.replace_self(link)
                return
            thing = find(name)
            if thing is not NOTHING and self._is_anothers(name, thing, node["reftype"]):
                node.replace_self(text)
                return
        node.source = node.source or str(self.env.doc2path(self.env.docname))  # for the warning

    @staticmethod
    def _candidates(node: addnodes.pending_xref) -> Iterator[str]:
        target = node["reftarget"].lstrip(".")
        module, of_class = node.get("py:module"), node.get("py:class")
        if module and of_class:
            yield f"{module}.{of_class}.{target}"
        if node["reftype"] == "class":  # in a signature: where it was written, perhaps
            yield from (
                f"{home}.{target}" for home in sys.modules if home.startswith(f"{module}._")
            )
        while module:
            yield f"{module}.{target}"
            module = module.rpartition(".")[0]
        yield f"poolkit.{target}"
        yield target

    @staticmethod
    def _is_anothers(name: str, thing: Any, kind: str) -> bool:
        """Whether nothing of poolkit's is meant, or what a signature has of its private types."""
        home = getattr(thing, "__module__", None) or name
        if inspect.ismodule(thing):
            home = thing.__name__
        if not f"{home}.".startswith("poolkit."):
            return True
        return kind == "class" and (isinstance(thing, TypeVar) or "._" in f"{home}.{name}")


def complete(module: ModuleType) -> None:
    """Import into a module what only type checkers import, so that annotations can be evaluated."""
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for each in statement.body:
                with contextlib.suppress(ImportError):
                    code = compile(ast.Module([each], []), module.__name__, "exec")
                    exec(code, vars(module))  # noqa: S102  # an import of our own


def complete_all(_app: Sphinx) -> None:
    """Do so for all of poolkit."""
    for found in pkgutil.walk_packages(poolkit.__path__, "poolkit."):
        with contextlib.suppress(poolkit.PoolConfigError):
            importlib.import_module(found.name)
    for name in sorted(sys.modules):
        if name.startswith("poolkit."):
            complete(sys.modules[name])


#: Docstrings are Google's, but for fields: there the words before a colon would be a type.
GOOGLE = Config(napoleon_use_rtype=False, napoleon_use_param=True)


def mend(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText; name another library's instead of repeating it."""
    original = inspect.unwrap(thing) if callable(thing) else thing
    if inspect.isfunction(original) and not original.__module__.startswith("poolkit."):
        lines[:] = [f"As `{original.__module__}.{original.__qualname__}`.", ""]
    elif what not in {"attribute", "property", "data"}:
        lines[:] = GoogleDocstring(lines, GOOGLE, app, what, name, thing, options).lines()


def setup(app: Sphinx) -> dict[str, bool]:
    """Add it to Sphinx."""
    app.connect("builder-inited", complete_all)
    app.connect("autodoc-process-docstring", mend)
    app.add_post_transform(References)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
