"""Layouts that kernels ask for: of images, of rows, and as the operand lies at hand."""

from __future__ import annotations

from collections.abc import Mapping

from ..plan.layout import Layout, Shape, arranged, channels_last, contiguous
from .base import Operand, Site


def image_layouts(site: Site) -> tuple[Layout, Layout]:
    """Layouts of input and result with the channels last."""
    return channels_last(site.type("x").shape), channels_last(site.output.shape)


def row_layouts(site: Site) -> tuple[Layout, Layout]:
    """Layouts of input and result with the last dimension fastest, rows in the order in which they are at hand."""
    x, y = site.type("x").shape, site.output.shape
    at_hand = site.at_hand("x")
    order = at_hand.order if at_hand is not None else tuple(range(len(x)))
    order = (*(dim for dim in order if dim != len(x) - 1), len(x) - 1)
    return arranged(x, order), arranged(y, order)


def dense_at_hand(site: Site, otherwise: Layout, *, operand: Operand = "x") -> Layout:
    """The layout in which an operand is at hand, unless it has a border or none is known."""
    layout = site.at_hand(operand)
    return layout if layout is not None and not layout.border else otherwise


def image_at_hand(site: Site) -> Layout:
    """The layout in which the input is at hand; channels last where that has a border or none is known."""
    return dense_at_hand(site, channels_last(site.type("x").shape))


def usual_layouts(shape: Shape) -> tuple[Layout, ...]:
    """Channels last and contiguous, once where they are the same."""
    return tuple(dict.fromkeys((channels_last(shape), contiguous(shape))))


def layer_operands(site: Site, layouts: tuple[Layout, Layout]) -> Mapping[str, Layout]:
    """Operands of a layer at run time: its input, and a residual in the layout of the result."""
    return {"x": layouts[0]} | ({"residual": layouts[1]} if site.has("residual") else {})


def layer_arguments(site: Site) -> Mapping[str, str]:
    """Names in the C of what a layer reads at run time."""
    return {"x": "x"} | ({"residual": "residual"} if site.has("residual") else {})
