"""The body of the emitted `forward`: Python statements for each node, on variables that are reused after their last
use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, count

from ...ir import Graph, Node, Value
from ...ir.ops.accumulate import Clamp as Bounds
from ...ir.ops.base import Op
from ...ir.ops.layer import Layer as AccumulatingLayer
from .functions import function_name
from .in_place import in_place
from .layout import Layer, Layout
from .literal import literal
from .names import comment, identifier, unique
from .record import Recording, record
from .shapes import shape_check
from .statements import statements
from .style import Style

_POOL = ("x", "y", "z", "u", "v", "w")
_FORBIDDEN = frozenset({"self", "torch", "nn", "F"})


def write_forward(
    graph: Graph,
    layout: Layout,
    style: Style,
    *,
    reserved: Collection[str] = (),
    updated: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """The names of the arguments and the statements of `forward`.

    `reserved` names are not used as variables; `updated` are values that take the memory of an argument.
    """
    return _Writer(graph, layout, style, _FORBIDDEN | set(reserved), updated).write()


class _Writer:
    def __init__(
        self,
        graph: Graph,
        layout: Layout,
        style: Style,
        forbidden: frozenset[str],
        updated: Collection[str],
    ) -> None:
        self._graph = graph
        self._updated = updated
        self._layout = layout
        self._style = style
        self._recorder = _Recorder()
        self._integer_weights = layout.integer_weights
        self._buffers = {path: layout.names.tensor(path) for path in style.buffers}
        self._variables = _Variables(graph, forbidden)
        self._held = self._held_values()
        self._device = ""

    def write(self) -> tuple[list[str], list[str]]:
        arguments = [self._variables.bind_input(value) for value in self._graph.inputs]
        self._device = f"{arguments[0]}.device" if arguments else ""
        lines: list[str] = []
        for value, argument in zip(self._graph.inputs, arguments, strict=True):
            entered = self._style.enter(value, argument)
            if entered != argument:
                lines.append(f"{argument} = {entered}")
        for index, node in enumerate(self._graph.nodes):
            name = node.outputs[0].name
            if name in self._held or self._style.groups.get(name, (node,))[0] != node:
                continue
            *before, last = self._statements(index, node)
            target, _, expression = last.partition(" = ")
            lines += [*before, *([last + self._remark(index, node)] if target != expression else [])]
        results = [self._result(value) for value in self._graph.outputs]
        lines.append(f"return {', '.join(results)}")
        return arguments, [*shape_check(self._graph, arguments, self._variables.dimensions, lines), *lines]

    def _result(self, value: Value) -> str:
        variable = self._variable(value)
        return variable if self._graph.is_constant(value) else self._style.leave(value, variable)

    def _held_values(self) -> dict[str, str]:
        """Submodules that are values, or from which a value is cast, by the name of the value; read at each use."""
        held: dict[str, str] = {}
        for index, node in enumerate(self._graph.nodes):
            layer, name = self._layout.layers.get(index), node.outputs[0].name
            read = [held.get(value.name) for value in node.operands]
            if layer is not None and layer.kind.is_held:
                held[name] = self._layout.names.expression(layer.path)
            elif len(read) == 1 and read[0] and self._style.whole(node, read, self._buffers) == read[0]:
                held[name] = read[0]
        return held

    def _statements(self, index: int, node: Node) -> list[str]:
        group = self._style.groups.get(node.outputs[0].name, (node,))
        inputs = [value for member in group for value in member.inputs]
        operands = [None if value is None else self._variable(value) for value in inputs]
        lines: list[str] = []
        whole = self._style.whole(node, operands, self._buffers)
        layer = self._layout.layers.get(index)
        function = function_name(node)
        if whole is not None:
            expressions: tuple[str, ...] = (whole,)
        elif layer is not None and layer.kind.is_whole:
            expressions = (self._whole_call(node.op, layer, operands),)
        elif layer is not None:
            expressions = (self._layer_call(node, layer, self._read(node, operands)),)
            expressions = tuple(map(self._style.store, node.outputs, expressions))
        elif function is not None:
            expressions = (f"{function}({', '.join(map(str, self._read(node, operands)))})",)
            expressions = tuple(map(self._style.store, node.outputs, expressions))
        else:
            raw = self._style.is_raw(node)
            recording = self._recorder.recording(node)
            if node.outputs[0].name in self._updated:
                recording = in_place(recording)
            read = operands if raw else self._read(node, operands)
            fresh = self._variables.fresh_names().__next__
            lines, expressions = statements(recording, read, fresh, self._variables.dimensions, self._device)
            is_quantized = any(value.type.is_quantized for value in node.outputs)
            if (
                is_quantized and not raw and len(expressions) < len(node.outputs)
            ):  # one call computes all of them
                results = tuple(fresh() for _ in node.outputs)
                lines = [*lines, f"{', '.join(results)} = {', '.join(expressions)}"]
                expressions = results
            if len(expressions) == len(node.outputs) and not raw:
                expressions = tuple(map(self._style.store, node.outputs, expressions))
        targets = [name for member in group for name in self._variables.assign(member)]
        return [*lines, f"{', '.join(targets)} = {', '.join(expressions)}"]

    def _read(self, node: Node, operands: Sequence[str | None]) -> list[str | None]:
        return [
            None if text is None else self._style.read(node, index, text)
            for index, text in enumerate(operands)
        ]

    def _whole_call(self, op: Op, layer: Layer, operands: Sequence[str | None]) -> str:
        read = (operands[0], op.optional(operands, "residual"))  # indices in an embedding, x elsewhere
        taken = ", ".join(text for text in read if text is not None)
        return f"{self._layout.names.expression(layer.path)}({taken})"

    def _variable(self, value: Value) -> str:
        if value.name in self._held:
            return self._held[value.name]
        if not self._graph.is_constant(value):
            return self._variables[value]
        if value.name in self._integer_weights:
            path, attribute = self._integer_weights[value.name]
            return f"{self._layout.names.expression(path)}.real_{attribute}()"
        return self._layout.names.tensor(self._layout.homes[value.name].path)

    def _layer_call(self, node: Node, layer: Layer, operands: Sequence[str | None]) -> str:
        argument = operands[0]  # indices in an embedding, x elsewhere
        if layer.kind.pad:
            argument = f"F.pad({argument}, {literal(layer.kind.pad)})"
        text = f"{self._layout.names.expression(layer.path)}({argument})"
        if not isinstance(node.op, AccumulatingLayer):
            return text
        residual = node.op.optional(operands, "residual")
        return clamped(text if residual is None else f"{text} + {residual}", node.op.clamp)

    def _remark(self, index: int, node: Node) -> str:
        where = node.source.location if index in self._layout.layers else str(node.source)
        return f"  # {comment(where)}" if where else ""


def clamped(expression: str, bounds: Bounds) -> str:
    """`expression` within a fused activation, as in the operators' reference."""
    if bounds is None:
        return expression
    low, high = bounds
    if (low, high) == (0.0, float("inf")):
        return f"torch.relu({expression})"
    ends = [None if end in (float("-inf"), float("inf")) else end for end in (low, high)]
    return f"torch.clamp({expression}, {literal(ends[0])}, {literal(ends[1])})"


