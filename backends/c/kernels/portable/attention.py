"""Attention in portable C: one row of scores in scratch memory, on reals and on integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .....ir import DType, Encoding
from .....ir.arithmetic import Requant
from .....ir.ops.attention import Attention
from .....ir.ops.attention_form import LOWEST, AttentionForm
from ...plan.layout import Layout, Shape, arranged, contiguous
from ...write.literal import c_type, real
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, nest, padded_strides, written_out
from ..rounding import saturated


@dataclass(frozen=True)
class Operands:
    """Loops over heads and, for q, k, v and y, strides of rows and of the elements in them.

    The nest has the indices in y, q, k, v, and then in mask and bias, if they are present; `added` has their indices
    before the loops over queries and keys, and strides along both.
    """

    nest: Nest
    layouts: dict[str, Layout]
    result: Layout
    rows: tuple[int, int, int, int]
    steps: tuple[int, int, int, int]
    added: Mapping[str, tuple[str, int, int]]

    def place(self, name: str, key: str = "j") -> str:
        """C expression of the element of mask or bias for query i and a key; empty without that operand."""
        if name not in self.added:
            return ""
        start, row, column = self.added[name]
        return f"{name}[{' + '.join([start, *([f'i * {row}'] if row else []), f'{key} * {column}'])}]"


@dataclass(frozen=True)
class FloatContext:
    """Template context of the kernel on reals.

    `score` is a C expression of query i and key j; `hidden` is the condition that the mask hides the key.
    """

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
    fills: bool

    @property
    def has_dense_rows(self) -> bool:
        """True if the elements of each row are contiguous."""
        return self.step_q == self.step_k == self.step_v == self.step_y == 1


@dataclass(frozen=True)
class IntegerContext:
    """Template context of the kernel on integers; see `attention_form`."""

    title: str
    nest: Nest
    types: tuple[str, str, str, str]
    queries: int
    keys: int
    features: int
    values: int
    rows: tuple[int, int, int, int]
    steps: tuple[int, int, int, int]
    last: str
    hidden: str
    fills: bool
    lowest: int
    scores: str
    sums: str
    product: str
    score: str
    weighted: str
    shifted: str
    result: str


@kernel("attention")
def attention(site: Site) -> Offers:
    """One query after the other: scores in scratch memory, their softmax, the weighted sum of values.

    On a computer, if rows of reals are dense, their products are vector instructions.
    """
    op = site.node.op
    assert isinstance(op, Attention)
    if not site.is_integer:
        return _on_reals(site, op)
    own = operands(site)
    form = op.form([site.type(name) for name in ("q", "k", "v")], site.output)
    context = _integer_context(site, op, form, own)
    macs, scores = site.node.macs * seen_share(site), site.output.numel / max(site.output.shape[-1], 1)
    scores *= context.keys * seen_share(site)
    return offer(
        site,
        "portable/attention_integer.c.j2",
        context,
        Work(4.0 * macs, 20.0 * site.output.numel, 40.0 * scores, 450),
        reads=own.layouts,
        writes=(own.result,),
        tables={"powers": powers(form), "numbers": numbers(form, site.output_quantization)},
        scratch="int16_t",
        scratch_bytes=2 * context.keys,
        variant=written_out(context.features, context.values),
    )


def powers(form: AttentionForm) -> AnyArray:
    """The table of the exponentials."""
    return form.table.numpy().astype(np.int16)


def numbers(form: AttentionForm, y: Encoding) -> AnyArray:
    """Multipliers of scores and results, and zero points of results, q, k and v: the numbers that differ between
    similar layers.
    """
    zeros = y.zero_point[0], form.query_zero, form.key_zero, form.value_zero
    return np.array([form.score.multiplier, form.result.multiplier, *zeros], np.int32)


def seen_share(site: Site) -> float:
    """Share of the keys that a query reads on average."""
    op, queries, keys = site.node.op, site.type("q").shape[-2], site.type("k").shape[-2]
    assert isinstance(op, Attention)
    return sum(min(i + 1, keys) for i in range(queries)) / max(queries * keys, 1) if op.causal else 1.0


def operands(site: Site, *, result: Layout | None = None, by_row: bool = False) -> Operands:
    """Layouts and strides of the operands as available, and of the result, contiguous unless it is given.

    With `by_row`, the elements of each row of q, k and v are contiguous.
    """
    op = site.node.op
    assert isinstance(op, Attention)
    present = [name for name in ("q", "k", "v", "mask", "bias") if site.has(name)]
    reads = {name: dense_at_hand(site, name) for name in present}
    if by_row:
        reads |= {name: _by_row(site.type(name).shape, reads[name]) for name in ("q", "k", "v")}
    shapes = [site.type(name).shape for name in present]
    strides = [layout.strides(shape) for layout, shape in zip(reads.values(), shapes, strict=True)]
    y = site.output.shape
    layout_y = contiguous(y) if result is None else result
    strides_y = layout_y.strides(y)
    heads, of_y = list(y[:-2]), list(strides_y[:-2])
    batch = [
        padded_strides(shape[:-2], step[:-2], len(heads)) for shape, step in zip(shapes, strides, strict=True)
    ]
    if op.grouped and shapes[0][-3] != shapes[1][-3]:
        served = shapes[0][-3] // shapes[1][-3]
        heads = [*heads[:-1], heads[-1] // served, served]
        of_y = [*of_y[:-1], of_y[-1] * served, of_y[-1]]
        batch = [
            [*of[:-1], strides[i][-3], 0] if present[i] in ("k", "v") else [*of[:-1], of[-1] * served, of[-1]]
            for i, of in enumerate(batch)
        ]
    loops = nest(heads, of_y, *batch)
    at = dict(zip(present, loops.at[1:], strict=True))
    added = {}
    for index in range(3, len(present)):
        ends = zip(shapes[index][-2:], strides[index][-2:], strict=True)
        row, column = (0 if n == 1 else step for n, step in ends)
        added[present[index]] = (at[present[index]], row, column)
    both = [strides[0], strides[1], strides[2], strides_y]
    rows, steps = (tuple(one[axis] for one in both) for axis in (-2, -1))
    return Operands(loops, reads, layout_y, rows, steps, added)  # type: ignore[arg-type]


def _shifted_left(value: str, step: Requant) -> str:
    """The C expression of a value before the multiplication of a requantization."""
    return f"fxp_shift_left({value}, {step.shift})" if step.shift else value


def _by_row(shape: Shape, layout: Layout) -> Layout:
    """The layout, with the last dimension fastest."""
    last = len(shape) - 1
    return arranged(shape, (*(dim for dim in layout.order if dim != last), last))


def _last(op: Attention, keys: int) -> str:
    return f"i < {keys} ? i + 1 : {keys}" if op.causal else str(keys)


def title(site: Site) -> str:
    """Description of the function, for its comment."""
    q, k, v = (site.type(operand).shape for operand in ("q", "k", "v"))
    heads = site.output.numel // max(q[-2] * v[-1], 1)
    return f"Attention of {q[-2]} queries to {k[-2]} keys, {heads} heads"


def _integer_context(site: Site, op: Attention, form: AttentionForm, own: Operands) -> IntegerContext:
    q, k, v = (site.type(operand).shape for operand in ("q", "k", "v"))
    named = [site.type("q"), site.type("k"), site.type("v"), site.output]
    mask, bias = own.place("mask"), own.place("bias")
    score_scale = "fxp_scale_sum" if form.wide_scores else "fxp_scale"
    dot = (
        f"dot * (INT64_C(1) << {form.score.shift})" if form.wide_scores else _shifted_left("dot", form.score)
    )
    score = f"fxp_saturate16({score_scale}({dot}, numbers[0], 0))"
    score = f"fxp_saturate16({score} + {bias})" if bias else score
    fills = bool(mask) and op.empty != "zero"
    if mask:
        score = f"{_seen(mask, op)} ? {score} : INT16_MIN"
    if fills and op.empty == "uniform":
        score = f"is_empty ? (int16_t)0 : {score}"
    return IntegerContext(
        title=title(site),
        nest=own.nest,
        types=tuple(c_type(type.dtype) for type in named),  # type: ignore[arg-type]
        queries=q[-2],
        keys=k[-2],
        features=q[-1],
        values=v[-1],
        rows=own.rows,
        steps=own.steps,
        last=_last(op, k[-2]),
        hidden=f"!{mask}" if mask else "",
        fills=fills,
        lowest=LOWEST,
        scores="int64_t" if form.wide_scores else "int32_t",
        sums="int64_t" if form.wide_values else "int32_t",
        product=_product(form, own),
        score=score,
        weighted=_weighted(form, own),
        shifted=_shifted(form),
        result=result_of(form, site.output_quantization),
    )


def result_of(
    form: AttentionForm, y: Encoding, *, multiplier: str = "numbers[1]", zero_point: str = "numbers[2]"
) -> str:
    """C expression of a result from `mean`."""
    scaled = f"fxp_scale({_shifted_left('mean', form.result)}, {multiplier}, {zero_point})"
    return saturated(scaled, y.qmin, y.qmax)


def _less(element: str, zero_point: int, place: int) -> str:
    return f"({element} - numbers[{place}])" if zero_point else element


def _product(form: AttentionForm, own: Operands) -> str:
    query = _less(f"query[e * {own.steps[0]}]", form.query_zero, 3)
    key = _less(f"key[e * {own.steps[1]}]", form.key_zero, 4)
    return f"{'(int64_t)' if form.wide_scores else ''}{query} * {key}"


def _weighted(form: AttentionForm, own: Operands) -> str:
    value = _less(f"value[j * {own.rows[2]}]", form.value_zero, 5)
    return f"{'(int64_t)' if form.wide_values else ''}scratch[j] * {value}"


def _shifted(form: AttentionForm) -> str:
    """The sum of values times a power of two, which depends on the leading zeros of the sum of exponentials."""
    if not form.wide_values:
        return f"fxp_shift_left(sum, zeros - {form.spread})"
    left, right = f"sum * (INT64_C(1) << (zeros - {form.spread}))", f"sum >> ({form.spread} - zeros)"
    return f"(int32_t)(zeros > {form.spread} ? {left} : {right})"


def _on_reals(site: Site, op: Attention) -> Offers:
    own = operands(site)
    for name in ("mask", "bias"):
        if site.has(name) and site.type(name).dtype not in (DType.F32, DType.BOOL):
            return f"a {name} of {site.type(name).dtype.value}"
    context = _float_context(site, op, own)
    keys = context.keys
    seen = keys * seen_share(site)
    macs, scores = site.node.macs * seen_share(site), site.output.numel / max(context.values, 1) * seen
    return offer(
        site,
        "host/attention.c.j2"
        if site.machine.is_host and context.has_dense_rows
        else "portable/attention.c.j2",
        context,
        Work(4.0 * macs, 20.0 * site.output.numel, 84.0 * scores, 400),
        reads=own.layouts,
        writes=(own.result,),
        scratch="float",
        scratch_bytes=4 * keys,
        uses_math=True,
        variant=written_out(context.features, context.values),
    )


def _float_context(site: Site, op: Attention, own: Operands) -> FloatContext:
    q, k, v = (site.type(operand).shape for operand in ("q", "k", "v"))
    mask, bias = own.place("mask"), own.place("bias")
    score, hidden = "dot * scale", ""
    if bias:
        score = f"dot * scale + {bias}"
    if mask:
        keeps = site.type("mask").dtype is DType.BOOL
        score = f"{_seen(mask, op)} ? {score} : -INFINITY" if keeps else f"{score} + {mask}"
        score = f"is_empty ? 0.0f : {score}" if keeps and op.empty == "uniform" else score
        hidden = f"!{mask}" if keeps else f"{mask} == -INFINITY"
    return FloatContext(
        title(site),
        own.nest,
        *(q[-2], k[-2], q[-1], v[-1]),
        real(op.scale_of(q[-1])),
        *own.rows,
        *own.steps,
        _last(op, k[-2]),
        score,
        hidden,
        bool(mask) and op.empty != "zero" and site.type("mask").dtype is DType.BOOL,
    )


def _seen(mask: str, op: Attention) -> str:
    """C expression of whether a key is read; if no key is kept, all are read, unless the result is zero."""
    return mask if op.empty == "zero" else f"(is_empty || {mask})"
