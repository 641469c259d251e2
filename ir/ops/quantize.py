"""Conversions between reals and their quantized integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import Rescale
from ..element_type import DType
from ..encoding import Encoding
from ..errors import ShapeError
from ..tensor_type import TensorType
from .base import IntegerCall, Op, Quantized, operator
from .channels import Axes, CouplingCall
from .facts import Facts

_BYTE = 8
LARGEST_CODE = 127
SMALLEST_ROW = 1e-30


@operator("quantize")
@dataclass(frozen=True)
class Quantize(Op):
    """Reals to the result's integers: x / scale, halves away from zero, plus zero point, saturated."""

    quantized = Quantized.COMPUTE
    facts = Facts(monotone=("x",))

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if x.quantization is not None or x.dtype is not DType.F32:
            raise ShapeError("quantize takes f32")
        return (x,)

    def reference(self, x: Tensor) -> Tensor:
        return x

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        if outputs[0].quantization is None:
            raise ShapeError("the result of quantize is quantized")

    def integer(self, call: IntegerCall) -> Tensor:
        assert call.output.quantization is not None
        return call.output.quantization.quantize(call.operand("x"))


@operator("dequantize")
@dataclass(frozen=True)
class Dequantize(Op):
    """Conversion of integers to f32 reals: (q - zero_point) * scale."""

    quantized = Quantized.COMPUTE
    facts = Facts(monotone=("x",))

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if x.quantization is None:
            raise ShapeError("dequantize takes a quantized value")
        return (x.real(),)

    def reference(self, x: Tensor) -> Tensor:
        return x

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        if outputs[0].quantization is not None:
            raise ShapeError("the result of dequantize is f32")

    def integer(self, call: IntegerCall) -> Tensor:
        x = call.type("x")
        assert x is not None and x.quantization is not None
        return x.quantization.dequantize(call.operand("x"))


@operator("fake_quantize_per_token")
@dataclass(frozen=True)
class FakeQuantizePerToken(Op):
    """Reals rounded to int8 and back, with a scale for each row along the last dimension: max|x| / 127.

    Dynamic quantization of activations. Halves are rounded to even. A row whose largest magnitude is below 1e-30
    becomes zeros, one that is not finite becomes NaN.
    """

    facts = Facts(homogeneous=True)

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if not x.rank or not x.shape[-1] or x.is_quantized or not x.dtype.is_floating:
            raise ShapeError("fake_quantize_per_token takes reals in rows of at least one element")
        return (x,)

    def reference(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        most = wide.abs().amax(-1, keepdim=True)
        largest = most.new_tensor(LARGEST_CODE)  # number / tensor would round the reciprocal first
        inverse = torch.where(most >= SMALLEST_ROW, largest / most, 0.0)
        return (torch.round(wide * inverse) * (most / LARGEST_CODE)).to(x.dtype)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)


@operator("requantize")
@dataclass(frozen=True)
class Requantize(Op):
    """The same reals in another encoding: (x * m + offset) >> s, saturated."""

    quantized = Quantized.COMPUTE
    facts = Facts(monotone=("x",))

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if x.quantization is None:
            raise ShapeError("requantize takes a quantized value")
        return (x.real(),)

    def reference(self, x: Tensor) -> Tensor:
        return x

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        rescale_between(*per_tensor_types(self.operand(operands, "x"), outputs[0]))

    def integer(self, call: IntegerCall) -> Tensor:
        qx, qy = per_tensor_types(call.type("x"), call.output)
        return rescale_between(qx, qy).apply(call.operand("x")).clamp(qy.qmin, qy.qmax)


@operator("offset_binary")
@dataclass(frozen=True)
class OffsetBinary(Op):
    """Conversion of quantized int8 to uint8 by adding 128 (offset binary), or back."""

    quantized = Quantized.COMPUTE

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if x.quantization is not None and x.quantization.bits == _BYTE:
            return (TensorType(x.shape, DType.U8),)
        if x.dtype is not DType.U8:
            raise ShapeError("offset_binary takes u8, or quantized i8")
        return (TensorType(x.shape),)

    def reference(self, x: Tensor) -> Tensor:
        if x.dtype is torch.uint8:
            return x.to(torch.float32)
        return x.to(torch.uint8)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        narrow = {type.quantization.bits for type in (*operands, *outputs) if type and type.quantization}
        if narrow != {_BYTE} or DType.U8 not in (self.operand(operands, "x").dtype, outputs[0].dtype):
            raise ShapeError("offset_binary converts between u8 and quantized 8-bit integers")

    def integer(self, call: IntegerCall) -> Tensor:
        return call.operand("x").to(torch.int64) + (128 if call.output.dtype is DType.U8 else -128)


def rescale_between(x: Encoding, y: Encoding) -> Rescale:
    """Integer form of the same reals in another encoding, before saturation."""
    return Rescale.of((x.scale[0] / y.scale[0],), x.zero_point, y.zero_point[0], bits=x.bits)


def check_moved(*types: TensorType) -> None:
    """Raises ShapeError unless all have the same element type and quantization, and any quantization is per tensor."""
    first = types[0]
    if any((type.dtype, type.quantization) != (first.dtype, first.quantization) for type in types):
        raise ShapeError("data movement needs the same element type and quantization on all operands")
    if first.quantization is not None and not first.quantization.is_per_tensor:
        raise ShapeError("this operator moves values that have one scale per tensor")


def per_tensor_types(*types: TensorType | None) -> tuple[Encoding, ...]:
    """Quantizations of values that all have one scale per tensor; ShapeError if one has not."""
    found = tuple(type.quantization for type in types if type is not None and type.quantization is not None)
    if len(found) != len(types) or not all(q.is_per_tensor for q in found):
        raise ShapeError("operands and result are quantized per tensor")
    return found
