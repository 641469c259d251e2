"""Gated prompts: keys and values that each query reads besides those of the attention, in a softmax of their own.

    y' = y + g softmax(s q K^T) V,    K [heads, count, e],  V [heads, count, f],  g [heads, 1, 1]

Gates start at zero, so that the network starts as it is (zero-initialized attention of LLaMA-Adapter, Zhang et al.,
ICLR 2024). There, K and V are projections of trained prompts; here they are trained themselves, as in prefix tuning (Li
and Liang, ACL 2021), since nothing else remains of the prompts after training.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...ir import Builder, Graph, Node, Value, rewrite
from ...ir.ops.attention import Attention
from ...ir.ops.binary import Add, Mul
from ...specs.options import FinetuneOptions, GatedPrompts
from ..base import Context
from ..errors import PassError
from ..report import Decision
from .added_trainable import AddedTrainable, free_name

_HEADS = 3  # rank of [heads, positions, features]


def with_gated_prompts(
    graph: Graph, options: FinetuneOptions, prompts: GatedPrompts, context: Context
) -> AddedTrainable:
    """Trainable form with prompts in the attention layers; PassError if there are none."""
    chosen = {
        node.output.name
        for node in graph.nodes
        if isinstance(node.op, Attention)
        and (not prompts.layers or context.selects_any(prompts.layers, node.source))
        and not context.selects_any(options.keep, node.source)
    }
    if not chosen:
        raise PassError(
            "trains: adapter: there is no attention among these layers; for attention that is written as matrix "
            "products and a softmax, call torch.nn.functional.scaled_dot_product_attention"
        )
    names: list[str] = []
    decisions: list[Decision] = []
    generator = torch.Generator().manual_seed(options.seed)

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        if node.output.name not in chosen:
            return None
        own, op = node.output.name, node.op
        assert isinstance(op, Attention)
        q, k, v = (op.operand(operands, name) for name in ("q", "k", "v"))
        tensors = _initial(q, k, v, prompts, generator)
        parts = {}
        for part, tensor in tensors.items():
            name = free_name(graph, f"{own}_prompt_{part}")
            parts[part] = builder.constant(name, tensor.to(q.type.dtype.torch))
            names.append(name)
        read = replace(op, causal=False, empty="zero")
        values = builder.add(read, q, parts["k"], parts["v"], name=f"{own}_prompted", source=node.source)
        gated = builder.add(Mul(), values, parts["gate"], name=f"{own}_gated", source=node.source)
        unchanged = builder.append(
            op, operands, node.output_types, names=(f"{own}_own",), source=node.source
        )[0]
        count = sum(tensor.numel() for tensor in tensors.values())
        reason = f"{prompts.count} gated prompts, {count:,} numbers"
        decisions.append(Decision("finetune", own, node.source, True, reason))
        return (builder.add(Add(), unchanged, gated, name=own, source=node.source),)

    return AddedTrainable(rewrite(graph, visit), tuple(names), tuple(decisions))


def _initial(
    q: Value, k: Value, v: Value, prompts: GatedPrompts, generator: torch.Generator
) -> dict[str, Tensor]:
    """Keys and values of the prompts, and the gates; heads are the dimension before the positions."""
    rank = q.type.rank
    ones = (1,) * max(0, rank - _HEADS)
    heads = (*ones, k.type.shape[-3]) if rank > _HEADS else ones + (1,) * (rank - 2)
    gates = (*ones, q.type.shape[-3]) if rank > _HEADS else ones + (1,) * (rank - 2)
    keys = torch.randn(*heads, prompts.count, k.type.shape[-1], generator=generator)
    values = torch.randn(*heads, prompts.count, v.type.shape[-1], generator=generator)
    return {"k": keys, "v": values, "gate": torch.full((*gates, 1, 1), prompts.gate)}
