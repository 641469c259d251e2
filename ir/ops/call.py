"""The opaque operator: a call of a torch overload that has no operator in the IR.

`call` is the call as text, `aten.softmax.int(x0, -1)`: a torch overload, with `x0`, `x1`, ... for operands and `n0`,
`n1`, ... for `sizes` that depend on dimensions among its arguments. Every pass keeps it unchanged, and torch computes
it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..element_type import DType
from ..errors import ShapeError
from ..quiet import quiet
from ..sizes import Size, dimensions_of, sizes_in
from ..symbolic import symbolic_mode
from ..tensor_type import TensorType
from .base import Op, operator
from .call_channels import BoundCall, couple_overload
from .channels import Axes, CouplingCall

Argument = Any  # what a torch schema allows: operand, number, text, dtype, ..., None, or a list of them


@dataclass(frozen=True, slots=True)
class Operand:
    """Placeholder for operand `index` among the arguments of a call."""

    index: int


@dataclass(frozen=True, slots=True)
class SizeAt:
    """Placeholder for `sizes[index]` among the arguments of a call."""

    index: int


@operator("torch_call")
@dataclass(frozen=True)
class TorchCall(Op):
    """A call of a torch overload. Results are its tensors in order; operands that it would write to are
    copied first.
    """

    call: str = ""
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _parsed(self.call)

    @staticmethod
    def of(
        overload: torch._ops.OpOverload, args: Sequence[Argument], kwargs: Mapping[str, Argument]
    ) -> TorchCall:
        """The operator for a call whose tensors are given as `Operand`s; ValueError for unsupported arguments."""
        sizes = tuple(dict.fromkeys(sizes_in([*args, *kwargs.values()])))
        shown = [_text(argument, sizes) for argument in args]
        shown += [f"{name}={_text(argument, sizes)}" for name, argument in kwargs.items()]
        return TorchCall(f"{overload!s}({', '.join(shown)})", sizes)

    @property
    def target(self) -> str:
        """The overload's name, as in `aten.softmax.int`."""
        return self.call.partition("(")[0]

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The aten overload."""
        return _parsed(self.call)[0]

    @property
    def is_random(self) -> bool:
        """True for an overload that draws random numbers: two calls of it differ."""
        return torch.Tag.nondeterministic_seeded in self.overload.tags

    @property
    def is_uninitialized(self) -> bool:
        """True for an overload whose result has uninitialized memory until something is written to it."""
        return self.target.startswith(("aten.empty", "aten.new_empty"))

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        dimensions = dimensions_of([self.sizes, *(t.shape for t in operands if t is not None)])
        return _inferred_symbolic(self, operands) if dimensions else _inferred(self, operands)

    def reference(self, *operands: Tensor | None) -> tuple[Tensor, ...]:
        return self.given_to(self.overload, operands)

    def given_to(
        self,
        function: Callable[..., Any],  # Any: those of the overload
        operands: Sequence[Tensor | None],
        sizes: Sequence[Any] | None = None,  # Any: integers, or symbolic ones
    ) -> tuple[Tensor, ...]:
        """Result of `function` with the call's arguments, and `sizes` in place of its own."""
        overload, args, kwargs = _parsed(self.call)
        given = self.sizes if sizes is None else sizes

        def bound(argument: Argument, is_written: bool) -> Argument:
            if isinstance(argument, Operand):
                tensor = operands[argument.index]
                return tensor.clone() if is_written and tensor is not None else tensor
            if isinstance(argument, SizeAt):
                return given[argument.index]
            if isinstance(argument, tuple):
                return [bound(item, is_written) for item in argument]
            return argument

        written = _written(overload)
        return tuple(
            _tensors(
                function(
                    *(bound(argument, index in written) for index, argument in enumerate(args)),
                    **{name: bound(argument, name in written) for name, argument in kwargs.items()},
                )
            )
        )

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        overload, args, kwargs = _parsed(self.call)
        names = [argument.name for argument in overload._schema.arguments]
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        return couple_overload(call, BoundCall(self.target, bound), overload.tags)


_RAISED = (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError)


@lru_cache(maxsize=4096)
def _inferred(op: TorchCall, operands: tuple[TensorType | None, ...]) -> tuple[TensorType, ...]:
    _check_plain(operands)
    with quiet(), FakeTensorMode():
        tensors = [None if t is None else torch.empty(t.shape, dtype=t.dtype.torch) for t in operands]
        try:
            results = op.reference(*tensors)
        except _RAISED as err:
            raise ShapeError(f"{op.call}: {str(err).partition(chr(10))[0]}") from err
    if not results:
        raise ShapeError(f"{op.call} gives no tensor")
    if not all(isinstance(size, int) for tensor in results for size in tensor.shape):
        raise ShapeError(f"{op.call} gives sizes that depend on data")
    return tuple(TensorType.of(tensor) for tensor in results)