class _Recorder:
    """Recordings of nodes, each operator once for the same operand types."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Recording] = {}

    def recording(self, node: Node) -> Recording:
        """The torch calls of the node's reference."""
        types = tuple(type and type.real() for type in node.operand_types)
        if (node.op, types) not in self._known:
            self._known[node.op, types] = record(node, types)
        return self._known[node.op, types]


class _Variables:
    """Names of the live values. A result takes the name of an operand whose last use is that node."""

    def __init__(self, graph: Graph, forbidden: frozenset[str]) -> None:
        self.dimensions: dict[str, str] = {}
        for name in graph.dimensions:
            taken = {*forbidden, *self.dimensions.values(), *(identifier(v.name) for v in graph.inputs)}
            self.dimensions[name] = unique(identifier(name), taken)
        self._forbidden = forbidden.union(self.dimensions.values())
        self._names: dict[str, str] = {}
        self._inputs: set[str] = set()
        kept = {value.name for value in graph.outputs}
        self._left = {name: len(nodes) for name, nodes in graph.users.items() if name not in kept}
        self._kept = kept

    def __getitem__(self, value: Value) -> str:
        return self._names[value.name]

    def bind_input(self, value: Value) -> str:
        """The argument for a graph input."""
        wish = identifier(value.name)
        name = unique(f"{wish}_" if wish in self._forbidden else wish, self._names.values())
        self._names[value.name] = name
        self._inputs.add(name)
        return name

    def fresh_names(self) -> Iterator[str]:
        """Names that no live value has, one after the other."""
        taken = {*self._names.values(), *self._forbidden}
        numbered = (f"{letter}{number}" for number in count(1) for letter in _POOL)
        return (name for name in chain(_POOL, numbered) if name not in taken)

    def assign(self, node: Node) -> tuple[str, ...]:
        """Names for the node's results, after its operands were read; `_` for a result without readers."""
        reused = [name for name in self._release(node) if name not in self._inputs or name in _POOL]
        available = chain(reused, (name for name in self.fresh_names() if name not in reused))
        targets = []
        for value in node.outputs:
            if value.name in self._kept or value.name in self._left:
                self._names[value.name] = next(available)
                targets.append(self._names[value.name])
            else:
                targets.append("_")
        return tuple(targets)

    def _release(self, node: Node) -> list[str]:
        """The names of operands that no later node reads, which are free from here on."""
        free = []
        for value in node.operands:
            if value.name in self._left and value.name in self._names:
                self._left[value.name] -= 1
                if not self._left[value.name]:
                    free.append(self._names.pop(value.name))
        return free
