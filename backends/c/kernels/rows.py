"""Layouts for kernels that work on rows: the last dimension fastest, the others in any order."""

from __future__ import annotations

from ..layout import Layout, arranged
from .base import Site


def row_layouts(site: Site) -> tuple[Layout, Layout]:
    """Layouts of input and result with the last dimension fastest, rows in the order in which they are at hand."""
    x, y = site.type(0).shape, site.output.shape
    at_hand = site.layouts[0]
    order = at_hand.order if at_hand is not None else tuple(range(len(x)))
    order = (*(dim for dim in order if dim != len(x) - 1), len(x) - 1)
    return arranged(x, order), arranged(y, order)
