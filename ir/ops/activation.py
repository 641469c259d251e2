"""Activation functions of one operand. With 8 bits each is a table of 256 entries, computed from the float form; with
16 bits functions that only bound their operand are rescaled, and others are interpolated between 513 entries.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional

from ..encoding import Encoding
from ..errors import ShapeError
from ..interpolation import interpolate, places
from ..tensor_type import TensorType, Value
from .accumulate import apply_clamp, clamp_bounds
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall
from .facts import Facts, scales
from .quantize import per_tensor_types, rescale_between

TABLE_BITS = 8
FRACTION_BITS = 8
"""Fraction bits of interpolated entries for a result of 8 bits or fewer."""
_MOST_OFF = 1 / 16  # share of the range of a result: a larger deviation means that there is a jump


@dataclass(frozen=True)
class Elementwise(Op):
    """Base of the elementwise functions of one operand: the result has the operand's shape."""

    quantized = Quantized.COMPUTE

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floats(self, x)
        return (x.real(),)

    @abstractmethod
    def reference(self, x: Tensor) -> Tensor:
        """The function."""

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        x, y = self.operand(operands, "x"), outputs[0]
        qx, qy = per_tensor_types(x, y)
        if max(qx.bits, qy.bits) > 2 * TABLE_BITS:
            raise ShapeError(f"{self.name} is a table for values of at most {2 * TABLE_BITS} bits")
        if qx.bits > TABLE_BITS:
            off = (self.table(x, y) - qy.quantize(self._reals(qx, _integers(qx)))).abs().max()
            if int(off) > max(1.0, _MOST_OFF * (qy.qmax - qy.qmin)):
                raise ShapeError(f"{self.name} jumps between the entries of a table")

    def integer(self, call: IntegerCall) -> Tensor:
        qx, _ = per_tensor_types(call.type("x"), call.output)
        return self.table(call.type("x"), call.output)[call.operand("x") - qx.qmin]

    def table(self, x: TensorType | None, output: TensorType) -> Tensor:
        """The result's integer (int64) for each integer of the operand, in ascending order."""
        qx, qy = per_tensor_types(x, output)
        if qx.bits <= TABLE_BITS:
            return qy.quantize(self._reals(qx, _integers(qx)))
        found = interpolate(self.entries(x, output), _integers(qx))
        if qy.bits <= TABLE_BITS:
            found = (found + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
        return found.clamp(qy.qmin, qy.qmax)

    def entries(self, x: TensorType | None, output: TensorType) -> Tensor:
        """The entries (int64) for interpolation with operands of 16 bits; with `FRACTION_BITS` for 8-bit results."""
        qx, qy = per_tensor_types(x, output)
        steps = self._reals(qx, places()) / qy.scale[0] + qy.zero_point[0]
        bits = FRACTION_BITS if qy.bits <= TABLE_BITS else 0
        low, high = (end << bits for end in (qy.qmin, qy.qmax))
        found: Tensor = (steps * 2**bits).round().clamp(low, high).to(torch.int64)
        return found

    def _reals(self, qx: Encoding, integers: Tensor) -> Tensor:
        found = self.reference(qx.dequantize(integers, dtype=torch.float64))
        if qx.bits > TABLE_BITS and found.isnan().any():
            raise ShapeError(f"{self.name} is not defined for all values of its operand")
        return found


def _integers(encoding: Encoding) -> Tensor:
    return torch.arange(encoding.qmin, encoding.qmax + 1)


@dataclass(frozen=True)
class Bounded(Elementwise):
    """Base of the functions that only bound x: values with more bits than a table supports are rescaled, and saturate
    at the bounds.
    """

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest result."""

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        qx, qy = per_tensor_types(self.operand(operands, "x"), outputs[0])
        if qx.bits > TABLE_BITS:
            rescale_between(qx, qy)
        else:
            super().check_quantized(operands, outputs)

    def integer(self, call: IntegerCall) -> Tensor:
        qx, qy = per_tensor_types(call.type("x"), call.output)
        if qx.bits <= TABLE_BITS:
            return super().integer(call)
        return rescale_between(qx, qy).apply(call.operand("x")).clamp(*clamp_bounds(self.bounds, qy))


@operator("clamp")
@dataclass(frozen=True)
class Clamp(Bounded):
    """min(max(x, low), high); ReLU is (0, inf), ReLU6 (0, 6)."""

    low: float = float("-inf")
    high: float = float("inf")

    @property
    def facts(self) -> Facts:
        return Facts(
            monotone=("x",), piecewise_linear=(("x",),), homogeneous=scales(self.bounds), bounds=self.bounds
        )

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def reference(self, x: Tensor) -> Tensor:
        return apply_clamp(x, (self.low, self.high))


@operator("relu")
@dataclass(frozen=True)
class Relu(Bounded):
    """max(x, 0)."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), homogeneous=True, bounds=(0.0, inf))

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, float("inf")

    def reference(self, x: Tensor) -> Tensor:
        return torch.relu(x)


@operator("leaky_relu")
@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """x where positive, slope * x elsewhere."""

    slope: float = 0.01

    @property
    def facts(self) -> Facts:
        return Facts(monotone=("x",) if self.slope >= 0 else (), piecewise_linear=(("x",),), homogeneous=True)

    def reference(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self.slope)


@operator("elu")
@dataclass(frozen=True)
class Elu(Elementwise):
    """scale * x where positive, scale * alpha * (exp(input_scale * x) - 1) elsewhere; ELU, SELU and CELU."""

    alpha: float = 1.0
    scale: float = 1.0
    input_scale: float = 1.0

    @property
    def facts(self) -> Facts:
        return Facts(monotone=("x",) if min(self.alpha, self.scale, self.input_scale) >= 0 else ())

    def reference(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.elu.default(x, self.alpha, self.scale, self.input_scale)
        return y


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

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), bounds=(0.0, 1.0))

    def reference(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(x)


@operator("sigmoid")
@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x))."""

    facts = Facts(monotone=("x",), bounds=(0.0, 1.0))

    def reference(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@operator("log_sigmoid")
@dataclass(frozen=True)
class LogSigmoid(Elementwise):
    """log(1 / (1 + exp(-x)))."""

    facts = Facts(monotone=("x",), bounds=(-inf, 0.0))

    def reference(self, x: Tensor) -> Tensor:
        return functional.logsigmoid(x)


@operator("tanh")
@dataclass(frozen=True)
class Tanh(Elementwise):
    """Hyperbolic tangent."""

    facts = Facts(monotone=("x",), bounds=(-1.0, 1.0))

    def reference(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@operator("gelu")
@dataclass(frozen=True)
class Gelu(Elementwise):
    """x * Phi(x); `approximate` is "none" or "tanh"."""

    approximate: str = "none"

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if self.approximate not in ("none", "tanh"):
            raise ShapeError(f"gelu approximated by {self.approximate!r}; choose none or tanh")
        return super().infer(x)

    def reference(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate=self.approximate)


@operator("silu")
@dataclass(frozen=True)
class Silu(Elementwise):
    """x * sigmoid(x)."""

    def reference(self, x: Tensor) -> Tensor:
        return functional.silu(x)


@operator("mish")
@dataclass(frozen=True)
class Mish(Elementwise):
    """x * tanh(log(1 + exp(x)))."""

    def reference(self, x: Tensor) -> Tensor:
        return functional.mish(x)


@operator("softplus")
@dataclass(frozen=True)
class Softplus(Elementwise):
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x exceeds the threshold."""

    facts = Facts(monotone=("x",))

    beta: float = 1.0
    threshold: float = 20.0

    def reference(self, x: Tensor) -> Tensor:
        return functional.softplus(x, self.beta, self.threshold)


