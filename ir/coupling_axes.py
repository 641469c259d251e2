"""Axes of values during the walk over a graph: which axes are equal, which cannot shrink, which mix in a reshape.

A reshape that splits N = A * B channels, or joins them, leaves a rectangle only if whole rows or whole columns are
removed. The choice between the two is made after the walk over the graph: if one side cannot shrink, the other side
does; if both can, one of them is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from .graph import NOWHERE, Node, Source
from .ops.channels import Axes
from .tensor_type import TensorType

Indices = np.ndarray  # int64


@dataclass(frozen=True, slots=True)
class Reason:
    """Reason why channels cannot be removed: a property of the graph or, if `is_refusal`, an operator
    without a rule.
    """

    why: str
    name: str = ""
    source: Source = NOWHERE
    is_refusal: bool = False

    def __str__(self) -> str:
        place = f" ({self.source})" if str(self.source) else ""
        return f"%{self.name}{place}: {self.why}" if self.name else self.why


@dataclass(frozen=True, slots=True)
class Tie:
    """Channel `in_a[k]` of axis `a` is coupled to channel `in_b[k]` of axis `b`."""

    a: int
    in_a: Indices
    b: int
    in_b: Indices


@dataclass(frozen=True, slots=True)
class _Regroup:
    """Axes of one reshape before and after it, in row-major order of the same elements."""

    before: Axes
    after: Axes
    reason: Reason


class AxisTable:
    """All axes of a graph, as a union-find forest. With `whole_heads` a reshape loses whole heads, not parts of heads.

    Axes are united while operators query reasons and sizes, so components are needed at every step, and the oldest
    axis is the root: `networkx.utils.UnionFind` chooses the axis with most members, and stores no data for a
    component.
    """

    def __init__(self, *, whole_heads: bool = False) -> None:
        self.ties: list[Tie] = []
        self.whole_heads = whole_heads
        self._heads: list[int] = []
        self._sizes: list[int] = []
        self._parents: list[int] = []
        self._weak: list[bool] = []
        self._reasons: list[Reason | None] = []
        self._regroups: list[_Regroup] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def size(self, axis: int) -> int:
        """Number of channels of an axis."""
        return self._sizes[axis]

    def add(self, size: int, *, reason: Reason | None = None, weak: bool = False) -> int:
        """A new axis; an axis with a single channel cannot shrink."""
        self._sizes.append(size)
        self._parents.append(len(self._parents))
        self._weak.append(weak)
        self._reasons.append(reason or (Reason("there is only one") if size <= 1 else None))
        return len(self._sizes) - 1

    def root(self, axis: int) -> int:
        """Representative of all axes that are equal to this one."""
        while self._parents[axis] != axis:
            self._parents[axis] = self._parents[self._parents[axis]]
            axis = self._parents[axis]
        return axis

    def reason(self, axis: int) -> Reason | None:
        """Reason why the axis cannot shrink; None if it can."""
        return self._reasons[self.root(axis)]

    def fix(self, axis: int, reason: Reason) -> None:
        """Marks the axis as fixed. The first reason is kept, unless a later one is a refusal."""
        root, known = self.root(axis), self._reasons[self.root(axis)]
        if known is None or (reason.is_refusal and not known.is_refusal):
            self._reasons[root] = reason

    def mark_heads(self, axes: Axes) -> None:
        """Marks these axes as axes that index heads."""
        self._heads += axes

    @property
    def heads(self) -> frozenset[int]:
        """The roots of all axes that index heads and can shrink."""
        return frozenset(self.root(axis) for axis in self._heads if self.reason(axis) is None)

    def tie(self, a: int, b: int) -> None:
        """Makes two axes of equal size the same axis."""
        assert self._sizes[a] == self._sizes[b]
        a, b = sorted((self.root(a), self.root(b)))
        self._parents[b] = a
        self._weak[a] = self._weak[a] and self._weak[b]
        known = self._reasons[b]
        if a != b and known is not None:
            self.fix(a, known)

    def regroup(self, axes: Axes, shape: Sequence[int], reason: Reason) -> Axes:
        """Axes of a reshape's result; axes that change position only because of dimensions of size 1 are kept."""
        if not prod(shape):
            for axis in axes:
                self.fix(axis, reason)
            return tuple(self.add(n, reason=reason) for n in shape)
        result = [self.add(n) if n == 1 else -1 for n in shape]
        before = [axis for axis in axes if self._sizes[axis] != 1]
        after = [place for place, n in enumerate(shape) if n != 1]
        while before:
            own, places = [before.pop(0)], [after.pop(0)]
            while (n := prod(self._sizes[a] for a in own)) != (m := prod(shape[p] for p in places)):
                if n < m:
                    own.append(before.pop(0))
                else:
                    places.append(after.pop(0))
            made = own if len(own) == len(places) == 1 else [self.add(shape[p]) for p in places]
            if made is not own:
                self._regroups.append(_Regroup(tuple(own), tuple(made), reason))
            for place, axis in zip(places, made, strict=True):
                result[place] = axis
        return tuple(result)

    def settle(self) -> None:
        """Decides along which axis each reshape loses channels, and ties these axes."""
        pending = self._regroups
        while any([self._narrow(r) | self._spread_heads(r) for r in pending]) or self._tie_heads():
            pass
        while True:
            if any([self._narrow(regroup) for regroup in pending]):
                continue
            chosen = next(
                (r for r in pending if max(len(self._open(s)) for s in (r.before, r.after)) > 1), None
            )
            if chosen is None:
                break
            self._choose(chosen)
        for regroup in pending:
            before, after = self._open(regroup.before), self._open(regroup.after)
            if before and after:
                in_before = self._places(regroup.before, before[0])
                self.ties.append(Tie(before[0], in_before, after[0], self._places(regroup.after, after[0])))

    def _open(self, axes: Axes) -> list[int]:
        return [axis for axis in axes if self.reason(axis) is None]

    def _spread_heads(self, regroup: _Regroup) -> bool:
        """Propagates "this axis indexes heads" through a reshape; True if anything changed."""
        known = {self.root(axis) for axis in self._heads}
        found: list[int] = []
        for side, other in ((regroup.before, regroup.after), (regroup.after, regroup.before)):
            can_go = self._open(side)
            if len(can_go) != 1 or self.root(can_go[0]) not in known or 1 not in (len(side), len(other)):
                continue
            if known.isdisjoint(self.root(axis) for axis in other):
                found += [axis for axis in other if not self._weak[self.root(axis)]]
        self._heads += found
        return not known.issuperset(self.root(axis) for axis in found)

    def _tie_heads(self) -> bool:
        """Propagates "this axis indexes heads" to coupled axes; True if anything changed."""
        known = {self.root(axis) for axis in self._heads}
        pairs = [(self.root(tie.a), self.root(tie.b)) for tie in self.ties]
        found = [b if a in known else a for a, b in pairs if (a in known) != (b in known)]
        self._heads += found
        return bool(found)

    def _narrow(self, regroup: _Regroup) -> bool:
        """Propagates "this axis cannot shrink" through a reshape; True if anything changed."""
        before, after = self._open(regroup.before), self._open(regroup.after)
        if bool(before) == bool(after):
            return False
        known = self.reason((regroup.before if after else regroup.after)[0])
        for axis in before or after:
            self.fix(axis, known or regroup.reason)
        return True

    def _choose(self, regroup: _Regroup) -> None:
        """Chooses the axis of each side that may shrink: the largest, the last of equals; inside heads unless
        `whole_heads`.
        """
        heads = self.heads if self.whole_heads else frozenset()

        def rank(axis: int) -> tuple[bool, bool, int]:
            root = self.root(axis)
            return root in heads, not self._weak[root], self._sizes[axis]

        for side in (regroup.before, regroup.after):
            ranked = sorted(self._open(side), key=rank)
            for axis in ranked[:-1]:
                if self.root(axis) != self.root(ranked[-1]):
                    self.fix(axis, Reason("channels are removed along another dimension of the same reshape"))
                else:
                    self.fix(axis, regroup.reason)

    def _places(self, axes: Axes, axis: int) -> Indices:
        """The index along `axis` of each element of the rectangle of `axes`."""
        at = axes.index(axis)
        inner = prod(self._sizes[a] for a in axes[at + 1 :])
        outer = prod(self._sizes[a] for a in axes[:at])
        return np.tile(np.repeat(np.arange(self._sizes[axis]), inner), outer)


