"""Values and their types: shape, element type and, for codes that represent reals, their encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from ..specs.root_error import expect
from .element_type import DType
from .encoding import Encoding
from .errors import ShapeError


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape, element type and quantization of a value; a quantized value has the container's dtype."""

    shape: tuple[int, ...]
    dtype: DType = DType.F32
    quantization: Encoding | None = None

    def __post_init__(self) -> None:
        expect(self.shape, tuple, "TensorType(shape, dtype)", "a tuple of sizes")
        expect(
            self.dtype, DType, "TensorType(shape, dtype)", "a `DType`", "DType.of(torch.float32) makes one"
        )
        if any(n < 0 for n in self.shape):
            raise ShapeError(f"negative size in shape {self.shape}")
        if self.quantization is not None:
            self.quantization.check(self.shape)
            if self.dtype is not self.quantization.container:
                raise ShapeError(
                    f"{self.quantization.bits}-bit values are stored in {self.quantization.container.value}, not in "
                    f"{self.dtype.value}"
                )

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorType:
        """Type of a plain (unquantized) tensor."""
        expect(tensor, torch.Tensor, "TensorType.of(tensor)", "a tensor")
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
        """Bytes of the elements as stored: below 8 bits several elements share a byte."""
        if self.quantization is None:
            return self.numel * self.dtype.bytes
        return (self.numel * self.quantization.bits + 7) // 8

    @property
    def is_quantized(self) -> bool:
        """True if the integers represent reals."""
        return self.quantization is not None

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        """The same element type and quantization with another shape."""
        return replace(self, shape=shape)

    def of_channels(self, kept: Sequence[torch.Tensor]) -> TensorType:
        """The type of the elements at the kept indices of each dimension."""
        shape = kept_sizes(self.shape, kept)
        if shape == self.shape:
            return self
        quantization = self.quantization
        if quantization is not None and quantization.axis is not None:
            quantization = quantization.of_channels(kept[quantization.axis])
        return TensorType(shape, self.dtype, quantization)

    def quantized(self, quantization: Encoding) -> TensorType:
        """This shape, stored as integers of `quantization`."""
        return TensorType(self.shape, quantization.container, quantization)

    def real(self) -> TensorType:
        """The float32 type that a quantized type represents; an unquantized type itself."""
        return self if self.quantization is None else TensorType(self.shape, DType.F32)


def kept_sizes(shape: Sequence[int], kept: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Sizes after the selection of the kept indices; a dimension with all indices kept has its original size, which
    may be an expression.
    """
    return tuple(
        size if len(index) == int(size) else len(index) for size, index in zip(shape, kept, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Value:
    """A named tensor: graph input, constant or result of a node."""

    name: str
    type: TensorType

    def __post_init__(self) -> None:
        expect(self.name, str, "Value(name, type)", "a text as name")
        expect(
            self.type, TensorType, "Value(name, type)", "a `TensorType`", "TensorType.of(tensor) makes one"
        )

    def __str__(self) -> str:
        return f"%{self.name}"
