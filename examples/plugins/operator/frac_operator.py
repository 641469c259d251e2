"""The operator `frac`: the fractional part of x, with the sign of x."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fxpress.ir import Value
from fxpress.ir.ops import AtenCall, Elementwise, emit_elementwise, lowers, operator


@operator("frac")
@dataclass(frozen=True)
class Frac(Elementwise):
    """x without its integer part: x - trunc(x)."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.frac(x)


@lowers("frac.default")
def _lower_frac(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Frac())
