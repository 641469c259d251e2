"""Python statements of recorded calls, with intermediate results inlined if that keeps the order of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...ir.sizes import Size, text_of
from .literal import Argument, literal
from .record import Call, Operand, Recording, Result, TensorSize

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


_METHOD = "torch.Tensor."  # `resolve_name` of a method


def statements(
    recording: Recording,
    operands: Sequence[str | None],
    fresh: Callable[[], str],
    dimensions: Mapping[str, str] = {},
    device: str = "",
) -> tuple[list[str], tuple[str, ...]]:
    """Python statements, and the expressions of the results after them, on the expressions `operands`.

    `dimensions` has the variable of each dimension, `device` is that of tensors which a call makes from sizes only.

    `fresh` generates names for intermediate results; a result with a single reader is inlined. If one call returns
    several results, they are a single expression of a tuple.
    """
    return _Writer(recording, operands, fresh, dimensions, device).write()


@dataclass(frozen=True, slots=True)
class Source:
    """An argument that is written unchanged."""

    text: str


class _Writer:
    """The texts of calls so far; infix expressions are marked."""

    def __init__(
        self,
        recording: Recording,
        operands: Sequence[str | None],
        fresh: Callable[[], str],
        dimensions: Mapping[str, str],
        device: str,
    ) -> None:
        self._dimensions, self._device = dimensions, device
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
        kwargs = call.kwargs
        if self._device and not _results_in(call.args) and not _operands_in(call.args):
            kwargs = tuple((key, Source(self._device) if key == "device" else item) for key, item in kwargs)
        return f"{name}({self._arguments(call.args, kwargs)})"

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
        compound |= isinstance(value, Size) and not text.isidentifier()
        return f"({text})" if compound or text.startswith("-") else text

    def _argument(self, value: Argument) -> str:
        if isinstance(value, Source):
            return value.text
        if isinstance(value, TensorSize):
            return f"{self._argument(value.tensor)}.shape[{value.dimension}]"
        if isinstance(value, Size):
            return text_of(value, self._dimensions)
        if isinstance(value, Operand):
            text = self._operands[value.index]
            assert text is not None
            return text
        if isinstance(value, Result):
            text = self._texts[value.call]
            return text if value.item is None else f"{text}[{value.item}]"
        return literal(value, self._argument)


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
    """Use counts of each call's result, by live calls and by the outputs."""
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
    if isinstance(value, TensorSize):
        return _results_in(value.tensor)
    if isinstance(value, slice):
        return _results_in([value.start, value.stop, value.step])
    if isinstance(value, list | tuple):
        return [found for item in value for found in _results_in(item)]
    return []


def _operands_in(value: Argument) -> bool:
    """True if an argument is, or contains, an operand of the node."""
    if isinstance(value, list | tuple):
        return any(map(_operands_in, value))
    return isinstance(value, Operand)
