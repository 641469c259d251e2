"""Two interpreters of a graph: `run` gives the float meaning, `run_integer` the exact integer meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..specs.root_error import expect
from .codebooks import decode_codebooks
from .errors import IRError, ShapeError
from .graph import Graph, Node, check_graph
from .ops.base import IntegerCall
from .sizes import Size, dimensions_of, evaluated
from .tensor_type import TensorType, Value
from .text import node_text

Observer = Callable[[Value, Tensor], None]
Rounding = Callable[[Value, Tensor], Tensor]


def round_to_encoding(value: Value, tensor: Tensor) -> Tensor:
    """Reals rounded to those of a value's encoding, with a straight-through gradient; unchanged without an encoding."""
    quantization = value.type.quantization
    if quantization is None:
        return tensor
    with torch.no_grad():
        rounded = quantization.dequantize(quantization.quantize(tensor), dtype=tensor.dtype)
        error = rounded - tensor
    return tensor + error


def run(
    graph: Graph,
    inputs: Sequence[Tensor],
    *,
    observe: Observer | None = None,
    params: Mapping[str, Tensor] | None = None,
    rounding: Rounding = round_to_encoding,
) -> list[Tensor]:
    """Float meaning of the graph, differentiable; one tensor for each output.

    A quantized value is carried as the reals that it represents, rounded to its encoding, with a straight-through
    gradient. `observe` is called with each value and its tensor. For training, `params` replaces constants (as
    reals), and `rounding` rounds the result of a node to its encoding.
    """
    graph, bound = _bind(graph, inputs, "run(graph, inputs)")
    values = {**(params or {}), **bound}
    uses = _Uses(graph)
    for node in graph.nodes:
        _load(graph, node.operands, values, _real)
        operands = [None if v is None else values[v.name] for v in node.inputs]
        for value, tensor in zip(node.outputs, _call(node, operands), strict=True):
            values[value.name] = rounding(value, tensor)
            if observe is not None:
                observe(value, values[value.name])
        uses.release(node, values)
    _load(graph, graph.outputs, values, _real)
    return [values[v.name] for v in graph.outputs]


def run_integer(graph: Graph, inputs: Sequence[Tensor], *, observe: Observer | None = None) -> list[Tensor]:
    """Exact integer meaning; one tensor for each output, in the output's storage dtype.

    Quantized values are integers (int64 during computation), all others are floats computed by the reference.
    OverflowBoundError if an intermediate leaves its range. The emitted C computes the same bytes.
    """
    check_graph(graph, "run_integer(graph, inputs)")
    graph = decode_codebooks(graph)
    graph, bound = _bind(graph, inputs, "run_integer(graph, inputs)")
    values = {v.name: _widen(v.type, bound[v.name]) for v in graph.inputs}
    uses = _Uses(graph)
    with torch.no_grad():
        for node in graph.nodes:
            _load(graph, node.operands, values, _widen)
            operands = [None if v is None else values[v.name] for v in node.inputs]
            for value, tensor in zip(node.outputs, call_integer(node, operands), strict=True):
                values[value.name] = tensor
                if observe is not None:
                    observe(value, tensor)
            uses.release(node, values)
    _load(graph, graph.outputs, values, _widen)
    return [values[v.name].to(v.type.dtype.torch) for v in graph.outputs]


def rebatch(graph: Graph, batch: int) -> Graph:
    """The same graph for inputs with first dimension `batch`; ShapeError if that is impossible.

    It is also impossible if a value computed from the inputs does not grow with the batch: such a value, for example
    a mean over all elements, mixes samples.
    """
    check_graph(graph, "rebatch(graph, batch)")
    expect(batch, int, "rebatch(graph, batch)", "a whole number of samples")
    if len({v.type.shape[:1] for v in graph.inputs}) > 1:
        raise ShapeError("the inputs have no first dimension in common")
    own, batch = graph.at_sizes({}), int(batch)
    first = [size for v in graph.inputs[:1] for size in v.type.shape[:1] if isinstance(size, Size)]
    larger = (
        graph.at_sizes({name: batch for name in dimensions_of(first)}) if first else _reshaped(own, batch)
    )
    samples = {v.type.shape[0] for v in own.inputs}
    grown = {v.name for v in own.inputs}
    for old_node, node in zip(own.nodes, larger.nodes, strict=True):
        if any(v.name in grown for v in node.operands):
            grown.update(v.name for v in node.outputs)
            for old, new in zip(old_node.outputs, node.outputs, strict=True):
                if {new.type.numel * n for n in samples} != {old.type.numel * batch}:
                    raise ShapeError(f"batch {batch} is impossible at {node_text(node)}, which mixes samples")
    for old, new in zip(own.outputs, larger.outputs, strict=True):
        if new.type != _with_batch(old.type, batch):
            raise ShapeError(f"output {old} would have shape {new.type.shape} for batch {batch}")
    return larger


