"""Linear and bilinear interpolation in portable C, images channels last: neighbours and weights from tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .....ir.ops.resize import WEIGHT_BITS, ResizeLinear
from ..base import Offers, Site, Work, kernel, offer
from ..layouts import image_layouts
from ..rounding import requantized, saturated, signed
from ..window import Image, image

_ONE = 1 << WEIGHT_BITS


@dataclass(frozen=True)
class ResizeContext:
    """Template context: C expressions of an element, of the complement of a weight, and of the result."""

    x: Image
    y: Image
    type: str
    one_row: str
    one_column: str
    zero: str
    value: str

    @property
    def title(self) -> str:
        """Description of the function, for its comment."""
        return f"Interpolation, {self.x.text} to {self.y.text}"


@kernel("resize_linear")
def linear(site: Site) -> Offers:
    """One pixel of the result after the other."""
    op = site.node.op
    assert isinstance(op, ResizeLinear)
    x, y = image(site.type("x").shape), image(site.output.shape)
    taps = op.taps(site.type("x"))
    rows, columns = ((0, 0, 0),) if site.type("x").rank == 3 else taps[0], taps[-1]
    if site.is_integer:
        qx, qy = site.quantization("x"), site.output_quantization
        step = op.fixed_point(site.type("x"), site.output)
        is_wide = op.is_wide(site.type("x"), site.output)
        value = saturated(requantized("sum", step, qy.zero_point[0], wide=is_wide), qy.qmin, qy.qmax)
        one_row = "1" if site.type("x").rank == 3 else str(_ONE)
        zero = f" - {signed(qx.zero_point[0])}"
        context = ResizeContext(x, y, "int64_t" if is_wide else "int32_t", one_row, str(_ONE), zero, value)
        weights = [np.array([tap[2] for tap in line], np.int32) for line in (rows, columns)]
    else:
        context = ResizeContext(x, y, "float", "1.0f", "1.0f", "", "sum")
        places = op.positions(site.type("x"))
        lines = ((0.0,) if site.type("x").rank == 3 else places[0], places[-1])
        weights = [np.array([place - int(place) for place in line], np.float32) for line in lines]
    tables = {
        f"{role}_{end}": np.array([tap[index] for tap in line], np.int32)
        for role, line in (("rows", rows), ("columns", columns))
        for index, end in enumerate(("low", "high"))
    }
    tables |= {"row_weights": weights[0], "column_weights": weights[1]}
    layout_x, layout_y = image_layouts(site)
    return offer(
        site,
        "portable/resize.c.j2",
        context,
        Work(results=25.0 * site.output.numel, code_bytes=250),
        reads={"x": layout_x},
        writes=(layout_y,),
        tables=tables,
    )