@lru_cache(maxsize=4096)
def _inferred_symbolic(op: TorchCall, operands: tuple[TensorType | None, ...]) -> tuple[TensorType, ...]:
    """Like `_inferred`, for sizes that depend on dimensions."""
    _check_plain(operands)
    dimensions = dimensions_of([op.sizes, *(t.shape for t in operands if t is not None)])
    with quiet(), symbolic_mode(dimensions) as symbolic:
        tensors = [
            None if t is None else torch.empty(tuple(map(symbolic.given, t.shape)), dtype=t.dtype.torch)
            for t in operands
        ]
        try:
            results = op.given_to(op.overload, tensors, [symbolic.given(size) for size in op.sizes])
        except _RAISED as err:
            raise ShapeError(f"{op.call}: {str(err).partition(chr(10))[0]}") from err
        if not results:
            raise ShapeError(f"{op.call} gives no tensor")
        return tuple(
            TensorType(tuple(map(symbolic.size, tensor.shape)), DType.of(tensor.dtype)) for tensor in results
        )


def _check_plain(operands: Sequence[TensorType | None]) -> None:
    if any(type is not None and type.is_quantized for type in operands):
        raise ShapeError("torch_call does not compute on quantized values")


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors(item)


@lru_cache(maxsize=1024)
def _written(overload: torch._ops.OpOverload) -> frozenset[int | str]:
    """Positions and names of the arguments that the overload writes to."""
    found: set[int | str] = set()
    for index, argument in enumerate(overload._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found |= {index, argument.name}
    return frozenset(found)


_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


def _text(argument: Argument, sizes: Sequence[Size]) -> str:
    if isinstance(argument, Operand):
        return f"x{argument.index}"
    if isinstance(argument, Size):
        return f"n{sizes.index(argument)}"
    if isinstance(argument, list | tuple):
        return f"[{', '.join(_text(item, sizes) for item in argument)}]"
    if isinstance(argument, torch.device):
        return repr(str(argument))
    if argument is None or isinstance(argument, bool | int | float | str):
        return repr(argument)
    if isinstance(argument, complex):
        return f"complex({argument.real!r}, {argument.imag!r})"
    if isinstance(argument, _CONSTANTS):
        return str(argument)
    raise ValueError(f"{argument!r} is not supported in a torch_call")


@lru_cache(maxsize=4096)
def _parsed(call: str) -> tuple[torch._ops.OpOverload, tuple[Argument, ...], dict[str, Argument]]:
    try:
        tree = ast.parse(call, mode="eval").body
    except SyntaxError as err:
        raise ValueError(f"{call!r} is not a call") from err
    if not isinstance(tree, ast.Call):
        raise ValueError(f"{call!r} is not a call")
    args = tuple(_argument(item) for item in tree.args)
    kwargs = {str(item.arg): _argument(item.value) for item in tree.keywords}
    return _overload(ast.unparse(tree.func)), args, kwargs


def _overload(name: str) -> torch._ops.OpOverload:
    parts = name.split(".")
    found: object = torch.ops
    for part in parts:
        found = getattr(found, part, None)
    if len(parts) != 3 or not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"torch has no overload {name}; is the package that defines it imported?")
    return found


def _argument(tree: ast.expr) -> Argument:
    match tree:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_argument(operand)
        case ast.List(elts=items):
            return tuple(_argument(item) for item in items)
        case ast.Name(id="inf" | "nan" as name):
            return math.inf if name == "inf" else math.nan
        case ast.Name(id=name) if name[0] == "x" and name[1:].isdecimal():
            return Operand(int(name[1:]))
        case ast.Name(id=name) if name[0] == "n" and name[1:].isdecimal():
            return SizeAt(int(name[1:]))
        case ast.Call(func=ast.Name(id="complex"), args=[real, imaginary]):
            return complex(_argument(real), _argument(imaginary))
        case ast.Attribute(value=ast.Name(id="torch"), attr=name) if isinstance(
            getattr(torch, name, None), _CONSTANTS
        ):
            return getattr(torch, name)
    raise ValueError(f"{ast.unparse(tree)} is not supported in a torch_call")
