"""The invariants of a book live in the package, since `poolkit.testing.check_pool` checks them too."""

from poolkit.testing._invariants import check_book

__all__ = ["check_book"]
