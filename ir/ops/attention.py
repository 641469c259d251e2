"""Scaled dot-product attention: softmax(scale * q k^T + mask) v, on reals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..element_type import DType
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, check_floats, lowers, operator
from .binary import broadcast
from .channels import Axes, CouplingCall, Cut, tie_broadcast
from .facts import Facts


@operator("attention")
@dataclass(frozen=True)
class Attention(Op):
    """Each query's mean of the values, weighted by the softmax of its products with the keys.

    Operands: q [..., h, l, e], k [..., h, s, e], v [..., h, s, f], mask or none.
    A mask broadcasts to [..., h, l, s] and is added, or keeps the true positions when it is boolean.
    `causal` lets position i see no key after i. `scale` is 1/sqrt(e) when None. With `grouped`, q may have
    a multiple of the heads of k and v, each of which then serves that many neighbouring query heads.
    """

    facts = Facts(monotone=("v",), piecewise_linear=(("v",),))

    causal: bool = False
    scale: float | None = None
    grouped: bool = False

    def infer(
        self, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None
    ) -> tuple[TensorType, ...]:
        if min(q.rank, k.rank, v.rank) < 2 or {k.rank, v.rank} != {q.rank}:
            raise ShapeError(f"queries {q.shape}, keys {k.shape} and values {v.shape} differ in rank")
        check_floats(self, q, k, v)
        if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
            raise ShapeError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit")
        heads = self._heads(q, k, v)
        if mask is not None:
            self._check_mask(mask, (*heads, q.shape[-2], k.shape[-2]))
        return (replace(q.real(), shape=(*heads, q.shape[-2], v.shape[-1])),)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, mask, 0.0, self.causal, scale=self.scale, enable_gqa=self.grouped
        )

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        q, k = self.operand(operands, "q"), self.operand(operands, "k")
        assert q is not None and k is not None
        scores = outputs[0].numel // max(outputs[0].shape[-1], 1) * k.shape[-2]
        return scores * (q.shape[-1] + outputs[0].shape[-1])

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        q, k, v, mask = call.operand("q"), call.operand("k"), call.operand("v"), call.optional("mask")
        call.fix(k[-2], v[-2], why="the softmax of an attention is taken along it")
        call.tie(q[-1], k[-1])
        call.sum_over(q[-1])
        if self.causal:
            call.fix(q[-2], why="positions of a causal attention are counted")
        heads = call.outputs[0].shape[:-2]
        if self.grouped and call.size(q[-3]) != call.size(k[-3]):
            call.tie(k[-3], v[-3])
            index = torch.arange(call.size(q[-3]))
            serves = call.size(q[-3]) // call.size(k[-3])
            call.tie_indices(q[-3], index, k[-3], torch.div(index, serves, rounding_mode="floor"))
            lead = (*tie_broadcast(call, heads[:-1], q[:-3], k[:-3], v[:-3]), q[-3])
        else:
            lead = tie_broadcast(call, heads, q[:-2], k[:-2], v[:-2])
        call.heads(*lead, *k[:-2], *v[:-2])
        if mask is not None:
            scores = (*lead, q[-2], k[-2])
            tie_broadcast(call, [call.size(axis) for axis in scores], scores, mask)
        return ((*lead, q[-2], v[-1]),)

    def cut(self, cut: Cut) -> Attention:
        """The scale stays that of the whole attention."""
        width = cut.type("q").shape[-1]
        if self.scale is not None or len(cut.operand("q")[-1]) == width:
            return self
        return replace(self, scale=1 / math.sqrt(width))

    def _heads(self, q: TensorType, k: TensorType, v: TensorType) -> tuple[int, ...]:
        if not self.grouped:
            return broadcast(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        if q.rank < 3 or k.shape[-3] != v.shape[-3] or not k.shape[-3] or q.shape[-3] % k.shape[-3]:
            raise ShapeError(f"the heads of {q.shape} are no multiple of those of {k.shape} and {v.shape}")
        return (*broadcast(q.shape[:-3], k.shape[:-3], v.shape[:-3]), q.shape[-3])

    def _check_mask(self, mask: TensorType, scores: tuple[int, ...]) -> None:
        if self.causal:
            raise ShapeError("a causal attention takes no mask")
        if mask.rank < 2 or broadcast(mask.shape, scores) != scores:
            raise ShapeError(f"mask {mask.shape} for scores {scores}")
        if mask.dtype is not DType.BOOL and not mask.dtype.is_floating:
            raise ShapeError(f"a mask is boolean or floating point, not {mask.dtype.value}")


@lowers("scaled_dot_product_attention.default")
def _lower_attention(call: AtenCall) -> Value | None:
    if call["dropout_p"]:
        return None
    op = Attention(call["is_causal"], call["scale"], call["enable_gqa"])
    operands = (call.value("query"), call.value("key"), call.value("value"), call.optional_value("attn_mask"))
    return call.emit(op, *operands)
