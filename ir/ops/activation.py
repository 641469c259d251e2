"""Elementwise functions of one operand. On 8 bits each is a table of 256 entries, made from the float form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..tensor_type import TensorType, Value
from .accumulate import apply_clamp
from .base import AtenCall, IntegerCall, Op, Quantized, lowers, operator
from .quantize import per_tensor_types


@dataclass(frozen=True)
class Elementwise(Op):
    """Base of the unary elementwise functions: the result has the operand's shape."""

    quantized = Quantized.COMPUTE

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return (x.real(),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        per_tensor_types(operands[0], outputs[0])

    def integer(self, call: IntegerCall) -> Tensor:
        qx, _ = per_tensor_types(call.types[0], call.output)
        return self.table(call.types[0], call.output)[call.operand(0) - qx.qmin]

    def table(self, x: TensorType | None, output: TensorType) -> Tensor:
        """The result's integer (int64) for each integer of the operand, from its smallest on."""
        qx, qy = per_tensor_types(x, output)
        integers = torch.arange(qx.qmin, qx.qmax + 1)
        reals = qx.dequantize(integers, dtype=torch.float64)
        return qy.quantize(torch.as_tensor(self.reference(reals)))


@operator("clamp")
@dataclass(frozen=True)
class Clamp(Elementwise):
    """min(max(x, low), high); ReLU is (0, inf), ReLU6 (0, 6)."""

    low: float = float("-inf")
    high: float = float("inf")

    def reference(self, x: Tensor) -> Tensor:
        return apply_clamp(x, (self.low, self.high))


@operator("relu")
@dataclass(frozen=True)
class Relu(Elementwise):
    """max(x, 0)."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.relu(x)


@operator("leaky_relu")
@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """x where positive, slope * x elsewhere."""

    slope: float = 0.01

    def reference(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self.slope)


@operator("hardswish")
@dataclass(frozen=True)
class Hardswish(Elementwise):
    """x * relu6(x + 3) / 6."""

    def reference(self, x: Tensor) -> Tensor:
        return functional.hardswish(x)


@operator("hardsigmoid")
@dataclass(frozen=True)
class Hardsigmoid(Elementwise):
    """relu6(x + 3) / 6."""

    def reference(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(x)


@operator("sigmoid")
@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x))."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@operator("tanh")
@dataclass(frozen=True)
class Tanh(Elementwise):
    """Hyperbolic tangent."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@operator("gelu")
@dataclass(frozen=True)
class Gelu(Elementwise):
    """x * Phi(x); `approximate` is "none" or "tanh"."""

    approximate: str = "none"

    def reference(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate=self.approximate)


@operator("silu")
@dataclass(frozen=True)
class Silu(Elementwise):
    """x * sigmoid(x)."""

    def reference(self, x: Tensor) -> Tensor:
        return functional.silu(x)


@lowers("relu.default")
def _lower_relu(call: AtenCall) -> Value:
    return call.emit(Relu(), call.value("self"))


@lowers("relu6.default")
def _lower_relu6(call: AtenCall) -> Value:
    return call.emit(Clamp(0.0, 6.0), call.value("self"))


@lowers("hardtanh.default")
def _lower_hardtanh(call: AtenCall) -> Value:
    return call.emit(Clamp(float(call["min_val"]), float(call["max_val"])), call.value("self"))


@lowers("leaky_relu.default")
def _lower_leaky_relu(call: AtenCall) -> Value:
    return call.emit(LeakyRelu(float(call["negative_slope"])), call.value("self"))


@lowers("hardswish.default")
def _lower_hardswish(call: AtenCall) -> Value:
    return call.emit(Hardswish(), call.value("self"))


@lowers("hardsigmoid.default")
def _lower_hardsigmoid(call: AtenCall) -> Value:
    return call.emit(Hardsigmoid(), call.value("self"))


@lowers("sigmoid.default")
def _lower_sigmoid(call: AtenCall) -> Value:
    return call.emit(Sigmoid(), call.value("self"))


@lowers("tanh.default")
def _lower_tanh(call: AtenCall) -> Value:
    return call.emit(Tanh(), call.value("self"))


@lowers("gelu.default")
def _lower_gelu(call: AtenCall) -> Value:
    return call.emit(Gelu(call["approximate"]), call.value("self"))


@lowers("silu.default")
def _lower_silu(call: AtenCall) -> Value:
    return call.emit(Silu(), call.value("self"))
