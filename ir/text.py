"""The text form: `dump` writes a graph, `parse` reads it back.

    graph(%x: f32[1x3x8x8]) {
      bits "features.0": weights=4, activations=8
      const %w: f32[4x3x3x3]
      %c: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %w)   # features.0 at net.py:12
      %q: i8[1x4x8x8]<scale=0.05, zero=-3> = quantize(%c)
      return output: %q
    }

`bits` are the widths that passes chose for layers, by module path; `weights=32` keeps a layer in floating point.
Lists of scales, zero points and levels are inside the type where they are short, and else in a table after the
graph (`@0 = (...)`, in the type `scale=@0`). Longer ones are named by element type, count and digest
(`scale=f32[1409024]@9f86d081884c7d65`) and stored beside the constants: `long_numbers` gives them, `parse` takes them.
So `parse(dump(g), params=g.params, numbers=long_numbers(g)) == g`. Elements of another type than float64 and int64
have it before them: `scale=f32(0.5, 0.25)`. Reals stored in few bits (`CodedNumbers`) are the form and its parts:
`scale=e8m0(u8(126, 125))`.

Dimensions whose size each call chooses are declared before the graph, with the example's size and the allowed range.
Sizes in types and attributes are then expressions over them:

    dim tokens = 128 in 2..512
    graph(%x: i64[1x${tokens}]) { ... %y: f32[${4*tokens}x8] = reshape{shape=(${4*tokens}, 8)}(%z) ... }

A name with other characters than letters, digits, `_`, `.` and `-` is written in quotes: `%"odd name"`.
"""

from __future__ import annotations

import json
import re

from ..specs.root_error import expect
from .coded_numbers import CodedNumbers
from .element_type import DType
from .encoding import Encoding
from .graph import NOWHERE, Graph, Node, check_graph
from .numbers import AnyNumbers
from .ops.base import attributes
from .precision import Precision
from .tensor_type import TensorType, Value

_MOST_INLINE = 4
_MOST_LISTED = 4096
_DIGEST_DIGITS = 16
_PLAIN = (DType.F64, DType.I64)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


def dump(graph: Graph) -> str:
    """Text of a graph: its structure and types; tensors of constants are not printed."""
    check_graph(graph, "dump(graph)")
    table = _NumberTable()
    lines = [f"dim {d.name} = {d.example} in {d.span}" for d in graph.dimensions.values()]
    lines += [f"graph({', '.join(_declaration(v, table) for v in graph.inputs)}) {{"]
    lines += [f"  bits {_name(layer)}: {_precision(p)}" for layer, p in graph.precisions.items()]
    lines += [f"  const {_declaration(v, table)}" for v in graph.constants]
    lines += [f"  {_node_text(node, table)}" for node in graph.nodes]
    returned = zip(graph.output_names, graph.outputs, strict=True)
    lines.append("  return " + ", ".join(f"{_name(n)}: %{_name(v.name)}" for n, v in returned))
    return "\n".join([*lines, "}", *table.lines()]) + "\n"


def node_text(node: Node) -> str:
    """One node as in the dump, for messages; long lists of scales are omitted."""
    expect(node, Node, "node_text(node)", "a node of a graph")
    return _node_text(node, _NumberTable())


def type_text(type: TensorType) -> str:
    """A type as in the dump, for messages."""
    expect(type, TensorType, "type_text(type)", "a `TensorType`")
    return _type_text(type, _NumberTable())


def long_numbers(graph: Graph) -> dict[str, AnyNumbers]:
    """Scales, zero points and levels that the text only refers to, by their name in the text."""
    check_graph(graph, "long_numbers(graph)")
    values = (*graph.inputs, *graph.constants, *graph.results)
    encodings = {v.type.quantization for v in values if v.type.quantization is not None}
    found = (part for encoding in encodings for numbers in _numbers(encoding) for part in numbers.parts)
    return {numbers_name(n): n for n in found if len(n) > _MOST_LISTED}


def numbers_name(numbers: AnyNumbers) -> str:
    """Element type, count and digest, which replace long lists of numbers in the text."""
    return f"{numbers.dtype.value}[{len(numbers)}]@{numbers.digest[:_DIGEST_DIGITS]}"


def _numbers(encoding: Encoding) -> tuple[AnyNumbers, ...]:
    levels = () if encoding.levels is None else (encoding.levels,)
    return encoding.scale, encoding.zero_point, *levels


class _NumberTable:
    """Collects lists of numbers that are too long for the text of a type."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def put(self, numbers: AnyNumbers) -> str:
        if isinstance(numbers, CodedNumbers):
            return f"{numbers.form}({', '.join(map(self.put, numbers.parts))})"
        if len(numbers) > _MOST_LISTED:
            return numbers_name(numbers)
        prefix = "" if numbers.dtype in _PLAIN else numbers.dtype.value
        if len(numbers) == 1:
            return f"{prefix}({numbers[0]!r},)" if prefix else repr(numbers[0])
        if len(numbers) <= _MOST_INLINE:
            return f"{prefix}{tuple(numbers)!r}"
        return f"{prefix}@{self._rows.setdefault(repr(tuple(numbers)), len(self._rows))}"

    def lines(self) -> list[str]:
        return [f"@{index} = {numbers}" for numbers, index in self._rows.items()]


def _precision(precision: Precision) -> str:
    given = {"weights": precision.weights, "activations": precision.activations}
    return ", ".join(f"{name}={bits}" for name, bits in given.items() if bits is not None)


def _name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _declaration(value: Value, table: _NumberTable) -> str:
    return f"%{_name(value.name)}: {_type_text(value.type, table)}"


def _type_text(type: TensorType, table: _NumberTable) -> str:
    plain = f"{type.dtype.value}[{'x'.join(map(str, type.shape))}]"
    if type.quantization is None:
        return plain
    q = type.quantization
    parts = [] if q.bits == 8 * type.dtype.bytes else [f"bits={q.bits}"]
    parts += [] if q.levels is None else [f"levels={table.put(q.levels)}"]
    parts += [f"scale={table.put(q.scale)}", f"zero={table.put(q.zero_point)}"]
    parts += [] if q.axis is None else [f"axis={q.axis}"]
    parts += [] if q.group_size is None else [f"group={q.group_size}"]
    return f"{plain}<{', '.join(parts)}>"


def _node_text(node: Node, table: _NumberTable) -> str:
    results = ", ".join(_declaration(v, table) for v in node.outputs)
    shown = ", ".join(f"{name}={value!r}" for name, value in attributes(node.op).items())
    operands = ", ".join("none" if v is None else f"%{_name(v.name)}" for v in node.inputs)
    text = f"{results} = {node.op.name}{f'{{{shown}}}' if shown else ''}({operands})"
    if node.source == NOWHERE:
        return text
    return f"{text}   # {json.dumps([node.source.module, node.source.location])[1:-1]}"
