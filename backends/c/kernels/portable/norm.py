"""Normalizations in portable C: batch norm on reals as one factor and offset per channel, the others with statistics.

Their integer forms are those of `ir/ops/norm_form.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .....ir.arithmetic import INT32_MAX
from .....ir.ops.norm import BatchNorm, GroupNorm, InstanceNorm, RowNorm, StatisticsNorm
from .....ir.ops.norm_form import NormForm
from ...plan.layout import Layout, contiguous
from ...write.literal import integer, real
from ..base import AnyArray, Call, Constant, Offer, Offers, Site, Work, call, kernel, offer
from ..layouts import dense_at_hand
from ..nest import Nest, nest
from ..rounding import saturated


@dataclass(frozen=True)
class NormContext:
    """Template context: loops over groups and their elements, and the result from `x[at]`."""

    title: str
    outer: Nest
    inner: Nest
    at: str
    count: int
    root: str
    centred: bool
    value: str


@dataclass(frozen=True)
class IntegerContext:
    """Context of the template on integers: loops as above; `square` of an element `u`, results from `normed`.

    The array `numbers` has multiplier, zero point, two words of the epsilon, and the operand's zero point if no mean
    is subtracted.
    """

    title: str
    outer: Nest
    inner: Nest
    at: str
    centred: bool
    squares_type: str
    element: str
    square: str
    deviation: str
    radicand: str
    shifted: str
    value: str


@dataclass(frozen=True)
class AffineContext:
    """Template context of the batch norm."""

    title: str
    nest: Nest


@kernel("batch_norm")
def batch_norm(site: Site) -> Offers:
    """x * factor + offset, in the available layout."""
    op = site.node.op
    assert isinstance(op, BatchNorm)
    if not all(site.is_constant(name) for name in ("weight", "bias", "mean", "var") if site.has(name)):
        return "statistics, weight and bias must be constants"
    layout, shape = dense_at_hand(site), site.output.shape
    along = [0] * len(shape)
    along[1] = 1
    strides = layout.strides(shape)

    def pack() -> list[AnyArray]:
        mean, var = (site.array(name).astype(np.float64) for name in ("mean", "var"))
        factor = 1.0 / np.sqrt(var + op.eps) * (site.array("weight") if site.has("weight") else 1.0)
        offset = (site.array("bias") if site.has("bias") else 0.0) - mean * factor
        return [numbers.astype(np.float32) for numbers in (factor, offset)]

    return offer(
        site,
        "portable/norm_affine.c.j2",
        AffineContext(f"Batch norm of {site.output.numel} elements", nest(shape, strides, along)),
        Work(results=10.0 * site.output.numel, code_bytes=150),
        reads={"x": layout},
        writes=(layout,),
        constants=dict.fromkeys(("factors", "offsets"), 4 * shape[1]),
        pack=pack,
        overwrites=(0,),
    )


@kernel("layer_norm", "rms_norm")
def rows(site: Site) -> Offers:
    """Statistics over some dimensions, often the last one."""
    op = site.node.op
    assert isinstance(op, RowNorm)
    layout, shape = dense_at_hand(site), site.output.shape
    elements = op.dimensions(len(shape))
    rest = [dim for dim in range(len(shape)) if dim not in elements]
    steps = dict(zip(elements, contiguous(op.shape).strides(op.shape), strict=True))
    along = [steps.get(dim, 0) for dim in range(len(shape))]
    return _offer(site, op, layout, shape, layout.strides(shape), along, rest, elements)


@kernel("group_norm", "instance_norm")
def groups_of_channels(site: Site) -> Offers:
    """Statistics over groups of channels, or single channels, and all spatial dimensions."""
    op = site.node.op
    assert isinstance(op, (GroupNorm, InstanceNorm))
    shape = site.output.shape
    groups = op.groups if isinstance(op, GroupNorm) else shape[1]
    each = shape[1] // groups
    layout = dense_at_hand(site)
    own = layout.strides(shape)
    sizes = (shape[0], groups, each, *shape[2:])
    strides = (own[0], own[1] * each, own[1], *own[2:])
    channels = (0, each, 1, *(0,) * (len(shape) - 2))
    rows, elements = (0, 1), range(2, len(sizes))
    return _offer(site, op, layout, sizes, strides, channels, rows, elements)


def _offer(
    site: Site,
    op: StatisticsNorm,
    layout: Layout,
    sizes: Sequence[int],
    strides: Sequence[int],
    parameter_steps: Sequence[int],
    rows: Sequence[int],
    elements: Sequence[int],
) -> Offers:
    present = [name for name in op.real_operands if site.has(name)]
    if not all(site.is_constant(name) for name in present):
        return "weight and bias must be constants"
    outer = nest([sizes[d] for d in rows], [strides[d] for d in rows], [parameter_steps[d] for d in rows])
    inner = nest(
        [sizes[d] for d in elements],
        [strides[d] for d in elements],
        [parameter_steps[d] for d in elements],
        prefix="j",
        depth=outer.inside,
    )
    channel = f"[{outer.at[1]} + {inner.at[1]}]"
    at = f"{outer.at[0]} + {inner.at[0]}"
    if site.is_integer:
        return _integer_offer(site, op, layout, outer, inner)
    value = f"(x[{at}] - mean) * factor" if op.is_centred else f"x[{at}] * factor"
    value += f" * weight{channel}" if site.has("weight") else ""
    value += f" + bias{channel}" if site.has("bias") else ""
    count = int(np.prod([sizes[d] for d in elements], dtype=np.int64))
    title = f"{site.node.op.name} of {site.output.numel // count} groups of {count} elements"
    below, beside = op.epsilons
    root = f"sqrtf(square / {count}.0f + {real(below)})" + (f" + {real(beside)}" if beside else "")
    context = NormContext(title, outer, inner, at, count, root, op.is_centred, value)
    return offer(
        site,
        "portable/norm_statistics.c.j2",
        context,
        Work(30.0 * site.output.numel, 0.0, 100.0 * site.output.numel / count, 150),
        reads={"x": layout},
        writes=(layout,),
        constants={name: site.array_bytes(name) for name in present},
        pack=lambda: [np.ascontiguousarray(site.array(name).reshape(-1)) for name in present],
        overwrites=(0,),
        uses_math=True,
        variant="centred" if op.is_centred else "",
    )


def _integer_offer(site: Site, op: StatisticsNorm, layout: Layout, outer: Nest, inner: Nest) -> Offer:
    """The offer on integers, whose form depends on weight and bias: `build` reads them."""
    path = "portable/norm_integer.c.j2"

    def build() -> tuple[Call, ...]:
        context, arrays = _integer_form(site, op, outer, inner)
        return (call(site, path, context, {"x": "x"}, constants=arrays),)

    arrays = [name for name in op.real_operands if site.has(name) and site.type(name).numel > 1]
    constants = {name: site.array_bytes(name) for name in arrays} | {"numbers": 16 if op.is_centred else 20}
    in_place = site.type("x").dtype is site.output.dtype
    return Offer(
        f"{op.name}_portable",
        site.reads({"x": layout}),
        (layout,),
        _work_of_integers(site, op),
        (path,),
        build,
        constants,
        overwrites=(0,) if in_place else (),
    )


def _integer_form(
    site: Site, op: StatisticsNorm, outer: Nest, inner: Nest
) -> tuple[IntegerContext, tuple[Constant, ...]]:
    """The context of the template on integers, and its arrays; a number in place of an array of one element."""
    parameters = [torch.from_numpy(site.array(name)) if site.has(name) else None for name in op.real_operands]
    form, y = op.form(site.type("x"), site.output, *parameters), site.output_quantization
    channel, at = f"[{outer.at[1]} + {inner.at[1]}]", f"{outer.at[0]} + {inner.at[0]}"
    element = f"x[{at}]" if form.is_centred else f"x[{at}] - zero_point"
    mean = " - (uint64_t)((int64_t)sum * sum)" if form.is_centred else ""
    arrays = {"weight": form.weight, "bias": form.bias}
    weight, bias = (
        f"{role}{channel}" if array.numel() > 1 else integer(int(array)) for role, array in arrays.items()
    )
    numbers = [
        form.multiplier,
        y.zero_point[0],
        form.epsilon >> 32,
        form.epsilon & 0xFFFFFFFF,
        form.zero_point,
    ]
    context = IntegerContext(
        title=f"{op.name} of {site.output.numel // form.count} groups of {form.count} elements",
        outer=outer,
        inner=inner,
        at=at,
        centred=form.is_centred,
        squares_type="uint32_t" if form.count * form.reach**2 < 1 << 32 else "uint64_t",
        element=element,
        square="(uint32_t)(u * u)" if form.reach**2 <= INT32_MAX else "(uint64_t)((int64_t)u * u)",
        deviation=f"{form.count}u * (uint64_t)squares{mean}",
        radicand=f"((deviation != 0 ? deviation : 1) << {2 * form.spread}) + epsilon",
        shifted=_shifted(form, element),
        value=saturated(
            f"fxp_scale(fxp_scale(normed, {weight}, {bias}), numbers[0], numbers[1])", y.qmin, y.qmax
        ),
    )
    constants = [
        Constant(role, array.reshape(-1).numpy().astype(np.int32))
        for role, array in arrays.items()
        if array.numel() > 1
    ]
    words = np.array(numbers, np.int64).astype(np.uint32).view(np.int32)
    return context, (*constants, Constant("numbers", words[: 4 if form.is_centred else 5]))


def _shifted(form: NormForm, element: str) -> str:
    """An element minus the mean, times their count and the power of two."""
    less_mean = f"{form.count} * ({element})" + (" - sum" if form.is_centred else "")
    missing = form.root_bits - form.spread
    if missing <= 0:
        return f"fxp_shift_left({less_mean}, root.shift + {-missing})"
    shift = f"root.shift - {missing}"
    return f"fxp_shift_left({less_mean}, {shift} > 0 ? {shift} : 0) >> ({shift} < 0 ? {missing} - root.shift : 0)"


def _work_of_integers(site: Site, op: StatisticsNorm) -> Work:
    """The work of each element, and of each group, most of which is root and quotient."""
    elements = site.output.numel
    return Work(17.0 * elements, 0.0, 880.0 * elements / op.groups_of(site.output.shape).count, 150)
