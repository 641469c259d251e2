"""Networks called without a batch: the batch dimension that each layer adds and removes is moved to the ends.

For a convolution of [c, h, w] torch adds a batch of one and removes it from the result, so that there are two
reshapes between two layers, and an activation between the layers computes on [c, h, w]. If the activation is computed
before the batch is removed, it is adjacent to its layer, and the two reshapes cancel.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir import Builder, Node, Op, Value
from ...ir.ops.activation import Elementwise
from ...ir.ops.binary import Binary
from ...ir.ops.shape import Reshape
from ...ir.ops.slicing import Concat


def before_batch_is_dropped(builder: Builder, node: Node) -> Value | None:
    """The node's result, computed on operands that still have their batch of one; None if they had none."""
    op = _with_batch(node.op)
    operands = [_batched(builder, value) for value in node.operands]
    if op is None or len(operands) != len(node.inputs) or node.outputs[0].type.is_quantized:
        return None
    with_batch = tuple(value for value in operands if value is not None)
    if len(with_batch) < len(operands) or all(value.type.numel == 1 for value in with_batch):
        return None
    computed = builder.add(op, *with_batch, source=node.source)
    shape = node.outputs[0].type.shape
    if computed.type.shape != (1, *shape):
        return None
    return builder.add(Reshape(shape), computed, name=node.outputs[0].name, source=node.source)


def _with_batch(op: Op) -> Op | None:
    """The operator that does the same for every sample of a batch."""
    if isinstance(op, Elementwise | Binary):
        return op
    return replace(op, axis=op.axis + 1) if isinstance(op, Concat) else None


def _batched(builder: Builder, value: Value) -> Value | None:
    """The value before a reshape removed its batch of one; a constant scalar unchanged."""
    if builder.entry(value) is not None:
        return value if value.type.numel == 1 and not value.type.rank else None
    node = builder.producer(value)
    if node is None or not isinstance(node.op, Reshape):
        return None
    before = node.operand("x")
    return before if before.type.shape == (1, *value.type.shape) and builder.producer(before) else None