class NodeCall:
    """The `CouplingCall` of one node."""

    def __init__(self, table: AxisTable, node: Node, operands: Sequence[Axes | None]) -> None:
        self.types: tuple[TensorType | None, ...] = node.operand_types
        self.outputs: tuple[TensorType, ...] = node.output_types
        self.pooled: tuple[int, ...] = ()
        self.summed: tuple[int, ...] = ()
        self.operands = tuple(operands)
        self._table, self._node = table, node

    def operand(self, name: str) -> Axes:
        """The axes of an operand that is present."""
        return self._node.op.operand(self.operands, name)

    def optional(self, name: str) -> Axes | None:
        """The axes of an operand, or None when it is absent."""
        return self._node.op.optional(self.operands, name)

    def type(self, name: str) -> TensorType:
        """The type of an operand that is present."""
        return self._node.op.operand(self.types, name)

    def size(self, axis: int) -> int:
        """Number of channels along an axis."""
        return self._table.size(axis)

    def free(self, size: int, *, weak: bool = False) -> int:
        """A new axis."""
        return self._table.add(size, weak=weak)

    def fixed(self, *sizes: int) -> Axes:
        """New axes whose channels cannot be removed."""
        return tuple(
            self._table.add(size, reason=self._reason("it is not a channel dimension")) for size in sizes
        )

    def tie(self, a: int, b: int) -> None:
        """Channel i of `a` is channel i of `b`."""
        self._table.tie(a, b)

    def tie_indices(self, a: int, in_a: Tensor, b: int, in_b: Tensor) -> None:
        """Couples channel `in_a[k]` of `a` with channel `in_b[k]` of `b`."""
        self._table.ties.append(Tie(a, in_a.numpy(), b, in_b.numpy()))

    def fix(self, *axes: int, why: str) -> None:
        """Declares that no channel of these axes can be removed."""
        for axis in axes:
            self._table.fix(axis, self._reason(why))

    def heads(self, *axes: int) -> None:
        """Declares that these axes index independent computations."""
        self._table.mark_heads(axes)

    def pool(self, *axes: int) -> None:
        """Declares that the operator computes statistics over these axes."""
        self.pooled += axes

    def sum_over(self, *axes: int) -> None:
        """Declares that results depend on all channels of these axes."""
        self.summed += axes

    def regroup(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """Axes of a value of `shape` with the same elements in the same order."""
        return self._table.regroup(
            axes, shape, self._reason("removing these channels would not leave a rectangle")
        )

    def refuse(self) -> tuple[Axes, ...]:
        """Fixes all operands and results, because the operator has no rule."""
        what = getattr(self._node.op, "target", self._node.op.name)
        reason = Reason(f"{what} has no rule for channel coupling", *self._place(), is_refusal=True)
        for axis in (axis for axes in self.operands for axis in axes or ()):
            if self._table.size(axis) > 1:
                self._table.fix(axis, reason)
        return tuple(tuple(self._table.add(n, reason=reason) for n in type.shape) for type in self.outputs)

    def _reason(self, why: str) -> Reason:
        return Reason(why, *self._place())

    def _place(self) -> tuple[str, Source]:
        return self._node.outputs[0].name, self._node.source


def as_index(indices: Indices) -> Tensor:
    """Indices as torch takes them."""
    return torch.from_numpy(np.ascontiguousarray(indices))
