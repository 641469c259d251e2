"""Products of two matrices that are both activations, and of groups of rows with one matrix each.

Leading dimensions of `matmul` are batches and broadcast. On integers it is requant(sum((a - za) * (b - zb)), sa * sb
/ sy) + zy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import INT32_MAX, WIDEST_SUM, requant, requant_sum
from ..element_type import DType
from ..errors import OverflowBoundError, ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .binary import broadcast, requant_of_product
from .channels import Axes, CouplingCall, tie_broadcast
from .facts import Facts
from .linear import Linear
from .quantize import per_tensor_types
from .shape import Permute


@operator("matmul")
@dataclass(frozen=True)
class MatMul(Op):
    """a [..., m, k] times b [..., k, n]; a vector is one row of a, or one column of b."""

    quantized = Quantized.COMPUTE
    facts = Facts(piecewise_linear=(("a",), ("b",)))

    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        check_floats(self, a, b)
        if not a.rank or not b.rank or a.shape[-1] != b.shape[-2 if b.rank > 1 else 0]:
            raise ShapeError(f"{a.shape} times {b.shape} is not a matrix product")
        batch = broadcast(a.shape[:-2], b.shape[:-2])
        return (TensorType((*batch, *a.shape[-2:-1], *(b.shape[-1:] if b.rank > 1 else ())), a.real().dtype),)

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        per_tensor_types(*operands, outputs[0])
        (a, b) = operands
        bound = self.largest_sum(a, b) << requant_of_product(a, b, outputs[0]).shift
        if bound > WIDEST_SUM:
            raise OverflowBoundError(f"an accumulator can reach {bound:,}, beyond 48 bits")

    def largest_sum(self, a: TensorType | None, b: TensorType | None) -> int:
        """Bound of the magnitude of a sum of products."""
        assert a is not None
        qa, qb = per_tensor_types(a, b)
        return qa.reach * qb.reach * a.shape[-1]

    def is_wide(self, a: TensorType | None, b: TensorType | None, output: TensorType) -> bool:
        """True if sums need int64, as for most operands of 16 bits."""
        return self.largest_sum(a, b) << requant_of_product(a, b, output).shift > INT32_MAX

    def integer(self, call: IntegerCall) -> Tensor:
        qa, qb, qy = per_tensor_types(*call.types, call.output)
        step = requant_of_product(call.type("a"), call.type("b"), call.output)
        # float64 holds every partial sum of these integers exactly, and multiplies faster than int64
        a, b = call.operand("a") - qa.zero_point[0], call.operand("b") - qb.zero_point[0]
        acc = torch.matmul(a.double(), b.double()).to(torch.int64)
        scaled = requant_sum if self.is_wide(call.type("a"), call.type("b"), call.output) else requant
        y = scaled(acc, step.multiplier, step.shift)
        return (y + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        a = self.operand(operands, "a")
        assert a is not None
        return outputs[0].numel * a.shape[-1]

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        a, b, y = call.operand("a"), call.operand("b"), call.outputs[0]
        call.tie(a[-1], b[-2] if len(b) > 1 else b[0])
        call.sum_over(a[-1])
        rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
        batch = y.shape[: y.rank - len(rows) - len(columns)]
        lead = tie_broadcast(call, batch, a[:-2], b[:-2])
        call.heads(*lead)
        return ((*lead, *rows, *columns),)


def grouped_matmul(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of `x` up to `ends[0]` times `weights[0]`, the next ones up to `ends[1]` times `weights[1]`, ...; zeros
    after the last group.
    """
    parts, start = [], 0
    for index, end in enumerate(ends.clamp(max=len(x)).tolist()):
        parts.append(x[start:end] @ weights[index])
        start = max(start, end)
    return torch.cat([*parts, x.new_zeros(len(x) - start, weights.shape[2])])


@operator("grouped_matmul")
@dataclass(frozen=True)
class GroupedMatMul(Op):
    """Product of each group of consecutive rows with its own matrix, as in a mixture of experts.

    Operands: x [rows, k], weights [groups, k, n], and the index of the end of each group (i32 or i64, ascending).
    Rows after the last group become zero.
    """

    facts = Facts(piecewise_linear=(("x",), ("weights",)))

    def infer(self, x: TensorType, weights: TensorType, ends: TensorType) -> tuple[TensorType, ...]:
        check_floats(self, x, weights)
        if x.rank != 2 or weights.rank != 3 or x.shape[1] != weights.shape[1]:
            raise ShapeError(f"{x.shape} times matrices {weights.shape} is not a grouped product")
        if ends.dtype not in (DType.I32, DType.I64) or ends.is_quantized or ends.shape != weights.shape[:1]:
            raise ShapeError(f"groups end at {weights.shape[0]} rows in i32 or i64, not at {ends}")
        return (TensorType((x.shape[0], weights.shape[2]), x.dtype),)

    def reference(self, x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        return grouped_matmul(x, weights, ends)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        x = self.operand(operands, "x")
        assert x is not None
        return outputs[0].numel * x.shape[1]

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, weights, ends = call.operand("x"), call.operand("weights"), call.operand("ends")
        call.tie(x[1], weights[1])
        call.sum_over(x[1])
        call.fix(weights[0], *ends, why="matrices are selected by index")
        call.fix(x[0], why="rows are selected by index")
        return ((x[0], weights[2]),)


@lowers("_grouped_mm.default")
def _lower_grouped(call: AtenCall) -> Value | None:
    """Lowers the product of rows in groups; other forms stay calls."""
    x, weights, ends = call.value("self"), call.value("mat2"), call.optional_value("offs")
    if ends is None or call["bias"] is not None or call["out_dtype"] not in (None, x.type.dtype.torch):
        return None
    return _emit_grouped(call, x, weights, ends)


@lowers("transformers.grouped_mm_fallback.default")
def _lower_grouped_of_transformers(call: AtenCall) -> Value | None:
    """Lowers the operator of transformers that replaces torch's own, which cannot be compiled."""
    return _emit_grouped(call, call.value("input"), call.value("weight"), call.value("offs"))


def _emit_grouped(call: AtenCall, x: Value, weights: Value, ends: Value) -> Value | None:
    if not x.type.dtype.is_floating or x.type.dtype is not weights.type.dtype:
        return None
    return call.emit(GroupedMatMul(), x, weights, ends)


@lowers("matmul.default")
def _lower_matmul(call: AtenCall) -> Value | None:
    return _emit(call, "self", "other")


@lowers("mm.default", "bmm.default")
def _lower_ranked_matmul(call: AtenCall) -> Value | None:
    return _emit(call, "self", "mat2")


def _emit(call: AtenCall, first: str, second: str) -> Value | None:
    a, b = call.value(first), call.value(second)
    if not a.type.dtype.is_floating or a.type.dtype is not b.type.dtype:
        return None
    return call.emit(MatMul(), a, b)


@lowers("addmm.default")
def _lower_addmm(call: AtenCall) -> Value | None:
    """A linear layer, if the addend is one number per output."""
    bias, x, weight = call.value("self"), call.value("mat1"), call.value("mat2")
    plain = call["beta"] == 1 and call["alpha"] == 1 and bias.type.shape == weight.type.shape[1:]
    if not plain or not x.type.dtype.is_floating:
        return None
    return call.emit(Linear(), x, call.emit(Permute((1, 0)), weight), bias)
