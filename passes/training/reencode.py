"""An integer graph with other integers and encodings: types of all values consistent, accumulators proven again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...ir import Encoding, Graph, IRError, Node, Value
from ...ir.ops.accumulate import fixed_point, prove_accumulator
from ...ir.ops.layer import Layer
from ..errors import PassError
from ..weighted_layers import is_layer


def reencode(graph: Graph, encodings: Mapping[str, Encoding], constants: Mapping[str, Tensor]) -> Graph:
    """The graph with these encodings of values and these integers of constants; PassError if a layer could overflow."""

    def placed(value: Value) -> Value:
        encoding = encodings.get(value.name)
        return value if encoding is None else Value(value.name, value.type.quantized(encoding))

    nodes = tuple(node.with_values(placed) for node in graph.nodes)
    inputs, outputs = (tuple(placed(value) for value in values) for values in (graph.inputs, graph.outputs))
    made = Graph(inputs, outputs, nodes, graph.params | constants, graph.output_names, graph.precisions)
    for node in made.nodes:
        if is_layer(node.op) and node.output.type.is_quantized:
            _prove(made, node, node.op)
    return made


def _prove(graph: Graph, node: Node, op: Layer) -> None:
    x, weight = node.operand("x"), node.operand("weight")
    bias, residual = node.optional("bias"), node.optional("residual")
    assert x.type.quantization is not None
    integers = None if bias is None else graph.tensor(bias)
    stored = graph.tensor(weight)
    try:
        added = None if residual is None else residual.type
        fixed = fixed_point(x.type, weight.type, node.output.type, residual=added, clamp=op.clamp)
        prove_accumulator(
            op.rows(stored), integers, fixed, x=x.type.quantization, phases=op.phases(weight.type)
        )
    except IRError as err:
        place = str(node.source) or str(node.output)
        raise PassError(
            f"{place}: {err.message}, after training; lower learning_rate, or set learn_steps: false"
        ) from err