def _reshaped(graph: Graph, batch: int) -> Graph:
    """The graph with types inferred again from inputs with first dimension `batch`."""
    inputs = tuple(Value(v.name, _with_batch(v.type, batch)) for v in graph.inputs)
    current = {v.name: v for v in (*inputs, *graph.constants)}
    nodes = []
    for node in graph.nodes:
        operands = tuple(v and current[v.name] for v in node.inputs)
        try:
            types = node.op.infer(*(v and v.type for v in operands))
        except IRError as err:
            raise ShapeError(f"batch {batch} is impossible at {node_text(node)}: {err.message}") from err
        outputs = tuple(
            Value(old.name, old.type.with_shape(new.shape))
            for old, new in zip(node.outputs, types, strict=True)
        )
        current.update((v.name, v) for v in outputs)
        nodes.append(Node(node.op, operands, outputs, node.source))
    outputs = tuple(current[v.name] for v in graph.outputs)
    return Graph(inputs, outputs, tuple(nodes), graph.params, graph.output_names, graph.precisions)


def _with_batch(type: TensorType, batch: int) -> TensorType:
    if not type.shape:
        raise ShapeError("a scalar has no batch dimension")
    return type.with_shape((batch, *type.shape[1:]))


class _Uses:
    """Counts the remaining readers of each value, so that values and constants are freed after the last one."""

    def __init__(self, graph: Graph) -> None:
        outputs = {v.name for v in graph.outputs}
        self._left = {name: len(nodes) for name, nodes in graph.users.items() if name not in outputs}

    def release(self, node: Node, values: dict[str, Tensor]) -> None:
        for value in node.operands:
            if value.name in self._left:
                self._left[value.name] -= 1
                if not self._left[value.name]:
                    values.pop(value.name, None)


def _load(
    graph: Graph,
    read: Iterable[Value],
    values: dict[str, Tensor],
    form: Callable[[TensorType, Tensor], Tensor],
) -> None:
    """Adds the constants among the values `read` to `values`, unless they are there already."""
    for value in read:
        if value.name not in values and value.name in graph.params:
            values[value.name] = form(value.type, graph.params[value.name])


def _bind(graph: Graph, inputs: Sequence[Tensor], call: str) -> tuple[Graph, dict[str, Tensor]]:
    """The graph for the sizes of these inputs, and the inputs by name."""
    check_graph(graph, call)
    expect(
        inputs, (list, tuple), call, "a list of tensors", "write [x]" if isinstance(inputs, Tensor) else ""
    )
    for value, tensor in zip(graph.inputs, inputs, strict=False):
        expect(tensor, Tensor, f"{call}, input {value}", "a tensor")
    if len(inputs) != len(graph.inputs):
        raise ShapeError(f"{len(inputs)} inputs for a graph that takes {len(graph.inputs)}")
    sizes = sizes_of_call(graph, inputs)
    if sizes != {name: dimension.example for name, dimension in graph.dimensions.items()}:
        graph = graph.at_sizes(sizes)
    return graph, {v.name: t for v, t in zip(graph.inputs, inputs, strict=True)}


def at_call(graph: Graph, inputs: Sequence[Tensor]) -> Graph:
    """The graph for the sizes of these inputs only; the graph itself without dynamic dimensions."""
    return graph.at_sizes(sizes_of_call(graph, inputs)) if graph.dimensions else graph


def sizes_of_call(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Sizes of the dynamic dimensions, by name, for these inputs; ShapeError for shapes that the graph does not
    accept.
    """
    sizes: dict[str, int] = {}
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        shape = tuple(tensor.shape)
        fits = len(shape) == value.type.rank
        for known, size in zip(value.type.shape, shape, strict=False):
            for dimension in dimensions_of(known).values():
                if dimension.size == known:
                    fits &= sizes.setdefault(dimension.name, size) == size
                    fits &= dimension.low <= size <= dimension.largest
            fits &= isinstance(known, Size) or known == size
        if not fits:
            spans = ", ".join(f"{d.name} {d.span}" for d in dimensions_of(value.type.shape).values())
            taken = f"{value.type.shape}{f' with {spans}' if spans else ''}"
            raise ShapeError(f"input {value} is {shape}; the graph takes {taken}")
    sizes = {name: sizes.get(name, d.example) for name, d in graph.dimensions.items()}
    for value, tensor in zip(
        graph.inputs, inputs, strict=True
    ):  # also sizes that are expressions of dimensions
        if [evaluated(known, sizes) for known in value.type.shape] != list(tensor.shape):
            raise ShapeError(f"input {value} is {tuple(tensor.shape)}; the graph takes {value.type.shape}")
    return sizes


def _call(node: Node, operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    results = node.op.reference(*operands)
    return results if isinstance(results, tuple) else (results,)


def call_integer(node: Node, operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Results of one node in `run_integer`: integers (int64) for quantized values, floats for others."""
    expect(node, Node, "call_integer(node, operands)", "a node of a graph")
    quantized = any(t is not None and t.is_quantized for t in (*node.operand_types, *node.output_types))
    if not quantized:
        return _call(node, operands)
    results = node.op.integer(IntegerCall(node.op, tuple(operands), node.operand_types, node.output_types))
    return results if isinstance(results, tuple) else (results,)


def _real(type: TensorType, tensor: Tensor) -> Tensor:
    return tensor if type.quantization is None else type.quantization.dequantize(tensor)


def _widen(type: TensorType, tensor: Tensor) -> Tensor:
    return tensor if type.quantization is None else tensor.to(torch.int64)
