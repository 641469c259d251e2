"""Python source of an operator, had by running its reference and writing down the torch calls that it makes.

An operator's reference is its only definition, so this needs no table of operators: whatever `ir.run` computes is
written as the same calls on the same operands, and computes the same bits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name

from ...ir import IRError, Node, TensorType, UnsupportedError

Argument = Any  # what torch functions take: numbers, strings, dtypes, tensors, and lists of them

_INFIX = {
    "add": "+",
    "__add__": "+",
    "sub": "-",
    "__sub__": "-",
    "mul": "*",
    "__mul__": "*",
    "div": "/",
    "__truediv__": "/",
    "matmul": "@",
    "__matmul__": "@",
    "__lt__": "<",
    "__le__": "<=",
    "__gt__": ">",
    "__ge__": ">=",
    "__and__": "&",
    "__or__": "|",
}
_REFLECTED = {"__radd__": "+", "__rsub__": "-", "__rmul__": "*", "__rtruediv__": "/", "__rdiv__": "/"}
_SHAPE = vars(torch._C.TensorBase)["shape"].__get__
_METHOD = "torch.Tensor."  # `resolve_name` of a method


@dataclass(frozen=True, slots=True)
class Operand:
    """Stands for an operand of the recorded node in an argument."""

    index: int


@dataclass(frozen=True, slots=True)
class Result:
    """Stands for the tensor that an earlier call returned, or for one of several (`item`)."""

    call: int
    item: int | None = None


class Size(int):
    """A size of a tensor: it prints as that tensor's size, so that other batches pass where the captured one did."""

    tensor: Operand | Result
    dimension: int

    @staticmethod
    def of(size: int, tensor: Operand | Result, dimension: int) -> Size:
        """`size` that knows where it came from."""
        made = Size(size)
        made.tensor, made.dimension = tensor, dimension
        return made


@dataclass(frozen=True, slots=True)
class Call:
    """One torch call: the function's public name, and its arguments with tensors replaced by what they stand for."""

    function: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    results: int | None  # how many tensors it returned in a tuple; None for a single one
    mutates: bool  # whether it writes to its first argument


@dataclass(frozen=True, slots=True)
class Recording:
    """The calls of one operator in order, and where each of its results comes from."""

    calls: tuple[Call, ...]
    results: tuple[Operand | Result, ...]

    def statements(
        self, operands: Sequence[str | None], fresh: Callable[[], str]
    ) -> tuple[list[str], tuple[str, ...]]:
        """Python statements, and the expressions of the results after them, on the expressions `operands`.

        `fresh` makes up names for intermediate results; one that is read once is written in place. Several
        results that are one call's are given as that single expression of a tuple.
        """
        return _Writer(self, operands, fresh).write()


def record(node: Node, types: Sequence[TensorType | None]) -> Recording:
    """The torch calls of the node's reference for operands of `types`; UnsupportedError when they have no names."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _record(node, types)
    except (IRError, RuntimeError, NotImplementedError, TypeError, ValueError):
        return _record(node, types)  # a kernel without a shape function: run it on zeros


def _record(node: Node, types: Sequence[TensorType | None]) -> Recording:
    operands = [None if t is None else torch.zeros(t.shape, dtype=t.real().dtype.torch) for t in types]
    recorder = _Recorder(operands, node.op.name)
    with torch.no_grad(), recorder:
        results = node.op.reference(*operands)
    listed = results if isinstance(results, tuple) else (results,)
    return Recording(tuple(recorder.calls), tuple(recorder.origin(tensor) for tensor in listed))


class _Recorder(TorchFunctionMode):
    """Writes down every outermost call of torch's Python interface that returns tensors or writes to one."""

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
    ) -> Any:  # what the function returns
        outcome = func(*args, **(kwargs or {}))
        if func == _SHAPE:
            origin = self.origin(args[0])
            return tuple(Size.of(size, origin, dimension) for dimension, size in enumerate(outcome))
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
                self._alive.append(tensor)  # so that no other tensor gets its id
                self._origins[id(tensor)] = Result(len(self.calls) - 1, item if several else None)
        return outcome

    def origin(self, tensor: Tensor) -> Operand | Result:
        """What `tensor` came from; UnsupportedError for one that no call returned."""
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


