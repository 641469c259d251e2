"""The blocked float kernels, offered for nodes of plain float32 on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from .....ir.ops.conv import Conv
from .....ir.ops.linear import Linear
from ...plan.layout import Layout
from ..base import Function, Offer, Offers, Site, Work, is_float, kernel, layer_offer
from ..layouts import image_layouts, row_layouts
from ..window import MAX_SPATIAL, POINT, Image, followed, image, window
from . import conv as conv_blocked
from . import depthwise as depthwise_blocked
from . import linear as linear_blocked
from .conv import FloatConvShape
from .depthwise import FloatDepthwiseShape
from .gemm import PIXELS, FloatArray
from .linear import FloatLinearShape

Shape_contra = TypeVar("Shape_contra", contravariant=True)


@kernel("conv")
def convolution(site: Site) -> Offers:
    """A convolution of one group, or of as many groups as channels."""
    op = site.node.op
    assert isinstance(op, Conv)
    if refusal := _refusal(site):
        return refusal
    if op.rank > MAX_SPATIAL or site.output.shape[0] != 1:
        return "the blocked kernels support one image"
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(site.type("weight").shape[2:], op.stride, op.padding, op.dilation)
    if op.groups == 1:
        shape = FloatConvShape(x, y, seen, op.clamp, site.has("residual"))
        follows = followed(site, seen, x, y, is_gathered=not shape.pointwise, together=PIXELS)
        scratch = conv_blocked.scratch_bytes(shape)
        return _offer(site, conv_blocked, shape, image_layouts(site), follows, scratch_bytes=scratch)
    depthwise = FloatDepthwiseShape(x, y, seen, op.clamp)
    if op.groups != x.c or x.c != y.c or site.has("residual") or not depthwise_blocked.supports(depthwise):
        return "the blocked kernels support one group, or plain depthwise convolutions"
    return _offer(site, depthwise_blocked, depthwise, image_layouts(site), followed(site, seen, x, y))


@kernel("linear")
def linear(site: Site) -> Offers:
    """A linear layer: one row directly, several rows as a pointwise convolution."""
    op = site.node.op
    assert isinstance(op, Linear)
    if refusal := _refusal(site):
        return refusal
    outputs, inputs = site.type("weight").shape
    rows = site.output.numel // outputs
    if rows == 1:
        shape = FloatLinearShape(inputs, outputs, op.clamp, site.has("residual"))
        return _offer(site, linear_blocked, shape, row_layouts(site), {})
    pixels = Image(1, 1, rows, inputs), Image(1, 1, rows, outputs)
    pointwise = FloatConvShape(*pixels, POINT, op.clamp, site.has("residual"))
    follows = followed(site, POINT, *pixels, together=PIXELS)
    return _offer(site, conv_blocked, pointwise, row_layouts(site), follows)


def _refusal(site: Site) -> str:
    """Reason why no blocked kernel supports this node, or empty."""
    operands = [name for name in ("x", "weight", "residual") if site.has(name)]
    tensors = [*map(site.type, operands), site.output]
    if not all(is_float(type) for type in tensors):
        return "the blocked kernels compute on float32"
    if not site.is_constant("weight") or (site.has("bias") and not site.is_constant("bias")):
        return "weights and bias must be constants"
    return ""


class _Maker(Protocol[Shape_contra]):
    """A module of a kernel."""

    def floats(self, shape: Shape_contra, /) -> int: ...
    def pack(self, shape: Shape_contra, weights: FloatArray, bias: FloatArray | None, /) -> FloatArray: ...
    def estimate(self, shape: Shape_contra, /) -> Work: ...
    def function(self, shape: Shape_contra, /) -> Function: ...


def _offer(
    site: Site,
    maker: _Maker[Shape_contra],
    shape: Shape_contra,
    layouts: tuple[Layout, Layout],
    follows: Mapping[int, int],
    *,
    scratch_bytes: int = 0,
) -> Offer:
    def pack() -> list[FloatArray]:
        bias = site.array("bias") if site.has("bias") else None
        return [maker.pack(shape, site.array("weight"), bias)]

    constants = {"constants": 4 * maker.floats(shape)}
    name, function, work = f"{site.node.op.name}_blocked", maker.function(shape), maker.estimate(shape)
    return layer_offer(
        site, name, function, work, layouts, constants, pack, scratch_bytes=scratch_bytes, follows=follows
    )
