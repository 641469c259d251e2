"""Interface by which operators declare coupled channels and apply cuts.

An axis is one dimension of one value, identified by a number; dimensions with the same channels may share it. Coupled
channels are kept or removed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..tensor_type import TensorType, kept_sizes

if TYPE_CHECKING:
    from .base import Op

Axes = tuple[int, ...]


class CouplingCall(Protocol):
    """The interface for an operator to declare the couplings of one node."""

    operands: tuple[Axes | None, ...]
    types: tuple[TensorType | None, ...]
    outputs: tuple[TensorType, ...]

    def operand(self, name: str) -> Axes:
        """The axes of an operand that is present."""

    def optional(self, name: str) -> Axes | None:
        """The axes of an operand, or None when it is absent."""

    def type(self, name: str) -> TensorType:
        """The type of an operand that is present."""

    def size(self, axis: int) -> int:
        """Number of channels along an axis."""

    def free(self, size: int, *, weak: bool = False) -> int:
        """A new axis. A `weak` axis has no channels of its own: in a choice between axes the others are preferred for
        removal.
        """

    def fixed(self, *sizes: int) -> Axes:
        """New axes whose channels cannot be removed, such as spatial dimensions."""

    def tie(self, a: int, b: int) -> None:
        """Channel i of `a` is channel i of `b`."""

    def tie_indices(self, a: int, in_a: Tensor, b: int, in_b: Tensor) -> None:
        """Couples channel `in_a[k]` of `a` with channel `in_b[k]` of `b`."""

    def fix(self, *axes: int, why: str) -> None:
        """Declares that no channel of these axes can be removed."""

    def heads(self, *axes: int) -> None:
        """Declares that these axes index independent computations, such as the heads of an attention."""

    def pool(self, *axes: int) -> None:
        """Declares that the operator computes statistics over these axes: after a removal, over the kept channels."""

    def sum_over(self, *axes: int) -> None:
        """Declares that results depend on all channels of these axes, and that the contribution of a removed channel
        is removed.
        """

    def regroup(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """Axes of a value of `shape` with the same elements in the same order as a value with `axes`."""

    def refuse(self) -> tuple[Axes, ...]:
        """Axes of all results of an operator without a rule: no channel of its operands and results can be removed."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Kept indices, ascending, for each dimension of each operand and result."""

    op: Op
    operands: tuple[tuple[Tensor, ...] | None, ...]
    results: tuple[tuple[Tensor, ...], ...]
    types: tuple[TensorType | None, ...]
    outputs: tuple[TensorType, ...]

    def operand(self, name: str) -> tuple[Tensor, ...]:
        """Kept indices of an operand that is present."""
        return self.op.operand(self.operands, name)

    def type(self, name: str) -> TensorType:
        """The type that an operand had before the cut."""
        return self.op.operand(self.types, name)

    def shape(self, *, result: int = 0) -> tuple[int, ...]:
        """Sizes of a result after the cut."""
        return kept_sizes(self.outputs[result].shape, self.results[result])

    def groups(self, name: str, axis: int, groups: int) -> int:
        """Number of consecutive groups along an operand's dimension that keep at least one channel."""
        each = self.type(name).shape[axis] // groups
        return len(torch.unique(torch.div(self.operand(name)[axis], each, rounding_mode="floor")))


def tie_broadcast(call: CouplingCall, shape: Sequence[int], *operands: Axes | None) -> Axes:
    """Axes of a result of `shape` to which operands broadcast from the last dimension on."""
    axes = []
    for place, size in enumerate(reversed(shape), start=1):
        met = [o[-place] for o in operands if o is not None and len(o) >= place]
        full = [axis for axis in met if call.size(axis) == size] if size != 1 else []
        for other in full[1:]:
            call.tie(full[0], other)
        axes.append(full[0] if full else call.fixed(size)[0])
    return tuple(reversed(axes))


def tie_all(call: CouplingCall, a: Axes, b: Axes | None) -> None:
    """Ties two values of the same shape; does nothing if the second is absent."""
    for left, right in zip(a, b or (), strict=b is not None):
        call.tie(left, right)


def tie_grouped(call: CouplingCall, groups: int, *axes: int) -> bool:
    """Ties axes that are split into `groups` equal parts, such that the parts stay equal.

    True if whole groups are removed (many small groups). Otherwise (few large groups) each group loses the same
    positions.
    """
    goes_whole = groups >= min(call.size(axis) // groups for axis in axes)
    if goes_whole and all(call.size(axis) == groups for axis in axes):
        for other in axes[1:]:
            call.tie(axes[0], other)
        return True
    common = call.free(groups) if goes_whole else None
    for axis in axes:
        size, each = call.size(axis), call.size(axis) // groups
        index = torch.arange(size)
        if common is not None:
            call.tie_indices(axis, index, common, torch.div(index, each, rounding_mode="floor"))
        else:
            call.tie_indices(axis, index, call.free(each), index % each)
    return goes_whole


def tie_part(call: CouplingCall, whole: int, start: int, size: int) -> int:
    """The axis of `size` channels of `whole` from `start` on."""
    if size == call.size(whole):
        return whole
    part = call.free(size)
    call.tie_indices(part, torch.arange(size), whole, torch.arange(start, start + size))
    return part
