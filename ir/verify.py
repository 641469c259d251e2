"""The verifier: invariants of every graph. The pipeline runs it after each pass."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from .codebooks import computes_on_codes, integer_type
from .digraph import digraph
from .errors import IRError, VerifyError
from .graph import Graph, Node, check_graph
from .ops.base import Quantized
from .ops.quantize import Dequantize
from .sizes import Dimension, dimensions_of, sizes_in
from .tensor_type import TensorType, Value
from .text import dump, type_text


def verify(graph: Graph) -> Graph:
    """Returns `graph`; VerifyError with all violations, each shown inside the dump.

    Values are defined once and before use, result types are those that the operator infers, constants have the type
    of their tensor, data movement keeps the encoding, codes of a codebook are only moved and dequantized unless they
    are those of a constant and represent integers, outputs have distinct names.
    """
    check_graph(graph, "verify(graph)")
    problems = {**_graph_problems(graph)}
    defined = {v.name: v for v in (*graph.inputs, *graph.constants)}
    if len(defined) != len(graph.inputs) + len(graph.constants):
        problems.setdefault(-1, []).append("an input and a constant share a name, or two inputs do")
    for index, node in enumerate(graph.nodes):
        found = [*_operand_problems(node, defined, graph), *_definition_problems(node, defined)]
        if not found:
            found = _type_problems(node, graph)
        if found:
            problems.setdefault(index, []).extend(found)
        defined.update((v.name, v) for v in node.outputs)
    for value in graph.outputs:
        if defined.get(value.name) != value:
            problems.setdefault(-1, []).append(f"output {value} is not defined with this type")
    if problems:
        raise VerifyError(_annotated(graph, problems))
    return graph


def _graph_problems(graph: Graph) -> dict[int, list[str]]:
    found = []
    if len(graph.output_names) != len(graph.outputs) or len(set(graph.output_names)) != len(
        graph.output_names
    ):
        found.append("outputs need one name each, all different")
    declared: dict[str, Dimension] = {}
    for value in graph.inputs:
        for size in sizes_in(value.type.shape):
            known = dimensions_of(size)
            if [d.size for d in known.values()] != [size]:
                found.append(f"input {value} has the size {size}, which is not a plain dimension")
            if any(declared.setdefault(name, d) != d for name, d in known.items()):
                found.append(f"input {value} has a dimension of another example or range than an earlier one")
    for value in graph.constants:
        tensor = graph.params.entry(value.name)
        if tuple(tensor.shape) != value.type.shape or tensor.dtype != value.type.dtype.torch:
            found.append(
                f"constant {value} is {tuple(tensor.shape)} {tensor.dtype}, not {type_text(value.type)}"
            )
    return {-1: found} if found else {}


def _operand_problems(node: Node, defined: dict[str, Value], graph: Graph) -> list[str]:
    found = []
    for value in node.operands:
        known = defined.get(value.name)
        if known is None:
            found.append(f"{value} is not defined {_when_it_is(value, node, graph)}")
        elif known != value:
            found.append(f"{value} is used as {type_text(value.type)}, defined as {type_text(known.type)}")
    return found


def _when_it_is(value: Value, node: Node, graph: Graph) -> str:
    """Reason why a value is missing where it is read: no node computes it, a later node does, or it depends on
    itself.
    """
    maker = graph.producers.get(value.name)
    if maker is None:
        return "by any node"
    flow = digraph(graph)
    if any(nx.has_path(flow, result.name, value.name) for result in node.outputs):
        start, end = node.outputs[0].name, value.name
        way = [f"%{vertex}" for vertex in nx.shortest_path(flow, start, end) if isinstance(vertex, str)]
        return f"before its use: it depends on itself, {' -> '.join([str(value), *way])}"
    return "before its use; put its node first"


def _definition_problems(node: Node, defined: dict[str, Value]) -> list[str]:
    return [f"{value} is defined twice" for value in node.outputs if value.name in defined]


def _type_problems(node: Node, graph: Graph) -> list[str]:
    try:
        inferred = node.op.infer(*node.operand_types)
        if len(inferred) != len(node.outputs):
            return [f"the operator infers {len(inferred)} results"]
        if _touches_quantized(node):
            return _quantized_problems(node, graph, inferred)
    except IRError as err:
        return [err.message]
    except TypeError:
        return [f"{node.op.name} does not take {len(node.inputs)} operands"]
    return [
        f"the operator infers {type_text(expected)}"
        for expected, actual in zip(inferred, node.output_types, strict=True)
        if expected != actual
    ]


def _touches_quantized(node: Node) -> bool:
    return any(type is not None and type.is_quantized for type in (*node.operand_types, *node.output_types))


def _quantized_problems(node: Node, graph: Graph, inferred: tuple[TensorType, ...]) -> list[str]:
    quantized = (v for v in (*node.operands, *node.outputs) if v.type.quantization is not None)
    codes = [
        str(v)
        for v in quantized
        if v.type.quantization
        and not v.type.quantization.is_integer
        and not computes_on_codes(graph, node, v)
    ]
    if codes and node.op.quantized is not Quantized.MOVE and not isinstance(node.op, Dequantize):
        return [
            f"{node.op.name} computes on integers, and {', '.join(codes)} is stored in codes; dequantize it"
        ]
    found = [
        f"the operator infers {type_text(expected)}"
        for expected, actual in zip(inferred, node.output_types, strict=True)
        if expected.shape != actual.shape
        or (node.op.quantized is Quantized.MOVE and expected.quantization != actual.quantization)
    ]
    integers = [
        type if v is None or not computes_on_codes(graph, node, v) else integer_type(v.type)
        for v, type in zip(node.inputs, node.operand_types, strict=True)
    ]
    node.op.check_quantized(integers, node.output_types)
    return found


def _annotated(graph: Graph, problems: dict[int, list[str]]) -> str:
    inside = replace(graph, outputs=(), output_names=())
    lines = dump(inside).splitlines()
    first_node = 1 + len(inside.dimensions) + len(inside.precisions) + len(inside.constants)
    shown = [f"graph: {message}" for message in problems.get(-1, [])]
    for index, messages in sorted(problems.items()):
        if index >= 0:
            shown.append(lines[first_node + index].strip())
            shown += [f"  {message}" for message in messages]
    return "\n".join(shown)
