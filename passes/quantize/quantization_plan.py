"""Selection of the nodes that compute on integers, from the graph's structure and the spec, before calibration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ...ir import DType, Graph, Node, Value
from ...ir.affine import affine_inputs, is_movement
from ...ir.ops.attention import Attention
from ...ir.ops.base import Quantized
from ...ir.ops.compare import Compare
from ...ir.ops.norm import StatisticsNorm
from ...ir.ops.recurrent import Recurrent
from ...ir.ops.softmax import Softmax
from ..weighted_layers import is_layer


@dataclass(frozen=True)
class Plan:
    """Selected nodes, by their first result. `declined` contains the reason why a node stays in float.

    `observed` maps the names of the values that calibration measures to the dimensions of their means. `states` are
    pairs of an input that continues an output at the next call and that output, of which at least one is to be an
    integer.
    """

    computing: frozenset[str]
    moving: frozenset[str]
    declined: Mapping[str, str]
    observed: Mapping[str, Collection[int]]
    states: tuple[tuple[Value, Value], ...] = ()

    def is_integer(self, node: Node) -> bool:
        """True for a node that is to compute on integers, or move them."""
        return node.outputs[0].name in self.computing or node.outputs[0].name in self.moving


def make_plan(
    graph: Graph,
    float_layers: Callable[[str], bool],
    *,
    in_float: Mapping[str, str] | None = None,
    state: Mapping[str, str] | None = None,
    wide: Collection[str] = (),
) -> Plan:
    """Selects each node with an integer form to compute on integers unless `float_layers(module)`; data movement
    follows.

    The nodes that `in_float` contains, by their results, stay in float with its reasons. Nodes whose results are only
    divisors, operands of comparisons, or masks of an attention stay in float, too: these uses need relative precision
        of small numbers.

        Movement is on integers if its operand is an integer already, or if a later node needs integers: the earlier the
        conversion, the fewer bytes move. A norm by statistics computes on integers if it is between nodes that do, or
    between inputs and outputs that are `wide` as integers: it would be no less exact in float, but a float operand or
        result should not lose precision for it.
    """
    declined: dict[str, str] = dict(in_float or {})
    declined |= dict.fromkeys(_relative(graph), "its result is only divided by, compared, or a mask")
    computing: set[str] = set()
    encoded, independent = _encodings(graph), _independent(graph)
    for node in graph.nodes:
        if node.outputs[0].name in encoded:
            declined[node.outputs[0].name] = "it is part of the input's encoding"
        if node.op.quantized is Quantized.MOVE or node.outputs[0].name in declined or not _is_real(node):
            continue
        reason = _why_float(graph, node, float_layers, independent)
        if reason is None:
            computing.add(node.outputs[0].name)
        else:
            declined[node.outputs[0].name] = reason
    norms = [n for n in graph.nodes if isinstance(n.op, StatisticsNorm) and n.output.name in computing]
    computing -= {node.output.name for node in norms}
    moving = _moving(graph, computing, float_layers)
    between = _between_integers(graph, norms, computing | moving, wide)
    computing |= between
    alone = [node.output.name for node in norms if node.output.name not in between]
    declined |= dict.fromkeys(alone, "its operand is a float, or its result is read as one")
    observed: dict[str, set[int]] = {
        v.name: set()
        for node in graph.nodes
        if node.outputs[0].name in computing or node.outputs[0].name in moving
        for v in (*_data_operands(node), *node.outputs)
        if v.type.dtype is DType.F32 and not graph.is_constant(v)
    }
    for node in graph.nodes:
        if is_layer(node.op) and node.outputs[0].name in computing:
            observed[node.operand("x").name].add(node.op.channel_axis(node.output.type))
    outputs = dict(zip(graph.output_names, graph.outputs, strict=True))
    inputs = {v.name: v for v in graph.inputs}
    pairs = [(inputs[name], outputs[output]) for name, output in (state or {}).items()]
    states = tuple(
        pair for pair in pairs if any(v.name in observed for v in pair) and not graph.is_constant(pair[1])
    )
    for value in (v for pair in states for v in pair):
        observed.setdefault(value.name, set())
    return Plan(frozenset(computing), frozenset(moving), declined, observed, states)


def _is_real(node: Node) -> bool:
    """True if a node has a floating-point operand or result."""
    return any(v.type.dtype.is_floating for v in (*node.operands, *node.outputs))


def _between_integers(
    graph: Graph, norms: Sequence[Node], integers: Collection[str], wide: Collection[str]
) -> set[str]:
    """Results of the norms whose operand is an integer, and whose result only nodes on integers read."""
    outputs = {v.name for v in graph.outputs if v.name not in wide}
    integers = {*integers, *(v.name for v in graph.inputs if v.name in wide)}
    found = {node.output.name for node in norms} - outputs
    while True:
        known = {*integers, *found}
        apart = {
            node.output.name
            for node in norms
            if node.output.name in found and not _is_between(graph, node, known)
        }
        if not apart:
            return found
        found -= apart


def _is_between(graph: Graph, node: Node, integers: Collection[str]) -> bool:
    operand = node.operand("x")
    producer = graph.producers.get(operand.name)
    readers = graph.users.get(node.output.name, ())
    return (operand if producer is None else producer.outputs[0]).name in integers and all(
        reader.outputs[0].name in integers for reader in readers
    )


def _encodings(graph: Graph) -> frozenset[str]:
    """Results of nodes that only scale and shift an input for a later node."""
    chains = [chain for name, chain in affine_inputs(graph).items() if graph.users.get(name)]
    return frozenset(node.output.name for chain in chains for node in chain.nodes if not is_movement(node.op))


def _independent(graph: Graph) -> frozenset[str]:
    """Values that depend on no input: constants, and results computed from them and from the sizes of a call."""
    found = {value.name for value in graph.constants}
    for node in graph.nodes:
        if all(value.name in found for value in node.operands):
            found.update(value.name for value in node.outputs)
    return frozenset(found)


def _why_float(
    graph: Graph, node: Node, float_layers: Callable[[str], bool], independent: Collection[str]
) -> str | None:
    if node.op.quantized is Quantized.NEVER:
        return f"{node.op.name} has no integer form"
    if node.op.facts.poles:
        return f"{node.op.name} has a pole, which eight bits do not resolve"
    if node.op.facts.whole:
        return f"{node.op.name} turns an error of eight bits into one of a whole number"
    if float_layers(node.source.module):
        return "the spec keeps this layer in float"
    other = next((v.type for v in (*_reals(node), *node.outputs) if v.type.dtype is not DType.F32), None)
    if other is not None and other.dtype.is_floating:
        return f"it computes in {str(other.dtype.torch).removeprefix('torch.')}; set `dtype: float32` under `model`"
    if other is not None or (len(node.outputs) != 1 and not isinstance(node.op, Recurrent)):
        return "an operand or result is not float32"
    data = _data_operands(node)
    if all(v.name in independent for v in data):
        return "it reads constants only, or sizes of the inputs"
    weights = [v for v in _reals(node) if v not in data]
    if not all(graph.is_constant(v) for v in weights):
        return "a weight is not a constant"
    return None


def _relative(graph: Graph) -> set[str]:
    """Nodes without weights, by their first result, all of whose readers need relative precision."""
    found: set[str] = set()
    outputs = {v.name for v in graph.outputs}
    for node in reversed(graph.nodes):
        if is_layer(node.op) or node.op.quantized is Quantized.NEVER or len(node.outputs) != 1:
            continue
        name = node.outputs[0].name
        readers = graph.users.get(name, ())
        if readers and name not in outputs and all(_reads_ratio(r, name, found) for r in readers):
            found.add(name)
    return {name for name in found if graph.producers[name].op.quantized is not Quantized.MOVE}


def _reads_ratio(reader: Node, name: str, found: Collection[str]) -> bool:
    named = zip(reader.operand_names, reader.operands, strict=True)
    at = {operand for operand, value in named if value.name == name}
    match reader.op:
        case Compare():
            return True
        case Attention():
            return at == {"mask"}
        case op if op.facts.poles:
            return at <= set(op.facts.poles)
        case _:
            return reader.outputs[0].name in found


def _reals(node: Node) -> tuple[Value, ...]:
    """The operands except the masks of softmax and attention."""
    if isinstance(node.op, Attention):
        bias = node.optional("bias")
        return (*node.operands[:3], *(() if bias is None else (bias,)))
    return (node.operand("x"),) if isinstance(node.op, Softmax) else node.operands


def _data_operands(node: Node) -> tuple[Value, ...]:
    """The operands that are activations."""
    if is_layer(node.op):
        return tuple(v for v in (node.operand("x"), node.optional("residual")) if v is not None)
    if isinstance(node.op, Recurrent):
        first = (v for v in node.op.states_of(node.inputs) if v is not None)
        return (node.operand("x"), *first)
    return (node.operand("x"),) if node.op.real_operands else _reals(node)


def _moving(graph: Graph, computing: set[str], float_layers: Callable[[str], bool]) -> set[str]:
    candidates = [
        node
        for node in graph.nodes
        if node.op.quantized is Quantized.MOVE
        and not float_layers(node.source.module)
        and all(v.type.dtype is DType.F32 and not v.type.is_quantized for v in node.outputs)
    ]
    wanted = {v.name for node in graph.nodes if node.outputs[0].name in computing for v in node.operands}
    moving: set[str] = set()
    for node in reversed(candidates):
        if any(v.name in wanted for v in node.outputs):
            moving.add(node.outputs[0].name)
            wanted.update(v.name for v in node.operands)
    integers = {
        v.name for node in graph.nodes if node.outputs[0].name in computing | moving for v in node.outputs
    }
    for node in candidates:
        if any(v.name in integers for v in node.operands):
            moving.add(node.outputs[0].name)
            integers.update(v.name for v in node.outputs)
    return moving