@operator("threshold")
@dataclass(frozen=True)
class Threshold(Elementwise):
    """x where it exceeds the threshold, a fixed value elsewhere."""

    threshold: float = 0.0
    value: float = 0.0

    @property
    def facts(self) -> Facts:
        return Facts(monotone=("x",) if self.value <= self.threshold else (), piecewise_linear=(("x",),))

    def reference(self, x: Tensor) -> Tensor:
        return functional.threshold(x, self.threshold, self.value)


@operator("softshrink")
@dataclass(frozen=True)
class Softshrink(Elementwise):
    """x moved towards zero by lambd, zero where |x| <= lambd."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),))

    lambd: float = 0.5

    def reference(self, x: Tensor) -> Tensor:
        return functional.softshrink(x, self.lambd)


@operator("hardshrink")
@dataclass(frozen=True)
class Hardshrink(Elementwise):
    """x where |x| > lambd, zero elsewhere."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),))

    lambd: float = 0.5

    def reference(self, x: Tensor) -> Tensor:
        return functional.hardshrink(x, self.lambd)


_PLAIN: dict[str, type[Elementwise]] = {
    "relu.default": Relu,
    "hardswish.default": Hardswish,
    "hardsigmoid.default": Hardsigmoid,
    "sigmoid.default": Sigmoid,
    "log_sigmoid.default": LogSigmoid,
    "tanh.default": Tanh,
    "silu.default": Silu,
    "mish.default": Mish,
}

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


