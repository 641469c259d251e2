"""Python source of an operator, from a run of its reference that records its torch calls.

An operator's reference is its only definition, so no table of operators is needed: the emitted code makes the same
calls on the same operands as `ir.run`, and computes the same bits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name

from ...ir import IRError, Node, Op, TensorType, UnsupportedError
from ...ir.quiet import quiet
from ...ir.sizes import Dimension, Size, dimensions_of, evaluated, with_sizes
from ...ir.symbolic import traced_sizes
from .literal import Argument

_SHAPE = vars(torch._C.TensorBase)["shape"].__get__


@dataclass(frozen=True, slots=True)
class Operand:
    """Placeholder for an operand of the recorded node in an argument."""

    index: int


@dataclass(frozen=True, slots=True)
class Result:
    """Placeholder for the tensor that an earlier call returned, or for one of several (`item`)."""

    call: int
    item: int | None = None


class TensorSize(int):
    """A size of a tensor, printed as that tensor's size, so that other sizes are accepted, too."""

    tensor: Operand | Result
    dimension: int

    @staticmethod
    def of(size: int, tensor: Operand | Result, dimension: int) -> TensorSize:
        """`size` with its origin."""
        made = TensorSize(size)
        made.tensor, made.dimension = tensor, dimension
        return made

    def __repr__(self) -> str:
        return f"{self.tensor}.shape[{self.dimension}]"


@dataclass(frozen=True, slots=True)
class Call:
    """One torch call: the function's public name, and its arguments with placeholders for tensors."""

    function: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    results: int | None  # number of tensors in a returned tuple; None for a single tensor
    mutates: bool  # True if it writes to its first argument


@dataclass(frozen=True, slots=True)
class Recording:
    """The calls of one operator in order, and the origin of each of its results."""

    calls: tuple[Call, ...]
    results: tuple[Operand | Result, ...]


def record(node: Node, types: Sequence[TensorType | None]) -> Recording:
    """The torch calls of the node's reference for operands of `types`; UnsupportedError if one has no public name.

    If sizes depend on dimensions, the calls at other sizes must be the same.
    """
    recording = _recorded(node.op, types)
    dimensions = dimensions_of([node.op, *(t.shape for t in types if t is not None)])
    if not dimensions:
        return recording
    others = {
        d.name: replace(d, example=n).size
        for d, n in zip(dimensions.values(), _others(dimensions), strict=True)
    }

    def moved(size: Size) -> int:
        found: int = evaluated(size, others)
        return found

    other = _recorded(
        with_sizes(node.op, moved), [t and t.with_shape(with_sizes(t.shape, moved)) for t in types]
    )
    if repr(other) != repr(recording):
        raise UnsupportedError(f"{node.op.name} makes other torch calls at other sizes than the example's")
    return recording


def _others(dimensions: Mapping[str, Dimension]) -> tuple[int, ...]:
    """Sizes other than the example's, if the ranges allow it."""
    return traced_sizes(dimensions, frozenset(d.example for d in dimensions.values()))


def _recorded(op: Op, types: Sequence[TensorType | None]) -> Recording:
    with quiet():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                return _record(op, types)
        except (IRError, RuntimeError, NotImplementedError, TypeError, ValueError):
            return _record(op, types)  # a kernel without a shape function: run it on zeros


def _record(op: Op, types: Sequence[TensorType | None]) -> Recording:
    operands = [None if t is None else torch.zeros(t.shape, dtype=t.real().dtype.torch) for t in types]
    recorder = _Recorder(operands, op.name)
    with torch.no_grad(), recorder:
        results = op.reference(*operands)
    listed = results if isinstance(results, tuple) else (results,)
    return Recording(tuple(recorder.calls), tuple(recorder.origin(tensor) for tensor in listed))


class _Recorder(TorchFunctionMode):
    """Records every outermost call of torch's Python interface that returns tensors or writes to one."""

    def __init__(self, operands: Sequence[Tensor | None], op: str) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._op = op
        self._alive: list[Tensor] = [t for t in operands if t is not None]
        self._origins: dict[int, Operand | Result] = {
            id(t): Operand(i) for i, t in enumerate(operands) if t is not None
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],  # any torch function
        types: Sequence[type],
        args: tuple[Argument, ...] = (),
        kwargs: Mapping[str, Argument] | None = None,
    ) -> Any:  # the result of the function
        outcome = func(*args, **(kwargs or {}))
        if func == _SHAPE:
            origin = self.origin(args[0])
            return tuple(TensorSize.of(size, origin, dimension) for dimension, size in enumerate(outcome))
        several = isinstance(outcome, tuple | list)
        tensors = list(outcome) if several else [outcome]
        name = self._name(func)
        mutates = _mutates(func, name)
        if not any(isinstance(t, Tensor) for t in tensors) and not mutates:
            return outcome
        defaults = _defaults(name)
        named = tuple(
            (key, self._argument(value))
            for key, value in (kwargs or {}).items()
            if isinstance(value, Tensor) or key not in defaults or defaults[key] != value
        )
        arguments = tuple(self._argument(value) for value in args)
        self.calls.append(Call(name, arguments, named, len(tensors) if several else None, mutates))
        for item, tensor in enumerate(tensors):
            if isinstance(tensor, Tensor) and not (mutates and id(tensor) in self._origins):
                self._alive.append(tensor)  # keeps the tensor alive, so that no other tensor gets its id
                self._origins[id(tensor)] = Result(len(self.calls) - 1, item if several else None)
        return outcome

    def origin(self, tensor: Tensor) -> Operand | Result:
        """Call that returned `tensor`; UnsupportedError if there is none."""
        try:
            return self._origins[id(tensor)]
        except KeyError:
            raise UnsupportedError(
                f"{self._op} computes with a tensor that is not one of its operands"
            ) from None

    def _argument(self, value: Argument) -> Argument:
        if isinstance(value, Tensor):
            return self.origin(value)
        if isinstance(value, list):
            return [self._argument(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self._argument(item) for item in value)
        return value

    def _name(self, func: Callable[..., Any]) -> str:  # any torch function
        if isinstance(func, torch._ops.OpOverload):
            return f"torch.ops.{func}"
        name: str | None = resolve_name(func)
        if not name:
            raise UnsupportedError(f"{self._op} calls {func}, which has no public name")
        return name


def _mutates(func: Callable[..., Any], name: str) -> bool:  # any torch function
    if isinstance(func, torch._ops.OpOverload):
        return func._schema.is_mutable
    last = name.rsplit(".", 1)[-1]
    return last == "__setitem__" or (last.endswith("_") and not last.endswith("__"))


@cache
def _defaults(name: str) -> Mapping[str, Argument]:
    """Default values of a function of `torch.nn.functional` that is written in Python; none for all others."""
    last = name.removeprefix("torch.nn.functional.")
    for candidate in (f"_{last}", last):  # pools are dispatched to a function with an underscore
        function = getattr(functional, candidate, None)
        if isinstance(function, FunctionType):
            parameters = inspect.signature(function).parameters.values()
            return {p.name: p.default for p in parameters if p.default is not p.empty}
    return {}
