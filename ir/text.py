"""The text form: `dump` writes a graph, `parse` reads it back, `parse(dump(g), params=g.params) == g`.

    graph(%x: f32[1x3x8x8]) {
      const %w: f32[4x3x3x3]
      %c: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %w)   # features.0 at net.py:12
      %q: i8[1x4x8x8]<scale=0.05, zero=-3> = quantize(%c)
      return output: %q
    }

Long lists of scales stand in a table after the graph (`@0 = (...)`) and are named in the type (`scale=@0`).
A name with other characters than letters, digits, `_`, `.` and `-` is written in quotes: `%"odd name"`.
"""

from __future__ import annotations

import json
import re

from .graph import NOWHERE, Graph, Node
from .ops.base import attributes
from .tensor_type import TensorType, Value

_INLINE_SCALES = 4
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


def dump(graph: Graph) -> str:
    """Text of a graph: its structure and types; tensors of constants are not printed."""
    table = _ScaleTable()
    lines = [f"graph({', '.join(_declaration(v, table) for v in graph.inputs)}) {{"]
    lines += [f"  const {_declaration(v, table)}" for v in graph.constants]
    lines += [f"  {_node_text(node, table)}" for node in graph.nodes]
    returned = zip(graph.output_names, graph.outputs, strict=True)
    lines.append("  return " + ", ".join(f"{_name(n)}: %{_name(v.name)}" for n, v in returned))
    return "\n".join([*lines, "}", *table.lines()]) + "\n"


def node_text(node: Node) -> str:
    """One node as it stands in the dump, for messages; long scale lists are left out."""
    return _node_text(node, _ScaleTable())


def type_text(type: TensorType) -> str:
    """A type as it stands in the dump, for messages."""
    return _type_text(type, _ScaleTable())


class _ScaleTable:
    """Collects the lists of numbers that are too long to stand inside a type."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def put(self, numbers: tuple[float, ...] | tuple[int, ...]) -> str:
        if len(numbers) == 1:
            return repr(numbers[0])
        if len(numbers) <= _INLINE_SCALES:
            return repr(tuple(numbers))
        return f"@{self._rows.setdefault(repr(tuple(numbers)), len(self._rows))}"

    def lines(self) -> list[str]:
        return [f"@{index} = {numbers}" for numbers, index in self._rows.items()]


def _name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _declaration(value: Value, table: _ScaleTable) -> str:
    return f"%{_name(value.name)}: {_type_text(value.type, table)}"


def _type_text(type: TensorType, table: _ScaleTable) -> str:
    plain = f"{type.dtype.value}[{'x'.join(map(str, type.shape))}]"
    if type.quantization is None:
        return plain
    q = type.quantization
    parts = [] if q.bits == 8 * type.dtype.bytes else [f"bits={q.bits}"]
    parts += [f"scale={table.put(q.scale)}", f"zero={table.put(q.zero_point)}"]
    parts += [] if q.axis is None else [f"axis={q.axis}"]
    parts += [] if q.group_size is None else [f"group={q.group_size}"]
    return f"{plain}<{', '.join(parts)}>"


def _node_text(node: Node, table: _ScaleTable) -> str:
    results = ", ".join(_declaration(v, table) for v in node.outputs)
    shown = ", ".join(f"{name}={value!r}" for name, value in attributes(node.op).items())
    operands = ", ".join("none" if v is None else f"%{_name(v.name)}" for v in node.inputs)
    text = f"{results} = {node.op.name}{f'{{{shown}}}' if shown else ''}({operands})"
    if node.source == NOWHERE:
        return text
    return f"{text}   # {json.dumps([node.source.module, node.source.location])[1:-1]}"
