"""Attentions whose scores exceed the range of their integer form on a few calibration samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir import Graph, Value, run
from ...ir.ops.attention import Attention
from ...ir.ops.attention_form import SCORES
from ..calibration.calibrate import Batch

_SAMPLES = 4


def far_scores(graph: Graph, samples: Sequence[Batch]) -> dict[str, str]:
    """Reasons why attentions stay in float, by the names of their results: their scores would be saturated."""
    nodes = [(node, node.op) for node in graph.nodes if isinstance(node.op, Attention)]
    read = {v.name for node, _ in nodes for v in node.operands}
    largest = dict.fromkeys((node.output.name for node, _ in nodes), 0.0)
    for sample in samples[:_SAMPLES] if nodes else ():
        seen: dict[str, Tensor] = {v.name: t for v, t in zip(graph.inputs, sample, strict=True)}
        seen |= {v.name: graph.tensor(v) for v in graph.constants if v.name in read}

        def keep(value: Value, tensor: Tensor, seen: dict[str, Tensor] = seen) -> None:
            if value.name in read:
                seen[value.name] = tensor

        with torch.no_grad():
            run(graph, sample, observe=keep)
        for node, op in nodes:
            bias = node.optional("bias")
            q, k = (seen[node.operand(name).name] for name in ("q", "k"))
            found = float(op.largest_score(q, k, None if bias is None else seen[bias.name]))
            largest[node.output.name] = max(largest[node.output.name], found)
    limit = SCORES.qmax * SCORES.scale[0]
    reason = "its scores reach {:.3g}, and those on integers are saturated at {:.3g}"
    return {name: reason.format(score, limit) for name, score in largest.items() if score > limit}
