"""Element types of tensors, under the names of the text form."""

from __future__ import annotations

from enum import Enum

import torch
from torch import dtype as TorchDType  # inside DType a property of the same name hides the module

from ..specs.root_error import expect
from .errors import ShapeError


class DType(Enum):
    """Element type; the value is its name in the text form."""

    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"
    C64 = "c64"
    C128 = "c128"
    BOOL = "bool"
    U8 = "u8"
    I8 = "i8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"

    @property
    def torch(self) -> TorchDType:
        """The torch dtype that stores it."""
        return _TORCH[self]

    @property
    def is_floating(self) -> bool:
        """True for real floating point types."""
        return _TORCH[self].is_floating_point

    @property
    def bytes(self) -> int:
        """Size of one element in bytes."""
        return _TORCH[self].itemsize

    @staticmethod
    def of(dtype: TorchDType) -> DType:
        """The type for a torch dtype; ShapeError for one that the IR lacks."""
        try:
            return _FROM_TORCH[dtype]
        except KeyError:
            raise ShapeError(f"element type {dtype} is not supported") from None


_TORCH = {
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
    DType.C64: torch.complex64,
    DType.C128: torch.complex128,
    DType.BOOL: torch.bool,
    DType.U8: torch.uint8,
    DType.I8: torch.int8,
    DType.I16: torch.int16,
    DType.I32: torch.int32,
    DType.I64: torch.int64,
}
_FROM_TORCH = {dtype: name for name, dtype in _TORCH.items()}


def element_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor of any type, device and strides, in row-major order and the byte order of
    the machine.
    """
    expect(tensor, torch.Tensor, "element_bytes(tensor)", "a tensor")
    rows = (
        tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    )  # `contiguous` keeps a stride of 0
    return bytes(rows.flatten().view(torch.uint8).numpy().tobytes())


def all_finite(tensor: torch.Tensor) -> bool:
    """True if no element is NaN or infinite; floats are read once, without temporary copies."""
    if not tensor.numel() or not tensor.is_floating_point():
        return bool(torch.isfinite(tensor).all())
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
