"""Products of two activations in portable C, with broadcast batches."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir.ops.binary import requant_of_product
from .....ir.ops.matmul import GroupedMatMul, MatMul
from ...plan.layout import contiguous
from ..base import Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, nest, padded_strides, written_out
from ..rounding import requantized, saturated, signed


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
    of_a = [*padded_strides(a[:-2], strides_a[:-2], batch), *strides_a[-2:-1], *(0,) * columns]
    of_b = [
        *padded_strides(b[:-2], strides_b[:-2], batch),
        *(0,) * rows,
        *(strides_b[-1:] if columns else ()),
    ]
    loops = nest(y, layout_y.strides(y), of_a, of_b)
    at_a = f"a[{loops.at[1]} + k * {strides_a[-1]}]"
    step_b = strides_b[-2] if len(b) > 1 else strides_b[-1]
    at_b = f"b[{loops.at[2]} + k * {step_b}]"
    title = f"Matrix product, {site.output.numel} results of {a[-1]} terms"
    if site.is_integer:
        qa, qb, qy = site.quantization("a"), site.quantization("b"), site.output_quantization
        step = requant_of_product(site.type("a"), site.type("b"), site.output)
        product = f"({at_a} - {signed(qa.zero_point[0])}) * ({at_b} - {signed(qb.zero_point[0])})"
        is_wide = site.node.op.is_wide(site.type("a"), site.type("b"), site.output)
        scaled = requantized("acc", step, qy.zero_point[0], wide=is_wide)
        context = MatMulContext(
            *(title, loops, a[-1], strides_a[-1], step_b),
            *("int64_t" if is_wide else "int32_t", "0", f"(int64_t){product}" if is_wide else product),
            saturated(scaled, qy.qmin, qy.qmax),
        )
    else:
        context = MatMulContext(
            title, loops, a[-1], strides_a[-1], step_b, "float", "0.0f", f"{at_a} * {at_b}", "acc"
        )
    work = Work(8.0 * site.node.macs, 0.0, 20.0 * site.output.numel, 140)
    variant = written_out(a[-1])
    return offer(
        site, "portable/matmul.c.j2", context, work, reads=reads, writes=(layout_y,), variant=variant
    )


@kernel("grouped_matmul")
def grouped_matmul(site: Site) -> Offers:
    """One group of rows after the other; an end beyond the rows means the last row."""
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
