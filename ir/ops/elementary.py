"""Elementary functions of one operand: powers, exponentials, logarithms, rounding, trigonometry."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .activation import Elementwise, emit_elementwise
from .base import AtenCall, lowers, operator
from .facts import Facts


@operator("abs")
@dataclass(frozen=True)
class Abs(Elementwise):
    """|x|."""

    facts = Facts(piecewise_linear=(("x",),), homogeneous=True, bounds=(0.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.abs(x)


@operator("neg")
@dataclass(frozen=True)
class Neg(Elementwise):
    """-x."""

    facts = Facts(piecewise_linear=(("x",),), homogeneous=True)

    def reference(self, x: Tensor) -> Tensor:
        return torch.neg(x)


@operator("exp")
@dataclass(frozen=True)
class Exp(Elementwise):
    """e to the power x."""

    facts = Facts(monotone=("x",), bounds=(0.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.exp(x)


@operator("log")
@dataclass(frozen=True)
class Log(Elementwise):
    """Natural logarithm."""

    facts = Facts(monotone=("x",), poles=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.log(x)


@operator("log1p")
@dataclass(frozen=True)
class Log1p(Elementwise):
    """Natural logarithm of 1 + x."""

    facts = Facts(monotone=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.log1p(x)


@operator("sqrt")
@dataclass(frozen=True)
class Sqrt(Elementwise):
    """Square root."""

    facts = Facts(monotone=("x",), bounds=(0.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)


@operator("rsqrt")
@dataclass(frozen=True)
class Rsqrt(Elementwise):
    """1 / sqrt(x)."""

    facts = Facts(poles=("x",), bounds=(0.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x)


@operator("reciprocal")
@dataclass(frozen=True)
class Reciprocal(Elementwise):
    """1 / x."""

    facts = Facts(poles=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.reciprocal(x)


@operator("pow")
@dataclass(frozen=True)
class Pow(Elementwise):
    """x to a constant power."""

    exponent: float = 2.0

    @property
    def facts(self) -> Facts:
        return Facts(poles=("x",) if self.exponent < 0 else ())

    def reference(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent)


@operator("sin")
@dataclass(frozen=True)
class Sin(Elementwise):
    """Sine of x in radians."""

    facts = Facts(bounds=(-1.0, 1.0))

    def reference(self, x: Tensor) -> Tensor:
        return torch.sin(x)


@operator("cos")
@dataclass(frozen=True)
class Cos(Elementwise):
    """Cosine of x in radians."""

    facts = Facts(bounds=(-1.0, 1.0))

    def reference(self, x: Tensor) -> Tensor:
        return torch.cos(x)


@operator("erf")
@dataclass(frozen=True)
class Erf(Elementwise):
    """Error function."""

    facts = Facts(monotone=("x",), bounds=(-1.0, 1.0))

    def reference(self, x: Tensor) -> Tensor:
        return torch.erf(x)


@operator("floor")
@dataclass(frozen=True)
class Floor(Elementwise):
    """Largest whole number not above x."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), whole=True)

    def reference(self, x: Tensor) -> Tensor:
        return torch.floor(x)


@operator("round")
@dataclass(frozen=True)
class Round(Elementwise):
    """Nearest whole number, halves to the even one."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), whole=True)

    def reference(self, x: Tensor) -> Tensor:
        return torch.round(x)


@operator("sign")
@dataclass(frozen=True)
class Sign(Elementwise):
    """-1, 0 or 1, by the sign of x."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), whole=True, bounds=(-1.0, 1.0))

    def reference(self, x: Tensor) -> Tensor:
        return torch.sign(x)


