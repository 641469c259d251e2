"""PReLU: a leaky ReLU whose slope is learned, one for all channels or one for each channel of dimension 1.

On integers, with the slope quantized symmetrically per tensor:

    y = requant(x - zx, sx / sy) + zy                     where x >= zx
    y = requant((x - zx) * a, sx * sa / sy) + zy          elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import Requant, prove_requant, requant
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall
from .facts import Facts
from .quantize import per_tensor_types


@operator("prelu")
@dataclass(frozen=True)
class Prelu(Op):
    """x where positive, slope * x elsewhere. Operands: x [n, c, ...], slope [c] or [1]."""

    quantized = Quantized.COMPUTE
    learned_operands = ("slope",)
    facts = Facts(piecewise_linear=(("x",), ("slope",)))

    def infer(self, x: TensorType, slope: TensorType) -> tuple[TensorType, ...]:
        channels = x.shape[1] if x.rank > 1 else 1
        if not x.rank or slope.shape not in ((1,), (channels,)):
            raise ShapeError(f"slope {slope.shape} for {channels} channels")
        check_floats(self, x, slope)
        return (x.real(),)

    def reference(self, x: Tensor, slope: Tensor) -> Tensor:
        return functional.prelu(x, slope)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, slope = call.operand("x"), call.operand("slope")
        if call.size(slope[0]) > 1:
            call.tie(x[1], slope[0])
        return (x,)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        quantizations = per_tensor_types(*operands, outputs[0])
        x, slope = operands
        if not quantizations[1].is_symmetric:
            raise ShapeError("prelu needs a slope with zero point 0")
        positive, negative = self.fixed_point(x, slope, outputs[0])
        prove_requant(quantizations[0].reach, positive)
        prove_requant(quantizations[0].reach * quantizations[1].reach, negative)

    def integer(self, call: IntegerCall) -> Tensor:
        qx, _, qy = per_tensor_types(*call.types, call.output)
        positive, negative = self.fixed_point(call.type("x"), call.type("slope"), call.output)
        x = call.operand("x") - qx.zero_point[0]
        slope = call.operand("slope").view([-1 if axis == 1 else 1 for axis in range(x.ndim)])
        y = torch.where(
            x >= 0,
            requant(x, positive.multiplier, positive.shift),
            requant(x * slope, negative.multiplier, negative.shift),
        )
        return (y + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)

    def fixed_point(
        self, x: TensorType | None, slope: TensorType | None, output: TensorType
    ) -> tuple[Requant, Requant]:
        """Requantization of the positive side and of the negative side."""
        qx, qa, qy = per_tensor_types(x, slope, output)
        ratio = qx.scale[0] / qy.scale[0]
        return Requant.of(ratio), Requant.of(ratio * qa.scale[0])


@lowers("prelu.default")
def _lower_prelu(call: AtenCall) -> Value | None:
    x, slope = call.value("self"), call.value("weight")
    if not x.type.rank or slope.type.rank != 1 or x.type.dtype is not slope.type.dtype:
        return None
    return call.emit(Prelu(), x, slope)
