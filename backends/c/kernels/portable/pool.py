"""Pooling in portable C: images channels last. Windows are clipped to the image, so padding is never read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .....ir.arithmetic import Requant
from .....ir.ops.pool import AdaptiveAvgPool, AvgPool, MaxPool
from ...write.literal import c_type
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..layouts import image_layouts
from ..rounding import saturated, signed
from ..window import MAX_SPATIAL, Image, Window, followed, image, window

_LOWEST = {"int8_t": "INT8_MIN", "int16_t": "INT16_MIN", "int32_t": "INT32_MIN", "uint8_t": "0"}
_ONE = Window((1, 1), (1, 1), (0, 0))


@dataclass(frozen=True)
class PoolContext:
    """Template context."""

    title: str
    x: Image
    y: Image
    window: Window
    element: str
    value: str
    zero_point: str = "0"

    @property
    def padded(self) -> bool:
        """True if some window has taps outside the image."""
        return self.window.reaches_out(self.x, self.y)

    @property
    def offset(self) -> str:
        """Offset subtracted from each element."""
        return "0.0f" if self.element == "float" else self.zero_point

    @property
    def lowest(self) -> str:
        """Lower bound of the elements of the image."""
        return "-INFINITY" if self.element == "float" else _LOWEST[self.element]

    @property
    def wins(self) -> str:
        """Condition under which `v` replaces `best`: a NaN replaces everything."""
        return "v > best || v != v" if self.element == "float" else "v > best"


@kernel("max_pool")
def maximum(site: Site) -> Offers:
    """The largest element of each window."""
    op = site.node.op
    assert isinstance(op, MaxPool)
    if len(op.kernel) > MAX_SPATIAL:
        return f"a window over {len(op.kernel)} dimensions"
    seen = window(op.kernel, op.stride, op.padding, op.dilation)
    return _offer(site, "max_pool", seen, "best", {})


@kernel("avg_pool")
def average(site: Site) -> Offers:
    """The mean of each window: one factor for all, or one for each position if borders cut windows."""
    assert isinstance(site.node.op, AvgPool)
    return _average(site, site.node.op)


@kernel("adaptive_avg_pool")
def adaptive(site: Site) -> Offers:
    """A plain pool if all windows have the same size, else windows from tables of their ends."""
    op = site.node.op
    assert isinstance(op, AdaptiveAvgPool)
    plain = op.as_avg_pool(site.type("x"))
    return _average(site, plain) if plain is not None else _uneven(site, op)


def _average(site: Site, op: AvgPool) -> Offers:
    if len(op.kernel) > MAX_SPATIAL:
        return f"a window over {len(op.kernel)} dimensions"
    seen = window(op.kernel, op.stride, op.padding)
    form = "integer" if site.is_integer else "float"
    return _offer(site, f"avg_pool_{form}", seen, *_mean(site, op.counts(site.type("x").shape)))


def _uneven(site: Site, op: AdaptiveAvgPool) -> Offers:
    if len(op.size) > MAX_SPATIAL:
        return f"a window over {len(op.size)} dimensions"
    x, y = image(site.type("x").shape), image(site.output.shape)
    sizes = site.type("x").shape[2:]
    windows = [op.windows(axis, n) for axis, n in enumerate(sizes)]
    rows, columns = (((0, 1),), windows[0]) if len(windows) == 1 else (windows[0], windows[1])
    value, tables, zero_point = _mean(site, op.counts(site.type("x").shape))
    tables |= {
        role: np.array(ends, np.int32).reshape(-1) for role, ends in (("rows", rows), ("columns", columns))
    }
    element = "int32_t" if site.is_integer else "float"
    context = PoolContext(
        f"Mean of uneven windows, {x.text} to {y.text}", x, y, _ONE, element, value, signed(zero_point)
    )
    return _pooled(site, "adaptive_pool", context, None, tables)


def _mean(site: Site, counts: torch.Tensor) -> tuple[str, dict[str, AnyArray], int]:
    """The C expression of a mean from `sum`, the arrays that it reads, and the zero point of the operand."""
    listed = counts.reshape(-1).numpy()
    uniform = len(np.unique(listed)) == 1
    place = "[0]" if uniform else f"[oy * {image(site.output.shape).w} + ox]"
    listed = listed[:1] if uniform else listed
    if not site.is_integer:
        return f"sum / counts{place}", {"counts": listed.astype(np.float32)}, 0
    qx, qy = site.quantization("x"), site.output_quantization
    steps = [Requant.of(qx.scale[0] / qy.scale[0] / int(n)) for n in listed]
    tables: dict[str, AnyArray] = {"multipliers": np.array([s.multiplier for s in steps], np.int32)}
    accumulator = "sum"
    if any(s.shift for s in steps):
        tables["shifts"] = np.array([s.shift for s in steps], np.int32)
        accumulator = f"fxp_shift_left(sum, shifts{place})"
    value = saturated(f"fxp_scale({accumulator}, multipliers{place}, {qy.zero_point[0]})", qy.qmin, qy.qmax)
    return value, tables, qx.zero_point[0]


def _offer(
    site: Site, name: str, seen: Window, value: str, tables: dict[str, AnyArray], zero_point: int = 0
) -> Offers:
    x, y = image(site.type("x").shape), image(site.output.shape)
    kind = "Largest" if name == "max_pool" else "Mean"
    title = f"{kind} of {seen.kernel[0]}x{seen.kernel[1]} windows, {x.text} to {y.text}"
    context = PoolContext(title, x, y, seen, c_type(site.output.dtype), value, signed(zero_point))
    return _pooled(site, name, context, seen, tables, uses_math=context.lowest == "-INFINITY")


def _pooled(
    site: Site,
    name: str,
    context: PoolContext,
    seen: Window | None,
    tables: dict[str, AnyArray],
    *,
    uses_math: bool = False,
) -> Offers:
    """The pool as one call; without a window, windows of several sizes read every element once."""
    layout_x, layout_y = image_layouts(site)
    x, y = context.x, context.y
    taps = x.c * seen.taps_inside(x, y) if seen is not None else site.type("x").numel
    rows = x.c * y.w * seen.rows_inside(x, y) if seen is not None else x.n * x.c * x.h
    return offer(
        site,
        f"portable/{name}.c.j2",
        context,
        Work(7.0 * taps, 10.0 * rows, 25.0 * site.output.numel, 130),
        reads={"x": layout_x},
        writes=(layout_y,),
        tables=tables,
        follows={} if seen is None else followed(site, seen, x, y),
        uses_math=uses_math,
        variant="padded" if seen is not None and context.padded else "",
    )
