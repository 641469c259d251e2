"""Growth by layers with weights, pooling, normalization and attention."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..ops.attention import Attention
from ..ops.base import OPERATORS
from ..ops.conv import Conv, ConvTranspose
from ..ops.linear import Linear
from ..ops.matmul import GroupedMatMul, MatMul
from ..ops.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm
from ..ops.pool import AdaptiveAvgPool, AvgPool, MaxPool
from ..ops.recurrent import Lstm, Recurrent, Rnn
from ..ops.shape import Permute
from ..ops.softmax import EMPTY_ROWS
from ..tensor_type import Value
from .grow_elementwise import CLAMPS
from .growth import Growth, Step, grows


@grows("conv")
def grow_conv(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a convolution: plain, strided, dilated, evenly padded or not, depthwise; with and without bias, residual
    and clamp.
    """
    spatial = x.type.rank - 2
    if spatial not in (1, 2, 3):
        return None
    channels = x.type.shape[1]
    kernel, dilation = step.pick(0, [(1, 1), (3, 1), (2, 1), (2, 2)])
    padding = step.pick(1, [(0, 0), (1, 1), (0, 1), (1, 0)])
    groups = step.pick(2, [1, 1, channels])
    if min(x.type.shape[2:]) + sum(padding) < dilation * (kernel - 1) + 1:
        return None
    out = groups * step.pick(3, [1, 2, 3]) if groups == 1 else channels
    op = Conv(
        stride=(step.pick(4, [1, 2]),) * spatial,
        padding=padding * spatial,
        dilation=(dilation,) * spatial,
        groups=groups,
        clamp=step.pick(3, CLAMPS),
    )
    weight = g.weight(step, out, channels // groups, *(kernel,) * spatial)
    return _layer(g, op, x, weight, out, step)


@grows("conv_transpose")
def grow_conv_transpose(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a transposed convolution: strided or not, evenly cut or not, in groups."""
    spatial = x.type.rank - 2
    if spatial not in (1, 2):
        return None
    channels = x.type.shape[1]
    kernel, padding = step.pick(0, [(2, (0, 0)), (3, (1, 1)), (3, (0, 1)), (1, (0, 0))])
    stride = step.pick(1, [1, 2])
    groups = step.pick(2, [1, 1, channels])
    each = step.pick(3, [1, 2])
    op = ConvTranspose(
        stride=(stride,) * spatial,
        padding=padding * spatial,
        output_padding=(step.pick(4, [0, stride - 1]),) * spatial,
        dilation=(1,) * spatial,
        groups=groups,
        clamp=step.pick(4, CLAMPS),
    )
    weight = g.weight(step, channels, each, *(kernel,) * spatial)
    if min(x.type.shape[2:]) * stride + kernel - sum(padding) - stride < 1:
        return None
    return _layer(g, op, x, weight, each * groups, step)


@grows("linear")
def grow_linear(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a linear layer with and without bias, residual and clamp."""
    if not x.type.rank:
        return None
    out = step.pick(0, [1, 2, 4, x.type.shape[-1]])
    op = Linear(clamp=step.pick(1, CLAMPS))
    return _layer(g, op, x, g.weight(step, out, x.type.shape[-1]), out, step)


def _layer(g: Growth, op: Conv | ConvTranspose | Linear, x: Value, w: Value, out: int, step: Step) -> Value:
    bias = g.weight(step, out) if step.digits[1] % 2 else None
    (result,) = op.infer(x.type, w.type, None if bias is None else bias.type)
    fitting = [v for v in g.values if v.type == result]
    residual = fitting[-1] if fitting and step.partner == 3 else None
    return g.add(op, x, w, bias, residual)


@grows("matmul")
def grow_matmul(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a matrix product of two values, or of a value and a constant."""
    if not x.type.rank:
        return None
    if step.digits[0] % 2 or x.type.rank < 2:
        return g.add(MatMul(), x, g.constant(x.type.shape[-1], step.pick(1, [1, 3])))
    order = (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)
    return g.add(MatMul(), x, g.add(Permute(order), g.partner(x, step)))


@grows("grouped_matmul")
def grow_grouped_matmul(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a grouped product with constant matrices; a group may be empty, and rows may follow the last one."""
    if x.type.rank != 2:
        return None
    rows, depth = x.type.shape
    counts = [rows // 2, step.pick(0, [rows // 2, rows]), step.pick(1, [rows, max(rows - 1, rows // 2)])]
    ends = torch.tensor(sorted(counts), dtype=step.pick(2, [torch.int32, torch.int64]))
    return g.add(GroupedMatMul(), x, g.constant(3, depth, 4), g.builder.constant("ends", ends))


@grows("attention")
def grow_attention(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds an attention of equal shapes: causal, masked or plain, with or without a scale or a bias."""
    if x.type.rank not in (3, 4):
        return None
    length = x.type.shape[-2]
    form, partner = step.pick(0, ["plain", "causal", "added", "kept"]), g.partner(x, step)
    empty = step.pick(2, list(reversed(EMPTY_ROWS))) if form == "kept" else "zero"
    op = Attention(form == "causal", step.pick(1, [None, 0.5]), empty=empty)
    mask = g.constant(length, length) if form == "added" else None
    if form == "kept":
        drawn = g.builder.tensor(g.constant(length, length))
        assert drawn is not None
        mask = g.builder.constant("kept", drawn > 0)
    bias = g.constant(1, length) if step.digits[3] % 2 else None
    return g.add(op, x, partner, x, mask, bias)


@grows("batch_norm")
def grow_batch_norm(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a batch norm with and without weight and bias."""
    if x.type.rank < 2:
        return None
    c = x.type.shape[1]
    weight = g.constant(c) if step.digits[0] % 3 != 1 else None
    bias = g.constant(c) if step.digits[0] % 3 != 2 else None
    eps = step.pick(1, [1e-5, 1e-3])
    return g.add(BatchNorm(eps), x, weight, bias, g.constant(c), g.constant(c, positive=True))


@grows("layer_norm", "rms_norm")
def grow_last_norm(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a norm over the last one or two dimensions."""
    if x.type.rank < 2:
        return None
    shape = x.type.shape[-step.pick(0, [1, 2]) :]
    weight = g.constant(*shape) if step.digits[1] % 2 == 0 else None
    if step.op == "rms_norm":
        return g.add(RmsNorm(shape, step.pick(2, [None, 1e-3])), x, weight)
    return g.add(LayerNorm(shape, 1e-3), x, weight, g.constant(*shape) if step.digits[2] % 2 == 0 else None)


@grows("group_norm", "instance_norm")
def grow_group_norm(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a group norm with one group, or one per channel."""
    if x.type.rank < 3 or (step.op == "instance_norm" and min(x.type.shape[2:]) < 2):
        return None
    c = x.type.shape[1]
    operands = (g.constant(c), g.constant(c)) if step.digits[0] % 2 == 0 else ()
    op = InstanceNorm(1e-3) if step.op == "instance_norm" else GroupNorm(step.pick(1, [1, c]), 1e-3)
    return g.add(op, x, *operands)


@grows("max_pool")
def grow_max_pool(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds a max pool: overlapping or not, evenly padded or not, dilated, rounding down or up."""
    spatial = x.type.rank - 2
    if spatial not in (1, 2, 3):
        return None
    kernel, stride = step.pick(0, [(2, 2), (3, 2), (3, 1), (1, 1)])
    padding = step.pick(1, [(0, 0), (1, 1), (0, 1)]) if kernel > 1 else (0, 0)
    dilation = step.pick(2, [1, 1, 2])
    if min(x.type.shape[2:]) + sum(padding) < dilation * (kernel - 1) + 1:
        return None
    op = MaxPool(
        (kernel,) * spatial,
        (stride,) * spatial,
        padding * spatial,
        (dilation,) * spatial,
        bool(step.digits[3] % 2) and padding[0] == padding[1],
    )
    return g.add(op, x)


@grows("avg_pool")
def grow_avg_pool(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds an average pool: overlapping or not, padding counted or not, rounding down or up, with a divisor."""
    spatial = x.type.rank - 2
    if spatial not in (1, 2, 3):
        return None
    kernel, stride = step.pick(0, [(2, 2), (3, 2), (3, 1), (1, 1)])
    padding = step.pick(1, [0, 1]) if kernel > 1 else 0
    if min(x.type.shape[2:]) + 2 * padding < kernel:
        return None
    op = AvgPool(
        (kernel,) * spatial,
        (stride,) * spatial,
        (padding,) * (2 * spatial),
        bool(step.digits[2] % 2),
        not step.digits[3] % 2,
        step.pick(4, [None, None, 3]) if spatial > 1 else None,
    )
    return g.add(op, x)


@grows("adaptive_avg_pool")
def grow_adaptive_avg_pool(g: Growth, x: Value, step: Step) -> Value | None:
    """Adds an adaptive pooling, to sizes that divide the input size or not."""
    spatial = x.type.rank - 2
    if spatial not in (1, 2, 3):
        return None
    return g.add(AdaptiveAvgPool(tuple(step.pick(i, [1, 2, 3]) for i in range(spatial))), x)


@grows("rnn", "gru", "lstm")
def grow_recurrent(g: Growth, x: Value, step: Step) -> tuple[Value, ...] | None:
    """Adds a recurrent layer: one or two layers and directions, either order of time and batch, with and without bias
    and state.
    """
    if x.type.rank != 3:
        return None
    kind = OPERATORS[step.op]
    assert issubclass(kind, Recurrent)
    op = kind(
        layers=step.pick(0, [1, 2]),
        bias=step.pick(1, [True, False]),
        bidirectional=step.pick(2, [False, True]),
        batch_first=step.pick(3, [False, True]),
    )
    if isinstance(op, Rnn):
        op = replace(op, nonlinearity=("tanh", "relu")[step.digits[4] // 2 % 2])
    if isinstance(op, Lstm):
        op = replace(op, projection=step.digits[4] // 2 % 2 == 1)
    hidden, rows = 2, op.gates * 2
    read = 1 if op.projects else hidden
    weights = []
    for index in range(op.layers * op.directions):
        width = x.type.shape[2] if index < op.directions else read * op.directions
        weights += [g.constant(rows, width), g.constant(rows, read)]
        weights += [g.constant(rows), g.constant(rows)] if op.bias else []
        weights += [g.constant(read, hidden)] if op.projects else []
    batch = x.type.shape[0 if op.batch_first else 1]
    given = step.digits[4] % 2 == 1
    sizes = (read, hidden)[: op.states]
    states = [g.constant(op.layers * op.directions, batch, n) if given else None for n in sizes]
    return g.add_many(op, x, *states, *weights)