class _Writer:
    """Writes a recording down, with intermediate results inlined where that keeps the order of evaluation."""

    def __init__(
        self, recording: Recording, operands: Sequence[str | None], fresh: Callable[[], str]
    ) -> None:
        self._recording = recording
        self._operands = operands
        self._fresh = fresh
        self._texts: dict[int, str] = {}
        self._infix: set[int] = set()
        self._uses = _count_uses(recording)
        self._inlines = not any(call.mutates for call in recording.calls)

    def write(self) -> tuple[list[str], tuple[str, ...]]:
        lines: list[str] = []
        wanted = self._recording.results
        for index, call in enumerate(self._recording.calls):
            if not self._uses[index] and not call.mutates:
                continue
            text = self._call(call)
            if call.results is not None and wanted == tuple(Result(index, i) for i in range(call.results)):
                return lines, (text,)
            if call.mutates:
                lines.append(text)
            elif self._inlines and self._uses[index] == 1:
                self._texts[index] = text
                if _is_infix(call):
                    self._infix.add(index)
            else:
                self._texts[index] = self._fresh()
                lines.append(f"{self._texts[index]} = {text}")
        return lines, tuple(self._argument(result) for result in wanted)

    def _call(self, call: Call) -> str:
        name = call.function
        if name.startswith(_METHOD):
            return self._method(name.removeprefix(_METHOD), call)
        name = name.replace("torch.nn.functional.", "F.").replace("torch.functional.", "torch.")
        if name.startswith(("aten.", "prims.")):
            name = f"torch.ops.{name}"
        return f"{name}({self._arguments(call.args, call.kwargs)})"

    def _method(self, method: str, call: Call) -> str:
        self_text, rest = self._atom(call.args[0]), call.args[1:]
        if method.endswith(".__get__"):
            return f"{self_text}.{method.removesuffix('.__get__')}"
        if method == "__getitem__":
            return f"{self_text}[{_index(rest[0], self._argument)}]"
        if method == "__setitem__":
            return f"{self_text}[{_index(rest[0], self._argument)}] = {self._argument(rest[1])}"
        if _is_infix(call):
            other = self._atom(rest[0])
            if method in _INFIX:
                return f"{self_text} {_INFIX[method]} {other}"
            return f"{other} {_REFLECTED[method]} {self_text}"
        return f"{self_text}.{method}({self._arguments(rest, call.kwargs)})"

    def _arguments(self, args: Sequence[Argument], kwargs: Sequence[tuple[str, Argument]]) -> str:
        positional = [self._argument(value) for value in args]
        return ", ".join(positional + [f"{key}={self._argument(value)}" for key, value in kwargs])

    def _atom(self, value: Argument) -> str:
        """The argument as an operand of an infix operator or a method call."""
        text = self._argument(value)
        compound = isinstance(value, Result) and value.item is None and value.call in self._infix
        return f"({text})" if compound or text.startswith("-") else text

    def _argument(self, value: Argument) -> str:
        if isinstance(value, Size):
            return f"{self._argument(value.tensor)}.shape[{value.dimension}]"
        if isinstance(value, Operand):
            text = self._operands[value.index]
            assert text is not None
            return text
        if isinstance(value, Result):
            text = self._texts[value.call]
            return text if value.item is None else f"{text}[{value.item}]"
        return literal(value, self._argument)


def literal(value: Argument, nested: Callable[[Argument], str] | None = None) -> str:
    """Python source of a number, string, dtype, device, slice, or of a list or tuple of them."""
    inner = nested or literal
    if isinstance(value, tuple):
        return f"({', '.join(inner(item) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(inner(item) for item in value)}]"
    if isinstance(value, float) and not isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, slice):
        return f"slice({inner(value.start)}, {inner(value.stop)}, {inner(value.step)})"
    known = int | float | complex | str | torch.dtype | torch.layout | torch.memory_format
    if value is None or value is Ellipsis or isinstance(value, known):
        return repr(value)
    raise UnsupportedError(f"an argument of type {type(value).__name__} cannot be written as Python")


def _is_infix(call: Call) -> bool:
    method = call.function.removeprefix(_METHOD)
    return (method in _INFIX or method in _REFLECTED) and len(call.args) == 2 and not call.kwargs


def _index(index: Argument, argument: Callable[[Argument], str]) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    return ", ".join(_slice(part, argument) if isinstance(part, slice) else argument(part) for part in parts)


def _slice(part: slice, argument: Callable[[Argument], str]) -> str:
    ends = ["" if end is None else argument(end) for end in (part.start, part.stop)]
    return ":".join(ends if part.step is None else [*ends, argument(part.step)])


def _count_uses(recording: Recording) -> list[int]:
    """How often each call's outcome is read, by calls that are themselves read and by the results."""
    uses = [0] * len(recording.calls)
    for result in recording.results:
        if isinstance(result, Result):
            uses[result.call] += 1
    for index in range(len(recording.calls) - 1, -1, -1):
        call = recording.calls[index]
        if uses[index] or call.mutates:
            for read in _results_in([*call.args, *(value for _, value in call.kwargs)]):
                uses[read.call] += 1
    return uses


def _results_in(value: Argument) -> list[Result]:
    if isinstance(value, Result):
        return [value]
    if isinstance(value, Size):
        return _results_in(value.tensor)
    if isinstance(value, slice):
        return _results_in([value.start, value.stop, value.step])
    if isinstance(value, list | tuple):
        return [found for item in value for found in _results_in(item)]
    return []
