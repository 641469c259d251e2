"""Base class and registry of operators.

An operator is one frozen dataclass: its fields are its attributes, its methods define its meaning. The parameters of
`infer` are the names of its operands, in order; a node stores them by position, None for an absent optional operand.
Values of quantized type are computed by `integer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from ..encoding import Encoding
from ..errors import ShapeError, UnsupportedError
from ..tensor_type import TensorType, Value
from .channels import Axes, CouplingCall, Cut
from .facts import FURTHER, Facts

Given = TypeVar("Given")


class Quantized(Enum):
    """Integer form of an operator: computes, moves, or none."""

    NEVER = "never"  # float only; the pass quantize adds conversions around it
    COMPUTE = "compute"  # the result has its own scale
    MOVE = "move"  # data movement: results keep the type's quantization, which all data operands share


@dataclass(frozen=True)
class Op(ABC):
    """Base of all operators. Subclasses are registered with `@operator(name)`."""

    name: ClassVar[str]
    quantized: ClassVar[Quantized] = Quantized.NEVER
    operand_names: ClassVar[tuple[str, ...]] = ()
    """Names of the operands in order: the parameters of `infer`, without those of a `*` parameter."""
    real_operands: ClassVar[tuple[str, ...]] = ()
    """Constants that remain real in the integer form, which derives its own integers from them."""

    learned_operands: ClassVar[tuple[str, ...]] = ()
    """Operands that training changes if they are constants."""

    @abstractmethod
    def infer(self, *operands: Any, **_: Any) -> tuple[TensorType, ...]:  # Any: each op has its own operands
        """Types of the results for operand types; ShapeError if they do not fit.

        Data movement keeps the quantization of its operands. Other operators return, for integer operands, the type
        that the reals would have; the node's own output type defines their storage.
        """

    @abstractmethod
    def reference(self, *operands: Any, **_: Any) -> tuple[torch.Tensor, ...] | torch.Tensor:  # Any: as above
        """Float meaning, in differentiable torch; for data movement also the integer meaning."""

    def integer(self, call: IntegerCall) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """Exact integer meaning: int64 operands to int64 results in the output type's range.

        Data movement moves the integers as it moves reals; an operator that adds its own elements (padding) defines
        their integers here.
        """
        if self.quantized is Quantized.MOVE:
            return self.reference(*call.operands)
        raise UnsupportedError(f"{self.name} has no integer form")

    def result_encoding(self, high: float, *, bits: int = 8) -> Encoding | None:
        """The only encoding in which the integer form gives results up to `high`; None if the encoding is free.

        `bits` is the requested width; an operator may support only results of other widths.
        """
        return None

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        """Raises ShapeError if the integer form does not exist for these quantized types."""
        if self.quantized is Quantized.NEVER:
            raise ShapeError(f"{self.name} does not compute on quantized values")

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        """Multiply-accumulates of one execution; 0 except for matrix products and convolutions."""
        return 0

    @property
    def facts(self) -> Facts:
        """Mathematical properties; data movement keeps order, factors and elements unless an operator
        overrides this.
        """
        if self.quantized is not Quantized.MOVE:
            return Facts()
        every = (*self.operand_names, FURTHER)
        return Facts(monotone=every, piecewise_linear=(every,), homogeneous=True, selects=True)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        """True if the result equals the first operand for all elements, with operands of these types."""
        return False

    def operand(self, given: Sequence[Given | None], name: str) -> Given:
        """The item of `given`, which has one item per operand, for the operand of that name, which is present."""
        found = self.optional(given, name)
        assert found is not None, f"{self.name} without {name}"
        return found

    def optional(self, given: Sequence[Given | None], name: str) -> Given | None:
        """The item of `given` for the operand of that name; None if the operand is absent or does not exist."""
        index = self.position(name) if name in self.operand_names else len(given)
        return given[index] if index < len(given) else None

    def learned(self, given: Sequence[Given | None]) -> Sequence[Given | None]:
        """The items of `given`, which has one item per operand, for the operands that training changes."""
        return [self.optional(given, name) for name in self.learned_operands]

    def stays_real(self, index: int) -> bool:
        """True if the input at this position is one of `real_operands`."""
        return self.name_of(index) in self.real_operands

    def name_of(self, index: int) -> str:
        """Name of the operand at a position among the inputs of a node."""
        return self.operand_names[index] if index < len(self.operand_names) else FURTHER

    def position(self, name: str) -> int:
        """Position of an operand among the inputs of a node."""
        if name not in self.operand_names:
            raise KeyError(f"{self.name} has no operand {name!r}; it has {', '.join(self.operand_names)}")
        return self.operand_names.index(name)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        """Axes of the results; couplings are declared on `call`. Default: no channel can be removed."""
        return call.refuse()

    def cut(self, cut: Cut) -> Op:
        """The operator for operands with only some channels kept: itself, unless an attribute counts channels."""
        return self


@dataclass(frozen=True, slots=True)
class IntegerCall:
    """Operands and types for an integer form; integers are int64 tensors."""

    op: Op
    operands: tuple[torch.Tensor | None, ...]
    types: tuple[TensorType | None, ...]
    outputs: tuple[TensorType, ...]

    @property
    def output(self) -> TensorType:
        """The type of the first result."""
        return self.outputs[0]

    def operand(self, name: str) -> torch.Tensor:
        """An operand that must be present."""
        return self.op.operand(self.operands, name)

    def optional(self, name: str) -> torch.Tensor | None:
        """An operand, or None when it is absent."""
        return self.op.optional(self.operands, name)

    def type(self, name: str) -> TensorType:
        """The type of an operand that must be present."""
        return self.op.operand(self.types, name)


class AtenCall(Protocol):
    """A call of an aten overload during lowering; arguments are bound to the names of the schema."""

    target: str

    def value(self, name: str) -> Value:
        """A tensor argument."""

    def optional_value(self, name: str) -> Value | None:
        """A tensor argument that may be None."""

    def values(self, name: str) -> tuple[Value, ...]:
        """A list of tensors."""

    def operand_or_scalar(self, name: str) -> Value | int | float | bool:
        """A tensor argument that may also be a number."""

    def __getitem__(self, name: str) -> Any:  # Any: the schema's own type, e.g. int, list of int, None
        """An argument that is not a tensor, with defaults filled in."""

    def constant_tensor(self, value: Value) -> torch.Tensor | None:
        """The tensor of a value that is a constant, else None."""

    def constant(self, name: str, tensor: torch.Tensor) -> Value:
        """A new constant."""

    def emit(self, op: Op, *operands: Value | None) -> Value:
        """Adds a node with one result."""

    def emit_many(self, op: Op, *operands: Value | None) -> tuple[Value, ...]:
        """Adds a node with several results."""

    def opaque(self) -> tuple[Value, ...]:
        """Adds the call itself as a `torch_call`, for results that no operator computes; removed if nothing
        reads it.
        """


Lowering = Callable[[AtenCall], "Value | tuple[Value, ...] | None"]
OpClass = TypeVar("OpClass", bound=type[Op])
LoweringFunction = TypeVar("LoweringFunction", bound=Lowering)

_OPERATORS: dict[str, type[Op]] = {}
_LOWERINGS: dict[str, Lowering] = {}
OPERATORS: Mapping[str, type[Op]] = MappingProxyType(_OPERATORS)
LOWERINGS: Mapping[str, Lowering] = MappingProxyType(_LOWERINGS)


def operator(name: str) -> Callable[[OpClass], OpClass]:
    """Class decorator: sets the name of the operator and adds it to the registry."""

    def register(cls: OpClass) -> OpClass:
        if name in _OPERATORS:
            raise ValueError(f"operator {name!r} is registered twice")
        cls.name = name
        _, *operands = signature(cls.infer).parameters.values()
        cls.operand_names = tuple(p.name for p in operands if p.kind is not Parameter.VAR_POSITIONAL)
        _OPERATORS[name] = cls
        return cls

    return register


def lowers(*targets: str) -> Callable[[LoweringFunction], LoweringFunction]:
    """Function decorator: registers the lowering of aten overloads such as `relu.default`. The function may return
    None to decline a call.
    """

    def register(function: LoweringFunction) -> LoweringFunction:
        for target in targets:
            if target in _LOWERINGS:
                raise ValueError(f"aten overload {target!r} is lowered twice")
            _LOWERINGS[target] = function
        return function

    return register


def check_floats(op: Op, *types: TensorType | None) -> None:
    """Raises ShapeError unless all present operands are floats, or represent floats, of one element type."""
    found = {type.real().dtype for type in types if type is not None}
    if len(found) > 1 or not all(dtype.is_floating for dtype in found):
        shown = ", ".join(sorted(dtype.value for dtype in found))
        raise ShapeError(f"{op.name} takes floating point values of one element type, not {shown}")


def attributes(
    op: Op,
) -> dict[str, Any]:  # Any: attribute values are int, float, bool, str, None or tuples of them
    """The attributes that differ from their defaults, in the order of declaration."""
    return {f.name: getattr(op, f.name) for f in fields(op) if getattr(op, f.name) != f.default}
