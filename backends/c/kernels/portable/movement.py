"""Data movement that keeps every element, reshape and permute: a view of the operand's memory if possible."""

from __future__ import annotations

from .....ir.ops.shape import Permute, Reshape
from ...plan.layout import Layout, Shape, arranged, channels_last, contiguous, reshaped
from ..base import Offer, Offers, Site, kernel
from .copying import Place, copy, view


@kernel("permute")
def permute(site: Site) -> Offers:
    """A permuted value is the same memory with its dimensions in another order."""
    op = site.node.op
    assert isinstance(op, Permute)
    at_hand = site.at_hand("x") or contiguous(site.type("x").shape)
    order = tuple(op.order.index(dim) for dim in at_hand.order)
    border = tuple(at_hand.border[dim] for dim in op.order) if at_hand.border else ()
    return view(site, at_hand, arranged(site.output.shape, order, border=border))


@kernel("reshape")
def reshape(site: Site) -> Offers:
    """A view or, if the order of elements changes, a copy into either of the usual layouts."""
    assert isinstance(site.node.op, Reshape)
    shape, result = site.type("x").shape, site.output.shape
    at_hand = site.at_hand("x") or contiguous(shape)
    seen = reshaped(shape, at_hand, result)
    if seen is not None:
        return view(site, at_hand, seen)
    through_contiguous = view(site, contiguous(shape), contiguous(result))
    sizes = _common_sizes(shape, result)
    if sizes is None or at_hand.border:
        return through_contiguous
    copied = (_copied(site, sizes, at_hand, to) for to in (contiguous(result), channels_last(result)))
    return (through_contiguous, *copied)


def _copied(site: Site, sizes: Shape, at_hand: Layout, to: Layout) -> Offer:
    shape, result = site.type("x").shape, site.output.shape
    source = Place(_split_strides(shape, at_hand.strides(shape), sizes))
    call, work = copy(
        site.output.dtype, sizes, source, Place(_split_strides(result, to.strides(result), sizes))
    )
    return Offer.of_calls("reshape_copy", (at_hand,), (to,), work, call)


def _common_sizes(a: Shape, b: Shape) -> Shape | None:
    """Sizes such that the dimensions of both shapes are products of neighbours; None if there are none."""
    found: list[int] = []
    left_a, left_b = [n for n in a if n > 1], [n for n in b if n > 1]
    while left_a and left_b:
        x, y = left_a.pop(), left_b.pop()
        if max(x, y) % min(x, y):
            return None
        found.append(min(x, y))
        if x > y:
            left_a.append(x // y)
        elif y > x:
            left_b.append(y // x)
    return tuple(reversed(found))


def _split_strides(shape: Shape, strides: tuple[int, ...], sizes: Shape) -> tuple[int, ...]:
    """Strides along `sizes`, whose products are the dimensions of `shape`."""
    found: list[int] = []
    dims = [(n, step) for n, step in zip(shape, strides, strict=True) if n > 1]
    left, step = 1, 0
    for size in reversed(sizes):
        if left == 1:
            left, step = dims.pop()
        found.append(step)
        step *= size
        left //= size
    return tuple(reversed(found))
