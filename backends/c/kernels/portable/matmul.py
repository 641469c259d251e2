"""Products of two activations in portable C, with broadcast batches, and attention made of them, on reals."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from .....ir import DType
from .....ir.ops.attention import Attention
from .....ir.ops.binary import requant_of_product
from .....ir.ops.matmul import GroupedMatMul, MatMul
from ...plan.layout import Layout, Shape, contiguous
from ...write.literal import real
from ..base import Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import WRITTEN_OUT, Nest, nest
from ..rounding import saturated, signed


@dataclass(frozen=True)
class MatMulContext:
    """Template context: loops over results, and `depth` products for each, with strides in a and b."""

    title: str
    nest: Nest
    depth: int
    step_a: int
    step_b: int
    type: str
    start: str
    product: str
    value: str


@dataclass(frozen=True)
class GroupedMatMulContext:
    """Template context: sizes, and strides between rows and terms of x and of the matrices."""

    title: str
    groups: int
    rows: int
    columns: int
    depth: int
    row_x: int
    step_x: int
    matrix_w: int
    step_w: int
    column_w: int


@dataclass(frozen=True)
class AttentionContext:
    """Template context: loops over heads, sizes, row strides of each operand."""

    title: str
    nest: Nest
    queries: int
    keys: int
    features: int
    values: int
    scale: str
    row_q: int
    row_k: int
    row_v: int
    row_y: int
    step_q: int
    step_k: int
    step_v: int
    step_y: int
    last: str
    score: str
    hidden: str

    @property
    def has_dense_rows(self) -> bool:
        """Whether the elements of each row lie side by side."""
        return self.step_q == self.step_k == self.step_v == self.step_y == 1


@kernel("matmul")
def matmul(site: Site) -> Offers:
    """One result after the other."""
    assert isinstance(site.node.op, MatMul)
    reads = {operand: dense_at_hand(site, operand) for operand in ("a", "b")}
    a, b, y = site.type("a").shape, site.type("b").shape, site.output.shape
    strides_a, strides_b = reads["a"].strides(a), reads["b"].strides(b)
    layout_y = contiguous(y)
    rows = 1 if len(a) > 1 else 0
    columns = 1 if len(b) > 1 else 0
    batch = len(y) - rows - columns
    of_a = [*_broadcast(a[:-2], strides_a[:-2], batch), *strides_a[-2:-1], *(0,) * columns]
    of_b = [*_broadcast(b[:-2], strides_b[:-2], batch), *(0,) * rows, *(strides_b[-1:] if columns else ())]
    loops = nest(y, layout_y.strides(y), of_a, of_b)
    at_a = f"a[{loops.at[1]} + k * {strides_a[-1]}]"
    step_b = strides_b[-2] if len(b) > 1 else strides_b[-1]
    at_b = f"b[{loops.at[2]} + k * {step_b}]"
    title = f"Matrix product, {site.output.numel} results of {a[-1]} terms"
    if site.is_integer:
        qa, qb, qy = site.quantization("a"), site.quantization("b"), site.output_quantization
        step = requant_of_product(site.type("a"), site.type("b"), site.output)
        product = f"({at_a} - {signed(qa.zero_point[0])}) * ({at_b} - {signed(qb.zero_point[0])})"
        shifted = f"fxp_shift_left(acc, {step.shift})" if step.shift else "acc"
        value = saturated(f"fxp_scale({shifted}, {step.multiplier}, {qy.zero_point[0]})", qy.qmin, qy.qmax)
        context = MatMulContext(title, loops, a[-1], strides_a[-1], step_b, "int32_t", "0", product, value)
    else:
        context = MatMulContext(
            title, loops, a[-1], strides_a[-1], step_b, "float", "0.0f", f"{at_a} * {at_b}", "acc"
        )
    work = Work(8.0 * site.node.macs, 0.0, 20.0 * site.output.numel, 140)
    variant = _written_out(a[-1])
    return offer(
        site, "portable/matmul.c.j2", context, work, reads=reads, writes=(layout_y,), variant=variant
    )


@kernel("grouped_matmul")
def grouped_matmul(site: Site) -> Offers:
    """One group of rows after the other; an end beyond the rows is that of the last row."""
    assert isinstance(site.node.op, GroupedMatMul)
    groups, depth, columns = site.type("weights").shape
    reads = {operand: dense_at_hand(site, operand) for operand in ("x", "weights")}
    row_x, step_x = reads["x"].strides(site.type("x").shape)
    matrix_w, step_w, column_w = reads["weights"].strides(site.type("weights").shape)
    context = GroupedMatMulContext(
        f"Matrix products of {groups} groups of rows, {site.output.numel} results of {depth} terms",
        *(groups, site.output.shape[0], columns, depth),
        *(row_x, step_x, matrix_w, step_w, column_w),
    )
    reads["ends"] = contiguous(site.type("ends").shape)
    work, layout_y = (
        Work(8.0 * site.node.macs, 0.0, 20.0 * site.output.numel, 180),
        contiguous(site.output.shape),
    )
    return offer(site, "portable/grouped_matmul.c.j2", context, work, reads=reads, writes=(layout_y,))


@kernel("attention")
def attention(site: Site) -> Offers:
    """One query after the other: scores in scratch memory, their softmax, the weighted sum of values.

    On a computer, where rows are dense, their products are vector instructions.
    """
    op = site.node.op
    assert isinstance(op, Attention)
    mask = site.type("mask") if site.has("mask") else None
    if mask is not None and mask.dtype not in (DType.F32, DType.BOOL):
        return f"a mask of {mask.dtype.value}"
    reads = {operand: dense_at_hand(site, operand) for operand in ("q", "k", "v")}
    shapes = [site.type(operand).shape for operand in reads]
    strides = [layout.strides(shape) for layout, shape in zip(reads.values(), shapes, strict=True)]
    y = site.output.shape
    layout_y = contiguous(y)
    strides_y = layout_y.strides(y)
    heads = list(y[:-2])
    batch = [
        _broadcast(shape[:-2], step[:-2], len(heads)) for shape, step in zip(shapes, strides, strict=True)
    ]
    of_y = list(strides_y[:-2])
    if op.grouped and shapes[0][-3] != shapes[1][-3]:
        served = shapes[0][-3] // shapes[1][-3]
        heads = [*heads[:-1], heads[-1] // served, served]
        of_y = [*of_y[:-1], of_y[-1] * served, of_y[-1]]
        batch = [
            [*batch[0][:-1], batch[0][-1] * served, batch[0][-1]],
            *([*of[:-1], strides[i][-3], 0] for i, of in enumerate(batch[1:], start=1)),
        ]
    of_mask = [0] * len(heads)
    if mask is not None:
        reads["mask"] = dense_at_hand(site, "mask")
        steps = reads["mask"].strides(mask.shape)
        of_mask = _broadcast(mask.shape[:-2], steps[:-2], len(y) - 2)
        if len(heads) != len(y) - 2:
            of_mask = [*of_mask[:-1], of_mask[-1] * heads[-1], of_mask[-1]]
    loops = nest(heads, of_y, *batch, of_mask)
    context = _attention_context(site, op, loops, strides, reads.get("mask"))
    queries, keys = shapes[0][-2], shapes[1][-2]
    seen = sum(min(i + 1, keys) for i in range(queries)) / queries if op.causal else keys
    macs, scores = site.node.macs * seen / keys, site.output.numel / y[-1] * seen
    return offer(
        site,
        "host/attention.c.j2"
        if site.machine.is_host and context.has_dense_rows
        else "portable/attention.c.j2",
        context,
        Work(4.0 * macs, 20.0 * site.output.numel, 84.0 * scores, 400),
        reads=reads,
        writes=(layout_y,),
        scratch="float",
        scratch_bytes=4 * shapes[1][-2],
        uses_math=True,
        variant=_written_out(shapes[0][-1], shapes[2][-1]),
    )


def _written_out(*lengths: int) -> str:
    return "written out" if max(lengths) <= WRITTEN_OUT else ""


def _attention_context(
    site: Site, op: Attention, loops: Nest, strides: list[tuple[int, ...]], read_mask: Layout | None
) -> AttentionContext:
    q, k, v, y = (*(site.type(operand).shape for operand in ("q", "k", "v")), site.output.shape)
    score, hidden = "dot * scale", ""
    if read_mask is not None:
        mask = site.type("mask")
        steps = read_mask.strides(mask.shape)
        row, column = (0 if n == 1 else step for n, step in zip(mask.shape[-2:], steps[-2:], strict=True))
        at = f"mask[{loops.at[4]} + i * {row} + j * {column}]"
        keeps = mask.dtype is DType.BOOL
        score = f"{at} ? dot * scale : -INFINITY" if keeps else f"dot * scale + {at}"
        hidden = f"!{at}" if keeps else f"{at} == -INFINITY"
    strides_y = contiguous(y).strides(y)
    scale = 1.0 / sqrt(q[-1]) if op.scale is None else op.scale
    return AttentionContext(
        title=f"Attention of {q[-2]} queries to {k[-2]} keys, {site.output.numel // (q[-2] * v[-1])} heads",
        nest=loops,
        queries=q[-2],
        keys=k[-2],
        features=q[-1],
        values=v[-1],
        scale=real(scale),
        row_q=strides[0][-2],
        row_k=strides[1][-2],
        row_v=strides[2][-2],
        row_y=strides_y[-2],
        step_q=strides[0][-1],
        step_k=strides[1][-1],
        step_v=strides[2][-1],
        step_y=strides_y[-1],
        last=f"i < {k[-2]} ? i + 1 : {k[-2]}" if op.causal else str(k[-2]),
        score=score,
        hidden=hidden,
    )


def _broadcast(shape: Shape, strides: Shape, rank: int) -> list[int]:
    own = [0 if n == 1 else step for n, step in zip(shape, strides, strict=True)]
    return [*(0,) * (rank - len(own)), *own]
