"""Recurrent layers before quantization: one node for each layer and direction, as in the integer form.

The backward direction reads a flipped sequence, and its result is flipped back; the sequences of both directions are
concatenated. First states are slices of the given states, last states are concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...ir import Builder, Graph, Node, Value, rewrite
from ...ir.ops.recurrent import Recurrent
from ...ir.ops.reorder import Flip
from ...ir.ops.slicing import Concat, Slice

_CELLS, _FEATURES = 0, 2  # dimensions of states and of sequences


def split_recurrent(graph: Graph, is_float: Callable[[str], bool]) -> Graph:
    """The graph with one node for each layer and direction, except in modules that stay in float."""

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        op = node.op
        if not isinstance(op, Recurrent) or op.is_single or is_float(node.source.module):
            return None
        return _split(builder, node, op, operands)

    return rewrite(graph, visit)


def _split(
    builder: Builder, node: Node, op: Recurrent, operands: tuple[Value | None, ...]
) -> tuple[Value, ...]:
    given, weights, each = op.states_of(operands), op.weights_of(operands), op.weights_per_cell
    single = replace(op, layers=1, bidirectional=False)
    x, time = operands[0], 1 if op.batch_first else 0
    assert x is not None
    last: list[tuple[Value, ...]] = []
    for layer in range(op.layers):
        sequences = []
        for direction in range(op.directions):
            cell = len(last)
            first = [state and builder.add(Slice(_CELLS, cell, cell + 1), state) for state in given]
            read = builder.add(Flip((time,)), x) if direction else x
            taken = [*first, *weights[cell * each : (cell + 1) * each]]
            types = single.infer(read.type, *(None if v is None else v.type for v in taken))
            stem = "_reverse" if direction else ""
            names = [f"{v.name}_l{layer}{stem}" for v in node.outputs]
            y, *final = builder.append(single, [read, *taken], types, names=names, source=node.source)
            last.append(tuple(final))
            sequences.append(builder.add(Flip((time,)), y) if direction else y)
        x = sequences[0] if op.directions == 1 else builder.add(Concat(_FEATURES), *sequences)
    return (x, *(builder.add(Concat(_CELLS), *states) for states in zip(*last, strict=True)))
