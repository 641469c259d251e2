"""Scaled dot-product attention: softmax(scale * q k^T + mask) v.

The integer form stores one row of scores at a time: see `attention_form`.
"""

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
from .attention_form import SCORES, AttentionForm
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .binary import broadcast
from .channels import Axes, CouplingCall, Cut, tie_broadcast
from .facts import Facts
from .quantize import per_tensor_types
from .softmax import check_empty


@operator("attention")
@dataclass(frozen=True)
class Attention(Op):
    """Mean of the values for each query, weighted by the softmax of the products of the query with the keys.

    Operands: q [..., h, l, e], k [..., h, s, e], v [..., h, s, f], mask or none, bias or none. A floating point mask
    broadcasts to [..., h, l, s] and is added; a boolean mask keeps the true positions; a bias is added as well. With
    `causal`, position i reads no key after i. `scale` None means 1/sqrt(e). With `grouped`, q may have a multiple of
    the heads of k and v: each head of k and v is then used for that many consecutive query heads. The result of a
    query for which a boolean mask keeps no key is, by `empty`: zeros (zero), the mean of the values (uniform), or the
    result without a mask (all).
    """

    quantized = Quantized.COMPUTE
    facts = Facts(monotone=("v",), piecewise_linear=(("v",),))

    causal: bool = False
    scale: float | None = None
    grouped: bool = False
    empty: str = "zero"

    def infer(
        self,
        q: TensorType,
        k: TensorType,
        v: TensorType,
        mask: TensorType | None = None,
        bias: TensorType | None = None,
    ) -> tuple[TensorType, ...]:
        check_empty(self.empty)
        if min(q.rank, k.rank, v.rank) < 2 or {k.rank, v.rank} != {q.rank}:
            raise ShapeError(f"queries {q.shape}, keys {k.shape} and values {v.shape} differ in rank")
        check_floats(self, q, k, v)
        if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
            raise ShapeError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit")
        heads = self._heads(q, k, v)
        for added in (mask, bias):
            if added is not None:
                self._check_mask(added, (*heads, q.shape[-2], k.shape[-2]))
        if bias is not None and bias.dtype is DType.BOOL:
            raise ShapeError("a bias is floating point, not boolean")
        return (replace(q.real(), shape=(*heads, q.shape[-2], v.shape[-1])),)

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        causal = self.causal
        if causal and (mask is not None or bias is not None):
            seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
            mask = (
                seen if mask is None else seen & mask if mask.dtype is torch.bool else mask + _added(seen, q)
            )
            causal = False
        if mask is not None and mask.dtype is torch.bool and self.empty != "zero":
            if self.empty == "all":
                mask = mask | ~mask.any(-1, keepdim=True)
            else:
                mask = _added(mask, q, never=torch.finfo(q.dtype).min)
        if bias is not None:
            mask = bias if mask is None else bias + (_added(mask, q) if mask.dtype is torch.bool else mask)
        return functional.scaled_dot_product_attention(
            q, k, v, mask, 0.0, causal, scale=self.scale, enable_gqa=self.grouped
        )

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        mask, bias = self.optional(operands, "mask"), self.optional(operands, "bias")
        if mask is not None and mask.dtype is not DType.BOOL:
            raise ShapeError("the mask of an attention on integers is boolean; pass an added mask as bias")
        if bias is not None and bias.quantization != SCORES:
            raise ShapeError("the bias of an attention on integers has 16 bits in steps of log(2) / 256")
        if self.causal and self.empty != "zero" and mask is not None:
            raise ShapeError("a causal attention with a mask gives zero for empty rows")
        self.form(operands, outputs[0])

    def form(self, operands: Sequence[TensorType | None], output: TensorType) -> AttentionForm:
        """Numbers of the integer form; OverflowBoundError if there is none."""
        q, k, v = (self.operand(operands, name) for name in ("q", "k", "v"))
        encodings = per_tensor_types(q, k, v, output)
        return AttentionForm.of(
            *encodings, features=q.shape[-1], keys=k.shape[-2], scale=self.scale_of(q.shape[-1])
        )

    def largest_score(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        """Largest magnitude of the scores (products and biases) of queries with keys that no mask hides."""
        if self.grouped and q.shape[-3] != k.shape[-3]:
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        products = torch.matmul(q, k.transpose(-1, -2)) * self.scale_of(q.shape[-1])
        scores = products.abs().amax() if products.numel() else products.new_zeros(())
        return (
            scores
            if bias is None or not bias.numel()
            else torch.maximum(scores, (products + bias).abs().amax())
        )

    def scale_of(self, features: int) -> float:
        """The factor of the products of queries and keys."""
        return 1 / math.sqrt(max(features, 1)) if self.scale is None else self.scale

    def integer(self, call: IntegerCall) -> Tensor:
        q, k, v = (call.operand(name) for name in ("q", "k", "v"))
        if self.grouped and q.shape[-3] != k.shape[-3]:
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        kept = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
        kept = kept.tril() if self.causal else kept
        mask, bias = call.optional("mask"), call.optional("bias")
        if mask is not None:
            kept = kept & mask.bool()
        form = self.form(call.types, call.output)
        assert call.output.quantization is not None
        return form.apply(q, k, v, kept, bias, call.output.quantization, empty=self.empty)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        q, k = self.operand(operands, "q"), self.operand(operands, "k")
        assert q is not None and k is not None
        scores = outputs[0].numel // max(outputs[0].shape[-1], 1) * k.shape[-2]
        return scores * (q.shape[-1] + outputs[0].shape[-1])

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        q, k, v, mask = call.operand("q"), call.operand("k"), call.operand("v"), call.optional("mask")
        call.fix(k[-2], v[-2], why="the softmax of an attention is computed along it")
        call.tie(q[-1], k[-1])
        call.sum_over(q[-1])
        if self.causal:
            call.fix(q[-2], why="a causal attention depends on positions")
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
        scores = (*lead, q[-2], k[-2])
        for added in (mask, call.optional("bias")):
            if added is not None:
                tie_broadcast(call, [call.size(axis) for axis in scores], scores, added)
        return ((*lead, q[-2], v[-1]),)

    def cut(self, cut: Cut) -> Attention:
        """The attention with the scale of the uncut attention."""
        width = cut.type("q").shape[-1]
        if self.scale is not None or len(cut.operand("q")[-1]) == width:
            return self
        return replace(self, scale=1 / math.sqrt(width))

    def _heads(self, q: TensorType, k: TensorType, v: TensorType) -> tuple[int, ...]:
        if not self.grouped:
            return broadcast(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        if q.rank < 3 or k.shape[-3] != v.shape[-3] or not k.shape[-3] or q.shape[-3] % k.shape[-3]:
            raise ShapeError(f"the heads of {q.shape} are not a multiple of those of {k.shape} and {v.shape}")
        return (*broadcast(q.shape[:-3], k.shape[:-3], v.shape[:-3]), q.shape[-3])

    def _check_mask(self, mask: TensorType, scores: tuple[int, ...]) -> None:
        if mask.rank < 2 or broadcast(mask.shape, scores) != scores:
            raise ShapeError(f"mask {mask.shape} for scores {scores}")
        if mask.dtype is not DType.BOOL and not mask.real().dtype.is_floating:
            raise ShapeError(f"a mask is boolean or floating point, not {mask.dtype.value}")


def _added(kept: Tensor, like: Tensor, *, never: float = -math.inf) -> Tensor:
    """A boolean mask as a bias that is added to scores."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(kept.shape).masked_fill(~kept, never)


@lowers("scaled_dot_product_attention.default")
def _lower_attention(call: AtenCall) -> Value | None:
    if call["dropout_p"]:
        return None
    op = Attention(call["is_causal"], call["scale"], call["enable_gqa"])
    operands = (call.value("query"), call.value("key"), call.value("value"), call.optional_value("attn_mask"))
    return call.emit(op, *operands)
