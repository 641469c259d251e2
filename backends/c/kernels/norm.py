"""Normalizations in portable C, on reals: batch norm as one factor and offset a channel, the others by statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....ir.ops.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm
from ..layout import Layout, contiguous
from ..literal import real
from .base import AnyArray, Call, Constant, Cost, Implementation, Offer, Site, call, kernel
from .layouts import dense_at_hand
from .nest import Nest, nest

_FLOAT32_EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class NormContext:
    """What the templates see: loops over groups, loops over a group's elements, the result from `x[at]`."""

    title: str
    outer: Nest
    inner: Nest
    at: str
    count: int
    root: str
    centred: bool
    value: str


@dataclass(frozen=True)
class AffineContext:
    """What the template of the batch norm sees."""

    title: str
    nest: Nest


@kernel("batch_norm")
def batch_norm(site: Site) -> Offer:
    """x * factor + offset, in the layout at hand."""
    op = site.node.op
    assert isinstance(op, BatchNorm)
    if not all(site.is_constant(i) for i in range(1, 5) if site.has(i)):
        return "statistics, weight and bias must be constants"
    mean, var = (site.array(i).astype(np.float64) for i in (3, 4))
    factor = 1.0 / np.sqrt(var + op.eps) * (site.array(1) if site.has(1) else 1.0)
    offset = (site.array(2) if site.has(2) else 0.0) - mean * factor
    layout, shape = _at_hand(site), site.output.shape
    along = [0] * len(shape)
    along[1] = 1
    strides = layout.strides(shape)
    loops = nest(shape, strides, along)
    constants = (
        Constant("factors", factor.astype(np.float32)),
        Constant("offsets", offset.astype(np.float32)),
    )
    context = AffineContext(f"Batch norm of {site.output.numel} elements", loops)
    made = call("norm/affine.c.j2", context, site, reads={"x": 0}, constants=constants)
    return (_implementation(site, layout, made, 10.0),)


@kernel("layer_norm", "rms_norm")
def rows(site: Site) -> Offer:
    """Statistics over some dimensions, often the last one."""
    op = site.node.op
    assert isinstance(op, (LayerNorm, RmsNorm))
    layout, shape = _at_hand(site), site.output.shape
    elements = op.dimensions(len(shape))
    rest = [dim for dim in range(len(shape)) if dim not in elements]
    steps = dict(zip(elements, contiguous(op.shape).strides(op.shape), strict=True))
    along = [steps.get(dim, 0) for dim in range(len(shape))]
    eps = _FLOAT32_EPSILON if op.eps is None else op.eps
    roots = (eps, op.root_eps)
    centred = isinstance(op, LayerNorm)
    return _offer(site, layout, shape, layout.strides(shape), along, rest, elements, roots, centred=centred)


@kernel("group_norm", "instance_norm")
def groups_of_channels(site: Site) -> Offer:
    """Statistics over groups of channels, or single channels, and all spatial dimensions."""
    op = site.node.op
    assert isinstance(op, (GroupNorm, InstanceNorm))
    shape = site.output.shape
    groups = op.groups if isinstance(op, GroupNorm) else shape[1]
    each = shape[1] // groups
    layout = _at_hand(site)
    own = layout.strides(shape)
    sizes = (shape[0], groups, each, *shape[2:])
    strides = (own[0], own[1] * each, own[1], *own[2:])
    channels = (0, each, 1, *(0,) * (len(shape) - 2))
    rows, elements = (0, 1), range(2, len(sizes))
    return _offer(site, layout, sizes, strides, channels, rows, elements, (op.eps, 0.0), centred=True)


def _offer(
    site: Site,
    layout: Layout,
    sizes: Sequence[int],
    strides: Sequence[int],
    parameter_steps: Sequence[int],
    rows: Sequence[int],
    elements: Sequence[int],
    roots: tuple[float, float],
    *,
    centred: bool,
) -> Offer:
    """`roots` are what is added below the square root and to it."""
    present = [i for i in (1, 2) if site.has(i)]
    if not all(site.is_constant(i) for i in present):
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
    value = f"(x[{at}] - mean) * factor" if centred else f"x[{at}] * factor"
    value += f" * weight{channel}" if site.has(1) else ""
    value += f" + bias{channel}" if site.has(2) else ""
    count = int(np.prod([sizes[d] for d in elements], dtype=np.int64))
    title = f"{site.node.op.name} of {site.output.numel // count} groups of {count} elements"
    below, beside = roots
    root = f"sqrtf(square / {count}.0f + {real(below)})" + (f" + {real(beside)}" if beside else "")
    context = NormContext(title, outer, inner, at, count, root, centred, value)
    constants = tuple(Constant({1: "weight", 2: "bias"}[i], _flat(site.array(i))) for i in present)
    made = call("norm/statistics.c.j2", context, site, reads={"x": 0}, constants=constants, uses_math=True)
    return (_implementation(site, layout, made, 30.0),)


def _implementation(site: Site, layout: Layout, made: Call, per_element: float) -> Implementation:
    instructions = per_element * site.output.numel
    cost = Cost(instructions, 1.4 * instructions, 150)
    name = f"{site.node.op.name}_portable"
    return Implementation(name, site.reads({0: layout}), (layout,), cost, (made,), overwrites=(0,))


def _at_hand(site: Site) -> Layout:
    return dense_at_hand(site, contiguous(site.type(0).shape))


def _flat(array: AnyArray) -> AnyArray:
    return np.ascontiguousarray(array.reshape(-1))
