"""Lowering of one aten call to nodes: by the operators' lowering table, or as an opaque `torch_call`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ...ir import NOWHERE, Builder, IRError, Op, Source, TensorType, Value
from ...ir.ops import LOWERINGS
from ...ir.ops.call import Argument, Operand, TorchCall
from ...ir.sizes import Size


def lower(
    builder: Builder,
    overload: OpOverload,
    args: Sequence[Argument],
    kwargs: Mapping[str, Argument],
    *,
    source: Source = NOWHERE,
    expected: Sequence[TensorType] | None = None,
) -> tuple[Value, ...]:
    """Appends the nodes of a call, whose operands are `Value`s or new constants; returns one value for each result
    tensor.

    A call without operands, such as `arange`, becomes a constant, unless it depends on dynamic sizes. If the operator
    declines, or its results differ from the `expected` types, the call becomes a `torch_call`.
    """
    args = [builder.constant("constant", item) if isinstance(item, Tensor) else item for item in args]
    if not _reads_values((*args, *kwargs.values())) and not _has_sizes([*args, *kwargs.values()]):
        return _made_now(builder, overload, args, kwargs)
    lowering = LOWERINGS.get(_table_name(overload))
    if lowering is not None and _takes_sizes(overload, args, kwargs):
        results = _results(lowering, BoundCall(builder, overload, args, kwargs, source))
        if results and (expected is None or [v.type for v in results] == list(expected)):
            return results
    return opaque(builder, overload, args, kwargs, source=source)


def opaque(
    builder: Builder,
    overload: OpOverload,
    args: Sequence[Argument],
    kwargs: Mapping[str, Argument],
    *,
    source: Source = NOWHERE,
) -> tuple[Value, ...]:
    """Appends the call as a `torch_call`."""
    operands: list[Value] = []

    def numbered(argument: Argument) -> Argument:
        if isinstance(argument, Value):
            if argument not in operands:
                operands.append(argument)
            return Operand(operands.index(argument))
        if isinstance(argument, list | tuple):
            return [numbered(item) for item in argument]
        return argument

    template = [numbered(argument) for argument in args]
    op = TorchCall.of(overload, template, {name: numbered(argument) for name, argument in kwargs.items()})
    types = op.infer(*(value.type for value in operands))
    return builder.append(op, operands, types, source=source)


_SIZES = frozenset(
    {
        *("size", "sizes", "shape", "output_size", "split_size", "split_sizes"),
        *("start", "end", "length", "repeats"),
    }
)
"""Parameters whose numbers become attributes unchanged: these may depend on dimensions."""


def _takes_sizes(overload: OpOverload, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> bool:
    """True if sizes that depend on dimensions occur only in parameters for sizes."""
    declared = [argument.name for argument in overload._schema.arguments]
    bound = {**dict(zip(declared, args, strict=False)), **kwargs}
    return all(name in _SIZES for name, argument in bound.items() if _has_sizes(argument))


def _has_sizes(argument: Argument) -> bool:
    """True if an argument is, or contains, a size that depends on dimensions."""
    if isinstance(argument, list | tuple):
        return any(map(_has_sizes, argument))
    return isinstance(argument, Size)


def _reads_values(arguments: Iterable[Argument]) -> bool:
    return any(_reads_values(a) if isinstance(a, list | tuple) else isinstance(a, Value) for a in arguments)


def _made_now(
    builder: Builder, overload: OpOverload, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> tuple[Value, ...]:
    name = str(overload).split(".")[1]
    made = overload(*args, **kwargs)
    tensors = [made] if isinstance(made, Tensor) else list(made)
    if name.startswith("empty"):
        tensors = [torch.zeros_like(tensor) for tensor in tensors]  # the same bytes in every capture
    return tuple(builder.constant(name, tensor) for tensor in tensors)


class _DeclinedError(Exception):
    """An operand is not of the kind that the operator requires, such as a number in place of a tensor."""


@dataclass(frozen=True)
class BoundCall:
    """A call with its arguments bound to the schema's names: the `AtenCall` that operators lower."""

    builder: Builder
    overload: OpOverload
    args: Sequence[Argument]
    kwargs: Mapping[str, Argument]
    source: Source

    @property
    def target(self) -> str:
        """Name and overload, without the namespace."""
        return _table_name(self.overload)

    def __getitem__(self, name: str) -> Any:  # Any: the schema's own type
        """An argument, or its default."""
        for index, argument in enumerate(self.overload._schema.arguments):
            if argument.name == name:
                if index < len(self.args):
                    return self.args[index]
                return self.kwargs.get(name, _default(argument))
        raise KeyError(f"{self.overload} has no argument {name!r}")

    def value(self, name: str) -> Value:
        """A tensor argument."""
        found = self[name]
        if not isinstance(found, Value):
            raise _DeclinedError(name)
        return found

    def optional_value(self, name: str) -> Value | None:
        """A tensor argument that may be None."""
        return None if self[name] is None else self.value(name)

    def values(self, name: str) -> tuple[Value, ...]:
        """A list of tensors."""
        found = tuple(self[name])
        if not all(isinstance(item, Value) for item in found):
            raise _DeclinedError(name)
        return found

    def operand_or_scalar(self, name: str) -> Value | int | float | bool:
        """A tensor argument that may also be a number."""
        found = self[name]
        if not isinstance(found, Value | int | float):
            raise _DeclinedError(name)
        return found

    def constant_tensor(self, value: Value) -> Tensor | None:
        """The tensor of a value that is a constant, else None."""
        return self.builder.tensor(value)

    def constant(self, name: str, tensor: Tensor) -> Value:
        """A new constant."""
        return self.builder.constant(name, tensor)

    def emit(self, op: Op, *operands: Value | None) -> Value:
        """Adds a node with one result."""
        return self.builder.add(op, *operands, source=self.source)

    def emit_many(self, op: Op, *operands: Value | None) -> tuple[Value, ...]:
        """Adds a node with several results."""
        types = op.infer(*(value and value.type for value in operands))
        return self.builder.append(op, operands, types, source=self.source)

    def opaque(self) -> tuple[Value, ...]:
        """The call as a `torch_call`."""
        return opaque(self.builder, self.overload, self.args, self.kwargs, source=self.source)


def _results(lowering: Any, call: BoundCall) -> tuple[Value, ...]:  # Any: Lowering, of the wider AtenCall
    try:
        results = lowering(call)
    except (_DeclinedError, IRError):  # the operator cannot express this call; `torch_call` can
        return ()
    if results is None:
        return ()
    return (results,) if isinstance(results, Value) else tuple(results)


def _default(argument: torch.Argument) -> Argument:
    is_format = argument.real_type.kind() == "MemoryFormatType"
    return torch.contiguous_format if is_format and argument.default_value == 0 else argument.default_value


def _table_name(overload: OpOverload) -> str:
    namespace, _, name = str(overload).partition(".")
    return name if namespace == "aten" else str(overload)
