"""The last step of every integer kernel: from an accumulator to an output of int8 or int16.

y = sat(requant(acc, multiplier, shift) + zero_point)                                   plain
y = sat(requant(acc, multiplier, shift) + ((r * m + offset) >> s))              with a residual r
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .....ir.arithmetic import Rescale
from ..rounding import saturated, saturates_at_once

HEADERS = ("arithmetic.h", "dsp.h")


@dataclass(frozen=True, slots=True)
class Elements:
    """C types of the elements of input, output and residual."""

    x: str = "int8_t"
    y: str = "int8_t"
    r: str = "int8_t"

    @property
    def wide(self) -> bool:
        """True if the input has 16 bits."""
        return self.x == "int16_t"

    @property
    def bytes(self) -> int:
        """Bytes of an element of the input."""
        return 2 if self.wide else 1

    @property
    def wide_output(self) -> bool:
        """True if the output has 16 bits."""
        return self.y == "int16_t"


@dataclass(frozen=True)
class Epilogue:
    """Conversion of an accumulator to an output; `low` and `high` are its saturation bounds.

    `shifted`: some channel has a left shift, so that the packed constants have one per channel. `apart`: the weights
    are a separate array, which calls with other biases and scales read, too. In the `general` form the function takes
    the numbers that follow from scales as arguments.
    """

    zero_point: int
    low: int = -128
    high: int = 127
    shifted: bool = False
    apart: bool = False
    residual: Rescale | None = None
    elements: Elements = Elements()
    general: bool = False

    def generalized(self) -> Epilogue:
        """The general form, equal for all scales and zero points of the same bounds."""
        residual = self.residual and Rescale((0,), 0, 0)
        return replace(self, zero_point=0, residual=residual, general=True)

    @property
    def numbers(self) -> Mapping[str, int]:
        """The numbers that follow from scales and zero points, by their names in the general form."""
        if self.residual is None:
            return {"zero_point": self.zero_point}
        (multiplier,) = self.residual.multipliers
        return {"multiplier": multiplier, "offset": self.residual.offset, "shift": self.residual.shift}

    @property
    def text(self) -> Mapping[str, str]:
        """C text of the numbers."""
        return {name: name if self.general else str(number) for name, number in self.numbers.items()}

    @property
    def number_parameters(self) -> str:
        """The numbers as further parameters of a function in C."""
        return "".join(f", int32_t {name}" for name in self.numbers if self.general)

    @property
    def number_arguments(self) -> str:
        """The numbers as further arguments of a call in C."""
        return "".join(f", {name}" for name in self.numbers if self.general)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of packed constants: one with all constants, or weights, and biases with scales."""
        return ("weights", "scales") if self.apart else ("constants",)

    @property
    def weights(self) -> str:
        """Name of the array that has the weights."""
        return self.arrays[0]

    @property
    def scales(self) -> str:
        """Name of the array that has biases and scales."""
        return self.arrays[-1]

    @property
    def arguments(self) -> str:
        """The arrays, and numbers, as arguments of a call in C."""
        return ", ".join(self.arrays) + self.number_arguments

    @property
    def parameters(self) -> str:
        """The arrays, and numbers, as parameters of a function in C."""
        return ", ".join(f"const int32_t *{name}" for name in self.arrays) + self.number_parameters

    @property
    def moved_arguments(self) -> str:
        """The arrays as arguments of a function that moves to the next channels."""
        return ", ".join(f"&{name}" for name in self.arrays)

    @property
    def moved_parameters(self) -> str:
        """The arrays as parameters of such a function."""
        return ", ".join(f"const int32_t **{name}" for name in self.arrays)

    @property
    def bias(self) -> str:
        """Initializer of a register with the next bias; empty if assembly loads biases before the weights."""
        return " = *(*scales)++" if self.apart else ""

    @property
    def sum(self) -> str:
        """Constraint of such a register, as an operand of assembly."""
        return "+r" if self.apart else "=r"

    @property
    def value(self) -> str:
        """The C expression of an output from `acc`, `scale` and `addend`."""
        return saturated("fxp_scale(acc, scale[0], addend)", self.low, self.high)

    @property
    def instructions(self) -> float:
        """Instructions per output beyond SMMLAR, SSAT, SXTB and STRB; an output of 16 bits needs no SXTB."""
        added = 1.0 * self.shifted + 3.0 * (self.residual is not None) - 1.0 * self.elements.wide_output
        return added if saturates_at_once(self.low, self.high) else added + 4.0


def parameters(epilogue: Epilogue, *, scratch: bool = True) -> str:
    """The C parameters of a kernel: operands, result, packed constants, working memory if it takes any."""
    types = epilogue.elements
    residual = "" if epilogue.residual is None else f"const {types.r} *r, "
    memory = ", void *scratch" if scratch else ""
    return f"const {types.x} *x, {residual}{types.y} *y, {epilogue.parameters}{memory}"
