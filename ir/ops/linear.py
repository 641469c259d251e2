"""Matrix products with a constant: the linear layer.

Operands: x [..., in], weight [out, in], bias [out] or none, residual shaped like the result or none:

    y = clamp(x @ weight^T + bias + residual)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .accumulate import (
    Clamp,
    check_accumulating,
    check_addends,
    finish_accumulator,
    finish_reals,
    zero_point,
)
from .base import AtenCall, IntegerCall, check_floats, lowers, operator
from .channels import Axes, CouplingCall, tie_all
from .layer import Layer


@operator("linear")
@dataclass(frozen=True)
class Linear(Layer):
    """Affine map of the last dimension, as in `torch.nn.Linear`."""

    clamp: Clamp = None

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        residual: TensorType | None = None,
    ) -> tuple[TensorType, ...]:
        check_floats(self, x, weight, bias, residual)
        if weight.rank != 2 or not x.rank or x.shape[-1] != weight.shape[1]:
            raise ShapeError(f"input {x.shape} does not fit weight {weight.shape}")
        y = TensorType((*x.shape[:-1], weight.shape[0]), x.real().dtype)
        check_addends(bias, residual, y, channels=weight.shape[0])
        return (y,)

    def reference(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        return finish_reals(functional.linear(x, weight, bias), residual, self.clamp)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        check_accumulating(operands, outputs, channel_axis=0)

    def integer(self, call: IntegerCall) -> Tensor:
        x, w = call.operand("x") - zero_point(call.type("x")), call.operand("weight")
        acc = functional.linear(x.double(), w.double()).to(torch.int64)
        return finish_accumulator(call, acc, self.clamp, channel_axis=-1 % acc.ndim)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        weight = self.operand(operands, "weight")
        assert weight is not None
        return outputs[0].numel * weight.shape[1]

    def channel_axis(self, type: TensorType) -> int:
        return type.rank - 1

    def rows(self, weight: Tensor) -> Tensor:
        """The weights of each output channel, [out, in]."""
        return weight

    def phases(self, weight: TensorType) -> None:
        """None: all weights of a row are summed into one result."""

    def channel_scales(self, weight: TensorType) -> tuple[int, int | None]:
        """Axis and group size of weights with a scale for each output channel."""
        return 0, None

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, w, bias = call.operand("x"), call.operand("weight"), call.optional("bias")
        call.tie(x[-1], w[1])
        call.sum_over(x[-1])
        if bias is not None:
            call.tie(w[0], bias[0])
        y = (*x[:-1], w[0])
        tie_all(call, y, call.optional("residual"))
        return (y,)


@lowers("linear.default")
def _lower_linear(call: AtenCall) -> Value | None:
    x, weight = call.value("input"), call.value("weight")
    if weight.type.rank != 2:
        return None
    return call.emit(Linear(), x, weight, call.optional_value("bias"))
