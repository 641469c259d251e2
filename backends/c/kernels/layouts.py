"""Layouts that kernels request: of images, of rows, and the available layout of the operand."""

from __future__ import annotations

from ..plan.layout import Layout, Shape, arranged, channels_last, contiguous
from .base import Operand, Site


def image_layouts(site: Site) -> tuple[Layout, Layout]:
    """Layouts of input and result with the channels last."""
    return channels_last(site.type("x").shape), channels_last(site.output.shape)


def row_layouts(site: Site) -> tuple[Layout, Layout]:
    """Layouts of input and result with the last dimension fastest, and rows in their available order."""
    x, y = site.type("x").shape, site.output.shape
    at_hand = site.at_hand("x")
    order = at_hand.order if at_hand is not None else tuple(range(len(x)))
    order = (*(dim for dim in order if dim != len(x) - 1), len(x) - 1)
    return arranged(x, order), arranged(y, order)


def dense_at_hand(site: Site, operand: Operand = "x", *, otherwise: Layout | None = None) -> Layout:
    """The layout in which an operand is available; another one, or contiguous, if that has a border or is unknown."""
    layout = site.at_hand(operand)
    if layout is not None and not layout.border:
        return layout
    return contiguous(site.type(operand).shape) if otherwise is None else otherwise


def image_at_hand(site: Site) -> Layout:
    """The layout in which the input is available; channels last if that has a border or is unknown."""
    return dense_at_hand(site, otherwise=channels_last(site.type("x").shape))


def usual_layouts(shape: Shape) -> tuple[Layout, ...]:
    """Channels last and contiguous; only one if they are the same."""
    return tuple(dict.fromkeys((channels_last(shape), contiguous(shape))))
