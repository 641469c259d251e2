"""Elementary functions of one operand: powers, exponentials, logarithms, rounding, trigonometry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tensor_type import Value
from .activation import Elementwise, emit_elementwise
from .base import AtenCall, lowers, operator


@operator("abs")
@dataclass(frozen=True)
class Abs(Elementwise):
    """|x|."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.abs(x)


@operator("neg")
@dataclass(frozen=True)
class Neg(Elementwise):
    """-x."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.neg(x)


@operator("exp")
@dataclass(frozen=True)
class Exp(Elementwise):
    """e to the power x."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.exp(x)


@operator("log")
@dataclass(frozen=True)
class Log(Elementwise):
    """Natural logarithm."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.log(x)


@operator("log1p")
@dataclass(frozen=True)
class Log1p(Elementwise):
    """Natural logarithm of 1 + x."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.log1p(x)


@operator("sqrt")
@dataclass(frozen=True)
class Sqrt(Elementwise):
    """Square root."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)


@operator("rsqrt")
@dataclass(frozen=True)
class Rsqrt(Elementwise):
    """1 / sqrt(x)."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x)


@operator("reciprocal")
@dataclass(frozen=True)
class Reciprocal(Elementwise):
    """1 / x."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.reciprocal(x)


@operator("pow")
@dataclass(frozen=True)
class Pow(Elementwise):
    """x to a constant power."""

    exponent: float = 2.0

    def reference(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent)


@operator("sin")
@dataclass(frozen=True)
class Sin(Elementwise):
    """Sine of x in radians."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.sin(x)


@operator("cos")
@dataclass(frozen=True)
class Cos(Elementwise):
    """Cosine of x in radians."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.cos(x)


@operator("erf")
@dataclass(frozen=True)
class Erf(Elementwise):
    """Error function."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.erf(x)


@operator("floor")
@dataclass(frozen=True)
class Floor(Elementwise):
    """Largest whole number not above x."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.floor(x)


@operator("round")
@dataclass(frozen=True)
class Round(Elementwise):
    """Nearest whole number, halves to the even one."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.round(x)


_PLAIN: dict[str, type[Elementwise]] = {
    f"{op.name}.default": op
    for op in (Abs, Neg, Exp, Log, Log1p, Sqrt, Rsqrt, Reciprocal, Sin, Cos, Erf, Floor, Round)
}


@lowers(*_PLAIN)
def _lower_plain(call: AtenCall) -> Value | None:
    return emit_elementwise(call, _PLAIN[call.target]())


@lowers("pow.Tensor_Scalar")
def _lower_pow(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Pow(float(call["exponent"])))


@lowers("square.default")
def _lower_square(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Pow(2.0))
