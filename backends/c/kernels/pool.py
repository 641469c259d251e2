"""Pooling in portable C: images channels last. Windows are clipped to the image, so padding is never read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....ir.arithmetic import Requant
from ....ir.ops.pool import AvgPool, MaxPool
from ..layout import channels_last
from .base import Constant, Cost, Implementation, Offer, Site, c_type, call, kernel
from .rounding import saturated, signed
from .window import MAX_SPATIAL, Image, Window, image, window

_LOWEST = {"int8_t": "INT8_MIN", "int16_t": "INT16_MIN", "int32_t": "INT32_MIN", "uint8_t": "0"}


@dataclass(frozen=True)
class PoolContext:
    """What the templates see."""

    title: str
    x: Image
    y: Image
    window: Window
    element: str
    value: str
    zero_point: str = "0"

    @property
    def padded(self) -> bool:
        """Whether some window has taps outside the image."""
        return self.window.reaches_out(self.x, self.y)

    @property
    def lowest(self) -> str:
        """What every element of the image is at least."""
        return "-INFINITY" if self.element == "float" else _LOWEST[self.element]

    @property
    def wins(self) -> str:
        """When `v` replaces `best`: a NaN wins over everything."""
        return "v > best || v != v" if self.element == "float" else "v > best"


@kernel("max_pool")
def maximum(site: Site) -> Offer:
    """The largest element of each window."""
    op = site.node.op
    assert isinstance(op, MaxPool)
    if len(op.kernel) > MAX_SPATIAL:
        return f"a window over {len(op.kernel)} dimensions"
    seen = window(op.kernel, op.stride, op.padding, op.dilation)
    return _offer(site, "max_pool", seen, "best", ())


@kernel("avg_pool")
def average(site: Site) -> Offer:
    """The mean of each window: one factor for all of them, or one for each place where borders cut windows off."""
    op = site.node.op
    assert isinstance(op, AvgPool)
    if len(op.kernel) > MAX_SPATIAL:
        return f"a window over {len(op.kernel)} dimensions"
    seen = window(op.kernel, op.stride, op.padding)
    shape = site.type(0).shape
    counts = op.counts(shape).reshape(-1).numpy()
    uniform = len(np.unique(counts)) == 1
    place = "[0]" if uniform else f"[oy * {image(site.output.shape).w} + ox]"
    counts = counts[:1] if uniform else counts
    if not site.is_integer:
        constants = (Constant("counts", counts.astype(np.float32)),)
        return _offer(site, "avg_pool_float", seen, f"sum / counts{place}", constants)
    qx, qy = site.quantization(0), site.output_quantization
    steps = [Requant.of(qx.scale[0] / qy.scale[0] / int(n)) for n in counts]
    constants = (Constant("multipliers", np.array([s.multiplier for s in steps], np.int32)),)
    accumulator = "sum"
    if any(s.shift for s in steps):
        constants += (Constant("shifts", np.array([s.shift for s in steps], np.int32)),)
        accumulator = f"fxp_left(sum, shifts{place})"
    value = saturated(f"fxp_scale({accumulator}, multipliers{place}, {qy.zero_point[0]})", qy.qmin, qy.qmax)
    return _offer(site, "avg_pool_integer", seen, value, constants, zero_point=qx.zero_point[0])


def _offer(
    site: Site, name: str, seen: Window, value: str, constants: tuple[Constant, ...], *, zero_point: int = 0
) -> Offer:
    x, y = image(site.type(0).shape), image(site.output.shape)
    kind = "Largest" if name == "max_pool" else "Mean"
    title = f"{kind} of {seen.kernel[0]}x{seen.kernel[1]} windows, {x.text} to {y.text}"
    context = PoolContext(title, x, y, seen, c_type(site.output.dtype), value, signed(zero_point))
    made = call(
        f"pool/{name}.c.j2",
        context,
        site,
        reads={"x": 0},
        constants=constants,
        uses_math=context.lowest == "-INFINITY",
    )
    taps = site.output.numel * seen.kernel[0] * seen.kernel[1]
    instructions = 7.0 * taps + 25.0 * site.output.numel
    return (
        Implementation(
            f"{site.node.op.name}_portable",
            (channels_last(site.type(0).shape),),
            (channels_last(site.output.shape),),
            Cost(instructions, 1.4 * instructions, 160),
            (made,),
        ),
    )
