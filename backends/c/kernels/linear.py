"""Linear layers in portable C: rows of inputs times rows of weights."""

from __future__ import annotations

from dataclasses import dataclass

from ....ir.ops.accumulate import fixed_point
from ....ir.ops.linear import Linear
from .base import Constant, Cost, Implementation, Offer, Site, call, kernel
from .rounding import Finish, float_finish, folded_bias, integer_finish, scale_constants
from .rows import row_layouts


@dataclass(frozen=True)
class LinearContext:
    """What the templates see."""

    rows: int
    inputs: int
    outputs: int
    finish: Finish

    @property
    def title(self) -> str:
        """What the function computes, for the comment above it."""
        return f"Linear layer, {self.rows} x {self.inputs} to {self.rows} x {self.outputs}"


@kernel("linear")
def portable(site: Site) -> Offer:
    """Any linear layer; rows may lie in any order."""
    op = site.node.op
    assert isinstance(op, Linear)
    if not site.is_constant(1) or (site.has(2) and not site.is_constant(2)):
        return "weights and bias must be constants"
    outputs, inputs = site.type(1).shape
    residual = site.type(3) if site.has(3) else None
    constants: tuple[Constant, ...] = (Constant("weights", site.array(1)),)
    if site.is_integer:
        fixed = fixed_point(site.type(0), site.type(1), site.output, residual=residual, clamp=op.clamp)
        constants += (Constant("bias", folded_bias(site, site.array(1))), *scale_constants(fixed))
        finish, form = integer_finish(fixed), "integer"
    else:
        constants += (Constant("bias", site.array(2)),) if site.has(2) else ()
        finish, form = float_finish(op.clamp, bias=site.has(2), residual=site.has(3)), "float"
    context = LinearContext(site.output.numel // outputs, inputs, outputs, finish)
    names = {"x": 0} | ({"residual": 3} if site.has(3) else {})
    made = call(f"linear/linear_{form}.c.j2", context, site, reads=names, constants=constants)
    layout_x, layout_y = row_layouts(site)
    reads = {0: layout_x} | ({3: layout_y} if site.has(3) else {})
    instructions = 5.0 * site.node.macs + 25.0 * site.output.numel
    return (
        Implementation(
            "linear_portable",
            site.reads(reads),
            (layout_y,),
            Cost(instructions, 1.4 * instructions, 140),
            (made,),
            overwrites=(3,) if site.has(3) else (),
        ),
    )
