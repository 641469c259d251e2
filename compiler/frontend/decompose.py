"""Decomposition of torch calls without an operator into calls that have one.

Capture keeps such a call as `torch_call`, which computes its exact bits; C cannot call torch. Here the call is traced
again, with the formulas of `formulas.py` and then torch's own decompositions (`core_aten_decompositions`), and the
parts become operators like any captured call. The result agrees with the call up to rounding. A call with a part that
still has no operator is not decomposed, so that a refusal names the user's call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from ...ir import Builder, Graph, Node, Source, TensorType, Value, rewrite
from ...ir.ops import LOWERINGS
from ...ir.ops.call import TorchCall
from ...ir.quiet import quiet
from ...passes.clean.cleaning import clean_graph
from .formulas import FORMULAS
from .functionalize import Tracked
from .importer import Importer
from .widths import in_single_precision

_Table = dict[OpOverload, Callable[..., Any]]  # Any: arguments and result of the overload
_MOST_STEPS = 4  # limit of nested decompositions


def for_c(graph: Graph) -> Graph:
    """A captured graph in the operators and element types of the C backend, as far as possible."""
    return decompose(in_single_precision(decompose(graph)))


def decompose(graph: Graph) -> Graph:
    """The graph with operators in place of every `torch_call` that can be decomposed."""
    return _decomposed(graph, _MOST_STEPS)


def _decomposed(graph: Graph, steps: int) -> Graph:
    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        if not steps or not isinstance(node.op, TorchCall):
            return None
        present = [v for v in operands if v is not None]
        parts = _parts(node, [builder.tensor(v) for v in present], steps)
        return None if parts is None else _spliced(builder, parts, present, node.source)

    return rewrite(graph, visit) if any(isinstance(node.op, TorchCall) for node in graph.nodes) else graph


def _parts(node: Node, constants: Sequence[Tensor | None], steps: int) -> Graph | None:
    """A graph of operators that computes the node: each operand is an input `x0`, `x1`, ... or a constant.

    None if a part has no operator.
    """
    assert isinstance(node.op, TorchCall)
    program = _traced(node.op.call, tuple(v.type for v in node.operands))
    if program is None:
        return None
    builder = Builder()
    values = [
        builder.input(f"x{i}", value.type) if tensor is None else builder.constant(f"x{i}", tensor)
        for i, (value, tensor) in enumerate(zip(node.operands, constants, strict=True))
    ]
    importer = Importer(builder, source=node.source)
    results = importer.run(program, [Tracked(value) for value in values])
    if importer.problems or not all(isinstance(result, Tracked) for result in results):
        return None
    found = clean_graph(_decomposed(builder.build([result.read() for result in results]), steps - 1)).graph
    opaque = any(isinstance(part.op, TorchCall) for part in found.nodes)
    return None if opaque or tuple(v.type for v in found.outputs) != node.output_types else found


@lru_cache(maxsize=1024)
def _traced(call: str, types: tuple[TensorType, ...]) -> fx.GraphModule | None:
    """The parts of a call; None if torch cannot trace them."""
    op = TorchCall(call)
    overload = op.overload

    def computed(*operands: Tensor) -> tuple[Tensor, ...]:
        try:
            return op.given_to(FORMULAS.get(overload, overload), operands)
        except NotImplementedError:  # the formula does not apply to these operands
            return op.given_to(overload, operands)

    examples = [torch.empty(type.shape, dtype=type.dtype.torch) for type in types]
    try:
        with torch.no_grad(), quiet():
            return make_fx(computed, decomposition_table=_table(overload), tracing_mode="fake")(*examples)
    except Exception:  # any error of a decomposition that does not support these operands: the call is kept
        return None


@cache
def _usual_table() -> _Table:
    sampler = get_decompositions(
        [torch.ops.aten.grid_sampler_2d]
    )  # core_aten_decompositions keep this overload
    known = {**core_aten_decompositions(), **sampler, **FORMULAS}
    return {overload: made for overload, made in known.items() if _name(overload) not in LOWERINGS}


def _table(overload: OpOverload) -> _Table:
    """Decomposition table: overloads without an operator, and `overload`, whose operator does not fit its operands."""
    known = core_aten_decompositions().get(overload)
    return _usual_table() if known is None or overload in FORMULAS else {**_usual_table(), overload: known}


def _name(overload: OpOverload) -> str:
    return str(overload).removeprefix("aten.")


def _spliced(builder: Builder, parts: Graph, operands: Sequence[Value], source: Source) -> tuple[Value, ...]:
    """Appends the nodes of a graph with these operands.

    A constant with the name of an operand may be that operand after data movement; it takes the name if nothing else
    reads the operand.
    """
    current = {f"x{i}": value for i, value in enumerate(operands)}
    for value in parts.constants:
        tensor, operand = parts.tensor(value), current.get(value.name)
        if operand is None:
            current[value.name] = builder.constant(value.name, tensor)
        elif not _is_equal(builder.tensor(operand), tensor):
            current[value.name] = builder.derived_constant(operand.name, tensor)
    for node in parts.nodes:
        inputs = [value and current[value.name] for value in node.inputs]
        results = builder.append(node.op, inputs, node.output_types, source=source)
        current.update((old.name, new) for old, new in zip(node.outputs, results, strict=True))
    return tuple(current[value.name] for value in parts.outputs)


def _is_equal(known: Tensor | None, tensor: Tensor) -> bool:
    return known is not None and known.dtype is tensor.dtype and torch.equal(known, tensor)
