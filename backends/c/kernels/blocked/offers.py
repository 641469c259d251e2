"""The blocked float kernels, offered for nodes of plain float32 on any machine."""

from __future__ import annotations

from .....ir.ops.conv import Conv
from .....ir.ops.linear import Linear
from ...plan.layout import Layout
from ..base import Call, Constant, Function, Implementation, Offer, Site, Work, is_float, kernel
from ..layouts import image_layouts, layer_operands, row_layouts
from ..window import MAX_SPATIAL, Image, Window, image, window
from . import conv as conv_blocked
from . import depthwise as depthwise_blocked
from . import linear as linear_blocked
from .conv import FloatConvShape
from .depthwise import FloatDepthwiseShape
from .gemm import FloatArray
from .linear import FloatLinearShape


@kernel("conv")
def convolution(site: Site) -> Offer:
    """A convolution of one group, or of as many groups as channels."""
    op = site.node.op
    assert isinstance(op, Conv)
    refusal = _refusal(site)
    if refusal:
        return refusal
    if op.rank > MAX_SPATIAL or site.output.shape[0] != 1:
        return "the blocked kernels take one image"
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(site.type("weight").shape[2:], op.stride, op.padding, op.dilation)
    layouts = image_layouts(site)
    weights = site.array("weight").reshape(y.c, -1, *seen.kernel)
    if op.groups == 1:
        shape = FloatConvShape(x, y, seen, op.clamp, site.has("residual"))
        constants = conv_blocked.pack(shape, weights, _bias(site))
        function, work = conv_blocked.function(shape), conv_blocked.estimate(shape)
        scratch = conv_blocked.scratch_bytes(shape)
        return (_implementation(site, function, constants, work, layouts, scratch_bytes=scratch),)
    depthwise = FloatDepthwiseShape(x, y, seen, op.clamp)
    if op.groups != x.c or x.c != y.c or site.has("residual") or not depthwise_blocked.supports(depthwise):
        return "the blocked kernels take one group, or plain depthwise convolutions"
    constants = depthwise_blocked.pack(weights, _bias(site))
    function, work = depthwise_blocked.function(depthwise), depthwise_blocked.estimate(depthwise)
    return (_implementation(site, function, constants, work, layouts),)


@kernel("linear")
def linear(site: Site) -> Offer:
    """A linear layer: of one row as such, of several as a pointwise convolution."""
    op = site.node.op
    assert isinstance(op, Linear)
    refusal = _refusal(site)
    if refusal:
        return refusal
    outputs, inputs = site.type("weight").shape
    rows = site.output.numel // outputs
    if rows == 1:
        shape = FloatLinearShape(inputs, outputs, op.clamp, site.has("residual"))
        constants = linear_blocked.pack(site.array("weight"), _bias(site))
        function, work = linear_blocked.function(shape), linear_blocked.estimate(shape)
        return (_implementation(site, function, constants, work, row_layouts(site)),)
    point = Window((1, 1), (1, 1), (0, 0))
    pixels = Image(1, 1, rows, inputs), Image(1, 1, rows, outputs)
    pointwise = FloatConvShape(*pixels, point, op.clamp, site.has("residual"))
    constants = conv_blocked.pack(pointwise, site.array("weight")[:, :, None, None], _bias(site))
    function, work = conv_blocked.function(pointwise), conv_blocked.estimate(pointwise)
    return (_implementation(site, function, constants, work, row_layouts(site)),)


def _refusal(site: Site) -> str:
    """Why no blocked kernel can be asked for this node, or nothing."""
    operands = [name for name in ("x", "weight", "residual") if site.has(name)]
    tensors = [*map(site.type, operands), site.output]
    if not all(is_float(type) for type in tensors):
        return "the blocked kernels compute on float32"
    if not site.is_constant("weight") or (site.has("bias") and not site.is_constant("bias")):
        return "weights and bias must be constants"
    return ""


def _bias(site: Site) -> FloatArray | None:
    return site.array("bias") if site.has("bias") else None


def _implementation(
    site: Site,
    function: Function,
    constants: FloatArray,
    work: Work,
    layouts: tuple[Layout, Layout],
    *,
    scratch_bytes: int = 0,
) -> Implementation:
    """The node computed by one call; a residual lies like the result, which may take its place."""
    operands = layer_operands(site, layouts)
    packed = (Constant("constants", constants),)
    return Implementation(
        kernel=f"{site.node.op.name}_blocked",
        reads=site.reads(operands),
        writes=(layouts[1],),
        work=work,
        calls=(
            Call(function, tuple(map(site.index, operands)), constants=packed, scratch=scratch_bytes > 0),
        ),
        scratch_bytes=scratch_bytes,
        overwrites=(site.index("residual"),) if site.has("residual") else (),
    )
