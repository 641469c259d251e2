"""PReLU in portable C: a slope for all channels or for each, any layout."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir.arithmetic import Requant
from .....ir.ops.prelu import Prelu
from ..base import Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, nest
from ..rounding import requantized, saturated, signed


@dataclass(frozen=True)
class PreluContext:
    """Template context; `value` is the C expression of the result from `v` and `slope`."""

    title: str
    nest: Nest
    type: str
    centred: str
    value: str


@kernel("prelu")
def portable(site: Site) -> Offers:
    """One element after the other."""
    op = site.node.op
    assert isinstance(op, Prelu)
    if not site.is_constant("slope"):
        return "the slope must be a constant"
    shape = site.output.shape
    layout = dense_at_hand(site)
    along = [0] * len(shape)
    if site.type("slope").numel > 1:
        along[1] = 1
    loops = nest(shape, layout.strides(shape), along)
    title = f"PReLU of {site.output.numel} elements"
    x = f"x[{loops.at[0]}]"
    slope = f"slope[{loops.at[1]}]"
    if site.is_integer:
        qx, qy = site.quantization("x"), site.output_quantization
        positive, negative = op.fixed_point(site.type("x"), site.type("slope"), site.output)
        zero = qy.zero_point[0]
        value = f"v >= 0 ? {_scaled('v', positive, zero)} : {_scaled(f'v * {slope}', negative, zero)}"
        centred = f"{x} - {signed(qx.zero_point[0])}"
        context = PreluContext(title, loops, "int32_t", centred, saturated(value, qy.qmin, qy.qmax))
    else:
        context = PreluContext(title, loops, "float", x, f"v > 0.0f ? v : v * {slope}")
    return offer(
        site,
        "portable/prelu.c.j2",
        context,
        Work(results=12.0 * site.output.numel, code_bytes=90),
        reads={"x": layout},
        writes=(layout,),
        constants={"slope": site.array_bytes("slope")},
        pack=lambda: (site.array("slope"),),
        overwrites=(0,) if site.type("x").dtype is site.output.dtype else (),
    )


def _scaled(value: str, step: Requant, zero_point: int) -> str:
    return requantized(value, step, zero_point)
