"""Layers with stored weights as one operator each: products and lookups that read packed integers.

    linear(fake_quantize_per_token(x), dequantize(w))  ->  packed_linear{is_rounded}(x, w)
    embedding(i, dequantize(w))                        ->  packed_embedding(i, w)

These operators exist only in the C backend, after its `check`; other readers of a dequantized weight keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from ....ir import Graph, Node, TensorType, Value, rewrite
from ....ir.ops.accumulate import Clamp, finish_reals
from ....ir.ops.base import IntegerCall, Op
from ....ir.ops.embedding import Embedding
from ....ir.ops.linear import Linear
from ....ir.ops.quantize import Dequantize, FakeQuantizePerToken
from ...packed_linear import PackedForm


@dataclass(frozen=True)
class PackedLinear(Op):
    """A linear layer of reals with stored weights; `is_rounded`: x is rounded to int8 with a scale for each row."""

    name = "packed_linear"
    operand_names = ("x", "weight", "bias", "residual")

    is_rounded: bool = False
    clamp: Clamp = None

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        residual: TensorType | None = None,
    ) -> tuple[TensorType, ...]:
        return (TensorType((*x.shape[:-1], weight.shape[0])),)

    def reference(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        taken = FakeQuantizePerToken().reference(x) if self.is_rounded else x
        return finish_reals(functional.linear(taken, weight, bias), residual, self.clamp)

    def integer(self, call: IntegerCall) -> Tensor:
        weight = _reals(call)
        return self.reference(call.operand("x"), weight, call.optional("bias"), call.optional("residual"))

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        return outputs[0].numel * self.operand(operands, "x").shape[-1]


@dataclass(frozen=True)
class PackedEmbedding(Op):
    """Rows of a stored weight as reals."""

    name = "packed_embedding"
    operand_names = ("indices", "weight")

    def infer(self, indices: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        return (TensorType((*indices.shape, weight.shape[1])),)

    def reference(self, indices: Tensor, weight: Tensor) -> Tensor:
        return functional.embedding(indices, weight)

    def integer(self, call: IntegerCall) -> Tensor:
        return self.reference(call.operand("indices"), _reals(call))


def _reals(call: IntegerCall) -> Tensor:
    encoding = call.type("weight").quantization
    assert encoding is not None
    return encoding.dequantize(call.operand("weight"))


def join_stored_weights(graph: Graph) -> Graph:
    """The graph with packed operators in place of layers whose weight is a dequantized constant."""
    stored = {node.output.name: node.operand("x") for node in graph.nodes if _is_stored(graph, node)}
    if not stored:
        return graph
    rounded = {
        node.output.name: node.operand("x")
        for node in graph.nodes
        if isinstance(node.op, FakeQuantizePerToken)
    }
    nodes = tuple(_joined(node, stored, rounded) for node in graph.nodes)
    return rewrite(replace(graph, nodes=nodes), lambda builder, node, operands: None)


def _is_stored(graph: Graph, node: Node) -> bool:
    if not isinstance(node.op, Dequantize) or not graph.is_constant(node.operand("x")):
        return False
    type = node.operand("x").type
    return type.rank == 2 and PackedForm.of(type) is not None


def _joined(node: Node, stored: dict[str, Value], rounded: dict[str, Value]) -> Node:
    if not isinstance(node.op, Linear | Embedding) or node.operand("weight").name not in stored:
        return node
    weight = stored[node.operand("weight").name]
    if isinstance(node.op, Embedding):
        return replace(node, op=PackedEmbedding(), inputs=(node.operand("indices"), weight))
    x = node.operand("x")
    op = PackedLinear(x.name in rounded, node.op.clamp)
    return replace(node.with_operands(x=rounded.get(x.name, x), weight=weight), op=op)
