"""Values and their types: shape, element type and, for integers that stand for reals, their quantization.

    real = (integer - zero_point) * scale

`scale` and `zero_point` hold one number per tensor, per channel of `axis`, or per group of `group_size`
consecutive elements inside each channel (the channel's other dimensions flattened in order).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import isfinite, prod

import torch
from torch import dtype as TorchDType  # inside DType its property hides the module

from .errors import ShapeError

STORAGE_BITS = (2, 4, 8, 16, 32)
FARTHEST_ZERO = 1 << 20
"""Largest zero point; float32 still counts the steps up to there."""


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
        """The type for a torch dtype; ShapeError for one that the IR does not know."""
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
_CONTAINER = {2: DType.I8, 4: DType.I8, 8: DType.I8, 16: DType.I16, 32: DType.I32}


@dataclass(frozen=True, slots=True)
class Quantization:
    """Quantization parameters of a type. All integers are signed two's complement of `bits` bits."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...] = (0,)
    bits: int = 8
    axis: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in STORAGE_BITS:
            raise ShapeError(f"{self.bits} storage bits; the choices are {', '.join(map(str, STORAGE_BITS))}")
        if not self.scale or not all(isfinite(s) and s > 0 for s in self.scale):
            raise ShapeError("a scale must be a positive finite number")
        if len(self.zero_point) not in (1, len(self.scale)):
            raise ShapeError(f"{len(self.zero_point)} zero points for {len(self.scale)} scales")
        if not all(abs(z) <= FARTHEST_ZERO for z in self.zero_point):
            raise ShapeError(f"a zero point lies outside -{FARTHEST_ZERO}..{FARTHEST_ZERO}")
        if self.axis is None and (len(self.scale) > 1 or self.group_size is not None):
            raise ShapeError("several scales or a group size need an axis")

    @property
    def qmin(self) -> int:
        """Smallest storable integer."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest storable integer."""
        return (1 << (self.bits - 1)) - 1

    @property
    def reach(self) -> int:
        """Largest distance of an integer from its zero point."""
        return max(max(self.qmax - z, z - self.qmin) for z in self.zero_point)

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is one of the reals, as padding needs it; values far from zero may do without."""
        return all(self.qmin <= z <= self.qmax for z in self.zero_point)

    @property
    def container(self) -> DType:
        """Element type that holds the integers while computing."""
        return _CONTAINER[self.bits]

    @property
    def is_symmetric(self) -> bool:
        """True when every zero point is 0."""
        return not any(self.zero_point)

    @property
    def is_per_tensor(self) -> bool:
        """True when one scale serves the whole tensor."""
        return self.axis is None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless the number of scales fits `shape`."""
        if self.axis is None:
            return
        if not 0 <= self.axis < len(shape):
            raise ShapeError(f"quantization axis {self.axis} outside a tensor of rank {len(shape)}")
        expected = shape[self.axis]
        if self.group_size is not None:
            per_channel = prod(shape) // max(shape[self.axis], 1)
            if per_channel % self.group_size:
                raise ShapeError(
                    f"groups of {self.group_size} do not divide {per_channel} elements a channel"
                )
            expected *= per_channel // self.group_size
        if len(self.scale) != expected:
            raise ShapeError(f"{len(self.scale)} scales for axis {self.axis} of {shape}; expected {expected}")

    def expand(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float64) and zero point (int64) as tensors that broadcast against `shape`."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        zero = torch.tensor(self.zero_point, dtype=torch.int64).expand(len(self.scale))
        return self.spread(scale, shape), self.spread(zero, shape)

    def spread(self, numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A number for each scale as a tensor that broadcasts against `shape`."""
        if self.axis is None:
            return numbers.reshape(())
        view = [1] * len(shape)
        view[self.axis] = shape[self.axis]
        if self.group_size is None:
            return numbers.view(view)
        moved = [shape[self.axis], *(n for i, n in enumerate(shape) if i != self.axis)]
        return numbers.repeat_interleave(self.group_size).view(moved).movedim(0, self.axis)

    def quantize(self, real: torch.Tensor) -> torch.Tensor:
        """Integers (int64) nearest to `real`, halves away from zero, saturated; NaN gives the zero point."""
        scale, zero = self.expand(tuple(real.shape))
        ratio = (real / scale.to(real.dtype)).nan_to_num(0.0, 1e9, -1e9).clamp(-1e9, 1e9)
        rounded = torch.trunc(ratio + torch.copysign(torch.full_like(ratio, 0.5), ratio)).to(torch.int64)
        return (rounded + zero).clamp(self.qmin, self.qmax)

    def dequantize(self, integers: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Reals that `integers` stand for, computed in `dtype`."""
        scale, zero = self.expand(tuple(integers.shape))
        return (integers.to(torch.int64) - zero).to(dtype) * scale.to(dtype)


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape, element type and quantization of a value; a quantized value has the container's dtype."""

    shape: tuple[int, ...]
    dtype: DType = DType.F32
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if any(n < 0 for n in self.shape):
            raise ShapeError(f"negative size in shape {self.shape}")
        if self.quantization is not None:
            self.quantization.check(self.shape)
            if self.dtype is not self.quantization.container:
                raise ShapeError(
                    f"{self.quantization.bits}-bit values are kept in {self.quantization.container.value}, "
                    f"not in {self.dtype.value}"
                )

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorType:
        """Type of a plain (unquantized) tensor."""
        return TensorType(tuple(tensor.shape), DType.of(tensor.dtype))

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def storage_bytes(self) -> int:
        """Bytes of the elements as stored: below 8 bits several share a byte."""
        if self.quantization is None:
            return self.numel * self.dtype.bytes
        return (self.numel * self.quantization.bits + 7) // 8

    @property
    def is_quantized(self) -> bool:
        """True when the integers stand for reals."""
        return self.quantization is not None

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        """The same element type and quantization with another shape."""
        return replace(self, shape=shape)

    def quantized(self, quantization: Quantization) -> TensorType:
        """This shape, stored as integers of `quantization`."""
        return TensorType(self.shape, quantization.container, quantization)

    def real(self) -> TensorType:
        """The float32 type that a quantized type stands for; an unquantized type itself."""
        return self if self.quantization is None else TensorType(self.shape, DType.F32)


@dataclass(frozen=True, slots=True)
class Value:
    """A named tensor: graph input, constant or result of a node."""

    name: str
    type: TensorType

    def __str__(self) -> str:
        return f"%{self.name}"


def element_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor of any type, device and strides, row after row, as the machine stores them."""
    rows = (
        tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    )  # `contiguous` keeps a stride of 0
    return bytes(rows.flatten().view(torch.uint8).numpy().tobytes())