@lowers(*_PLAIN)
def _lower_plain(call: AtenCall) -> Value | None:
    return emit_elementwise(call, _PLAIN[call.target]())


def emit_elementwise(call: AtenCall, op: Elementwise) -> Value | None:
    """The function of the operand `self`; declined for element types other than floats, which torch may promote."""
    x = call.value("self")
    return call.emit(op, x) if x.type.dtype.is_floating else None


@lowers("relu6.default")
def _lower_relu6(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Clamp(0.0, 6.0))


@lowers("hardtanh.default")
def _lower_hardtanh(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Clamp(float(call["min_val"]), float(call["max_val"])))


@lowers("clamp.default", "clip.default")
def _lower_clamp(call: AtenCall) -> Value | None:
    low, high = call["min"], call["max"]
    return emit_elementwise(
        call,
        Clamp(float("-inf") if low is None else float(low), float("inf") if high is None else float(high)),
    )


@lowers("clamp_min.default")
def _lower_clamp_min(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Clamp(low=float(call["min"])))


@lowers("clamp_max.default")
def _lower_clamp_max(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Clamp(high=float(call["max"])))


@lowers("leaky_relu.default")
def _lower_leaky_relu(call: AtenCall) -> Value | None:
    return emit_elementwise(call, LeakyRelu(float(call["negative_slope"])))


@lowers("threshold.default")
def _lower_threshold(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Threshold(float(call["threshold"]), float(call["value"])))


@lowers("softshrink.default", "hardshrink.default")
def _lower_shrinkage(call: AtenCall) -> Value | None:
    op = Softshrink if call.target == "softshrink.default" else Hardshrink
    return emit_elementwise(call, op(float(call["lambd"])))


@lowers("elu.default")
def _lower_elu(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Elu(float(call["alpha"]), float(call["scale"]), float(call["input_scale"])))


@lowers("selu.default")
def _lower_selu(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Elu(SELU_ALPHA, SELU_SCALE))


@lowers("celu.default")
def _lower_celu(call: AtenCall) -> Value | None:
    alpha = float(call["alpha"])
    return emit_elementwise(call, Elu(alpha, 1.0, 1.0 / alpha)) if alpha else None


@lowers("gelu.default")
def _lower_gelu(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Gelu(call["approximate"]))


@lowers("softplus.default")
def _lower_softplus(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Softplus(float(call["beta"]), float(call["threshold"])))