@operator("log2")
@dataclass(frozen=True)
class Log2(Elementwise):
    """Logarithm to base 2."""

    facts = Facts(monotone=("x",), poles=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.log2(x)


@operator("log10")
@dataclass(frozen=True)
class Log10(Elementwise):
    """Logarithm to base 10."""

    facts = Facts(monotone=("x",), poles=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.log10(x)


@operator("exp2")
@dataclass(frozen=True)
class Exp2(Elementwise):
    """2 to the power x."""

    facts = Facts(monotone=("x",), bounds=(0.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.exp2(x)


@operator("expm1")
@dataclass(frozen=True)
class Expm1(Elementwise):
    """exp(x) - 1, exact near zero."""

    facts = Facts(monotone=("x",), bounds=(-1.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.expm1(x)


@operator("ceil")
@dataclass(frozen=True)
class Ceil(Elementwise):
    """Smallest whole number not below x."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), whole=True)

    def reference(self, x: Tensor) -> Tensor:
        return torch.ceil(x)


@operator("trunc")
@dataclass(frozen=True)
class Trunc(Elementwise):
    """Whole part of x: x rounded towards zero."""

    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), whole=True)

    def reference(self, x: Tensor) -> Tensor:
        return torch.trunc(x)


@operator("tan")
@dataclass(frozen=True)
class Tan(Elementwise):
    """Tangent of x in radians."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.tan(x)


@operator("asin")
@dataclass(frozen=True)
class Asin(Elementwise):
    """Arc sine in radians."""

    facts = Facts(monotone=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.asin(x)


@operator("acos")
@dataclass(frozen=True)
class Acos(Elementwise):
    """Arc cosine in radians."""

    def reference(self, x: Tensor) -> Tensor:
        return torch.acos(x)


@operator("atan")
@dataclass(frozen=True)
class Atan(Elementwise):
    """Arc tangent in radians."""

    facts = Facts(monotone=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.atan(x)


@operator("sinh")
@dataclass(frozen=True)
class Sinh(Elementwise):
    """Hyperbolic sine."""

    facts = Facts(monotone=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.sinh(x)


@operator("cosh")
@dataclass(frozen=True)
class Cosh(Elementwise):
    """Hyperbolic cosine."""

    facts = Facts(bounds=(1.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.cosh(x)


@operator("asinh")
@dataclass(frozen=True)
class Asinh(Elementwise):
    """Inverse hyperbolic sine."""

    facts = Facts(monotone=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.asinh(x)


@operator("acosh")
@dataclass(frozen=True)
class Acosh(Elementwise):
    """Inverse hyperbolic cosine."""

    facts = Facts(monotone=("x",), bounds=(0.0, inf))

    def reference(self, x: Tensor) -> Tensor:
        return torch.acosh(x)


@operator("atanh")
@dataclass(frozen=True)
class Atanh(Elementwise):
    """Inverse hyperbolic tangent."""

    facts = Facts(monotone=("x",))

    def reference(self, x: Tensor) -> Tensor:
        return torch.atanh(x)


@operator("round_to")
@dataclass(frozen=True)
class RoundTo(Elementwise):
    """The nearest number of a narrower floating point type, "f16" or "bf16", halves to even; kept in x's own type."""

    facts = Facts(monotone=("x",))

    dtype: str = "f16"

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if self.dtype not in ("f16", "bf16"):
            raise ShapeError(f"round_to {self.dtype!r}; the choices are f16 and bf16")
        return super().infer(x)

    def reference(self, x: Tensor) -> Tensor:
        return x.to(DType(self.dtype).torch).to(x.dtype)


_FUNCTIONS: tuple[type[Elementwise], ...] = (
    Abs, Neg, Sign, Exp, Exp2, Expm1, Log, Log2, Log10, Log1p, Sqrt, Rsqrt, Reciprocal, Sin, Cos, Tan, Asin, Acos,
    Atan, Sinh, Cosh, Asinh, Acosh, Atanh, Erf, Floor, Ceil, Trunc, Round,
)  # fmt: skip
_PLAIN: dict[str, type[Elementwise]] = {f"{op.name}.default": op for op in _FUNCTIONS}


@lowers(*_PLAIN)
def _lower_plain(call: AtenCall) -> Value | None:
    return emit_elementwise(call, _PLAIN[call.target]())


@lowers("pow.Tensor_Scalar")
def _lower_pow(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Pow(float(call["exponent"])))


@lowers("square.default")
def _lower_square(call: AtenCall) -> Value | None:
    return emit_elementwise(call, Pow(2.0))
