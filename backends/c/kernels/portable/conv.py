"""Convolution in portable C, integer and float: images channels last, any stride, padding, dilation and groups.

Weights are packed [out, kh, kw, in / groups], for depthwise on floats [kh, kw, channels]. In the integer form -zx *
sum(w) is folded into the bias, so activations are used unchanged, and a tap outside the image reads a row of bytes zx.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .....ir.ops.conv import Conv
from ...write.literal import c_type
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..layouts import image_layouts
from ..low_bits import BYTE, Fields
from ..rounding import (
    Finish,
    bias_bytes,
    float_finish,
    folded_bias,
    integer_finish,
    layer_fixed_point,
    scale_tables,
)
from ..wide_sums import PORTABLE_ONLY, WIDE_WEIGHTS, sums_fit
from ..window import MAX_SPATIAL, Image, Window, followed, image, window

_MOST_TAPS = 25


@dataclass(frozen=True)
class ConvContext:
    """Template context."""

    x: Image
    y: Image
    window: Window
    groups: int
    padded: bool
    finish: Finish
    element: str
    weight_bits: int
    wide: bool = False

    @property
    def accumulator(self) -> str:
        """C type of an integer accumulator."""
        return "int64_t" if self.wide else "int32_t"

    @property
    def tap_weights(self) -> tuple[str, ...]:
        """The weights of a channel of a depthwise convolution, as C expressions."""
        if self.weight_bits >= BYTE:
            return tuple(f"w[{tap}]" for tap in self.taps)
        return tuple(Fields(self.weight_bits).tap("", tap) for tap in self.taps)

    @property
    def packed_weight(self) -> str:
        """Weight number `tap_weight` of a channel, as a C expression; empty if weights are bytes."""
        return "" if self.weight_bits >= BYTE else Fields(self.weight_bits).tap("tap_weight", 0)

    @property
    def weight(self) -> str:
        """C type in which weights are stored."""
        return f"int{max(self.weight_bits, BYTE)}_t"

    @property
    def channel_stride(self) -> int:
        """Distance between the weights of two output channels, in elements of their C type."""
        count = len(self.taps) * self.group_in
        return count if self.weight_bits > BYTE else Fields(self.weight_bits).row_bytes(count)

    @property
    def channel_bytes(self) -> int:
        """Bytes of the weights of an output channel."""
        return self.channel_stride * max(self.weight_bits, BYTE) // BYTE

    @property
    def kind(self) -> str:
        """Element type of the input, for comments."""
        return self.element.removesuffix("_t")

    @property
    def group_in(self) -> int:
        """Input channels of a group."""
        return self.x.c // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.y.c // self.groups

    @property
    def is_depthwise(self) -> bool:
        """True if every channel is a separate group."""
        return self.groups == self.x.c == self.y.c and self.groups > 1

    @property
    def taps(self) -> range:
        """The taps of a window, numbered."""
        return range(self.window.kernel[0] * self.window.kernel[1])

    @property
    def title(self) -> str:
        """Description of the function, for its comment."""
        kind = "Depthwise convolution" if self.is_depthwise else "Convolution"
        return f"{kind} {self.window.kernel[0]}x{self.window.kernel[1]}, {self.x.text} to {self.y.text}"


@kernel("conv")
def portable(site: Site) -> Offers:
    """One output channel of one pixel at a time: for convolutions that products of rows do not support, or if memory
    is short.
    """
    op = site.node.op
    assert isinstance(op, Conv)
    if op.rank > MAX_SPATIAL:
        return f"a convolution over {op.rank} dimensions"
    if site.is_integer and op.groups == 1 and set(site.type("weight").shape[2:]) == {1}:
        return "integer convolutions of one group and one tap are products of rows"
    if site.weights_refusal:
        return site.weights_refusal
    context = conv_context(site, op)
    if context.wide and context.weight_bits > BYTE:
        return WIDE_WEIGHTS
    written_out = not site.is_integer or (len(context.taps) <= _MOST_TAPS and not context.wide)
    kind = "depthwise" if context.is_depthwise and written_out else "conv"
    form = "integer" if site.is_integer else "float"
    layouts = image_layouts(site)
    weight_bytes = context.y.c * context.channel_bytes if site.is_integer else site.array_bytes("weight")
    bias = {"bias": bias_bytes(site, wide=context.wide)} if site.has("bias") or site.is_integer else {}
    return offer(
        site,
        f"portable/{kind}_{form}.c.j2",
        context,
        _depthwise_work(site, context) if kind == "depthwise" else _work(context, site),
        kernel=f"{kind}_portable",
        reads=site.layer_operands(layouts),
        writes=layouts[1:],
        constants={"weights": weight_bytes} | bias,
        pack=lambda: _packed(site, context, by_channel=kind == "conv" or site.is_integer),
        tables=_tables(site, context) if site.is_integer else {},
        overwrites=site.overwritten_residual,
        follows=followed(site, context.window, context.x, context.y),
        limitation=PORTABLE_ONLY if context.wide else "",
    )


def conv_context(site: Site, op: Conv) -> ConvContext:
    """Geometry and finish of a convolution."""
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(site.type("weight").shape[2:], op.stride, op.padding, op.dilation)
    bits = site.quantization("weight").bits if site.is_integer else BYTE
    wide = site.is_integer and not sums_fit(site)
    if site.is_integer:
        finish = integer_finish(layer_fixed_point(site), wide=wide)
    else:
        finish = float_finish(op.clamp, bias=site.has("bias"), residual=site.has("residual"))
    return ConvContext(
        x, y, seen, op.groups, seen.reaches_out(x, y), finish, c_type(site.type("x").dtype), bits, wide
    )


def _tables(site: Site, context: ConvContext) -> dict[str, AnyArray]:
    """Multipliers, shifts, and a row of padding."""
    tables = scale_tables(layer_fixed_point(site))
    if context.padded:
        zero = site.quantization("x").zero_point[0]
        tables["padding"] = np.full(context.x.c, zero, np.dtype(context.kind))
    return tables


def _packed(site: Site, context: ConvContext, *, by_channel: bool) -> list[AnyArray]:
    """Weights, and the bias if there is one."""
    weight = site.array("weight")
    square = weight.reshape(*weight.shape[:2], *context.window.kernel)
    packed = np.ascontiguousarray(square.transpose((0, 2, 3, 1) if by_channel else (1, 2, 3, 0)))
    if context.weight_bits < BYTE:
        packed = Fields(context.weight_bits).pack(packed.reshape(len(packed), -1))
    if site.is_integer:
        return [packed, folded_bias(site, weight)]
    return [packed, site.array("bias")] if site.has("bias") else [packed]


def _work(context: ConvContext, site: Site) -> Work:
    """Work; floats outside of the image are skipped, integers there are read from a row of zero points."""
    results = context.y.n * context.y.h * context.y.w * context.y.c
    taps = results * len(context.taps)
    if not site.is_integer:
        taps = context.window.taps_inside(context.x, context.y) * context.y.c
    return Work(5.0 * taps * context.group_in, 14.0 * taps, 20.0 * results, 220)


def _depthwise_work(site: Site, context: ConvContext) -> Work:
    if not site.is_integer:  # with padding, each tap is tested for being inside the image
        return _work(context, site) + Work(loops=16.0 * site.node.macs * context.padded)
    pixels = context.y.n * context.y.h * context.y.w
    each = 3.7 + 0.6 * (context.weight_bits < BYTE)
    return Work(each * site.node.macs, 20.0 * pixels * len(context.taps), 14.0 * pixels * context.y.c, 220)
