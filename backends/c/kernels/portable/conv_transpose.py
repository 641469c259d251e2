"""Transposed convolution in portable C: each result gathers the taps that reach it; images channels last.

Weights are packed [out, kh, kw, in / groups].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .....ir.ops.conv import ConvTranspose
from ...write.literal import c_type
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..layouts import image_layouts
from ..rounding import Finish, float_finish, integer_finish, layer_fixed_point, scale_tables, signed
from ..wide_sums import sums_fit
from ..window import MAX_SPATIAL, Image, Window, image, two


@dataclass(frozen=True)
class TransposeContext:
    """Template context."""

    x: Image
    y: Image
    window: Window
    groups: int
    finish: Finish
    element: str
    weight: str
    accumulator: str
    product: str

    @property
    def group_in(self) -> int:
        """Input channels of a group."""
        return self.x.c // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.y.c // self.groups

    @property
    def title(self) -> str:
        """Description of the function, for its comment."""
        kernel = f"{self.window.kernel[0]}x{self.window.kernel[1]}"
        return f"Transposed convolution {kernel}, {self.x.text} to {self.y.text}"


@kernel("conv_transpose")
def portable(site: Site) -> Offers:
    """Any transposed convolution, one result at a time."""
    op = site.node.op
    assert isinstance(op, ConvTranspose)
    if op.rank > MAX_SPATIAL:
        return f"a transposed convolution over {op.rank} dimensions"
    if site.weights_refusal:
        return site.weights_refusal
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = Window(
        two(site.type("weight").shape[2:], 1), two(op.stride, 1), two(op.padding[::2], 0), two(op.dilation, 1)
    )
    tables: dict[str, AnyArray] = {}
    if site.is_integer:
        fixed = layer_fixed_point(site)
        tables = scale_tables(fixed)
        centred = f"(tap[i] - {signed(site.quantization('x').zero_point[0])}) * w[i]"
        element = c_type(site.type("x").dtype)
        wide = not sums_fit(site)
        finish, accumulator = integer_finish(fixed, wide=wide), "int64_t" if wide else "int32_t"
        context = TransposeContext(
            x, y, seen, op.groups, finish, element, c_type(site.type("weight").dtype), accumulator, centred
        )
    else:
        finish = float_finish(op.clamp, bias=site.has("bias"), residual=site.has("residual"))
        context = TransposeContext(x, y, seen, op.groups, finish, "float", "float", "float", "tap[i] * w[i]")

    def pack() -> list[AnyArray]:
        bias = site.array("bias") if site.has("bias") else np.zeros(y.c, np.int32)
        return [_packed(site.array("weight"), op.groups, seen), bias][: len(constants)]

    has_bias = site.has("bias") or site.is_integer
    constants = {"weights": site.array_bytes("weight")} | ({"bias": 4 * y.c} if has_bias else {})
    layouts = image_layouts(site)
    taps = site.output.numel * seen.kernel[0] * seen.kernel[1]
    return offer(
        site,
        "portable/conv_transpose.c.j2",
        context,
        Work(6.0 * site.node.macs, 20.0 * taps, code_bytes=300),
        reads=site.layer_operands(layouts),
        writes=layouts[1:],
        constants=constants,
        pack=pack,
        tables=tables,
        overwrites=site.overwritten_residual,
    )


def _packed(weight: AnyArray, groups: int, seen: Window) -> AnyArray:
    """[in, out / groups, k...] to [out, kh, kw, in / groups]."""
    inputs, each = weight.shape[0] // groups, weight.shape[1]
    split = weight.reshape(groups, inputs, each, *seen.kernel)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1).reshape(groups * each, *seen.kernel, inputs))
