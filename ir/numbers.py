"""Arrays of numbers inside types: immutable, equal by their elements, hashed by a digest that is computed once.

A weight of 4096 x 11008 in groups of 32 has 1.4 million scales. As an array of float32 they take 5.6 MB and are
hashed in milliseconds, once; as a tuple of Python floats they take 45 MB and are hashed anew at every look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch

from .element_type import DType
from .errors import ShapeError

Number = TypeVar("Number", int, float)
Array = npt.NDArray[Any]  # Any: numpy's own element types


class Numbers(Sequence[Number], Generic[Number]):
    """One-dimensional array of integers or reals, with the element type in which they are stored.

    bfloat16, which numpy lacks, is stored as float32. Reals stored in fewer bits are `CodedNumbers`.
    """

    def __init__(self, elements: Array, dtype: DType) -> None:
        """Makes the array read-only; callers use `of_reals` and `of_integers`."""
        self._elements = elements
        self._elements.flags.writeable = False
        self.dtype = dtype

    @staticmethod
    def of_reals(numbers: Iterable[float] | torch.Tensor | Numbers[float]) -> Numbers[float]:
        """Reals; a tensor keeps its element type, all else is float64."""
        if isinstance(numbers, Numbers):
            return numbers
        if isinstance(numbers, torch.Tensor):
            return Numbers[float](*_copied(numbers))
        return Numbers[float](np.array(tuple(numbers), dtype=np.float64), DType.F64)

    @staticmethod
    def of_integers(numbers: Iterable[int] | torch.Tensor | Numbers[int]) -> Numbers[int]:
        """Integers; a tensor keeps its element type, all else is int64."""
        if isinstance(numbers, Numbers):
            return numbers
        if isinstance(numbers, torch.Tensor):
            return Numbers[int](*_copied(numbers))
        listed = tuple(numbers)
        if not all(isinstance(n, int) for n in listed):
            raise ShapeError(f"{listed} are no integers")
        return Numbers[int](np.array(listed, dtype=np.int64), DType.I64)

    @property
    def form(self) -> str:
        """Name of the storage form: an element type, or a form of `CodedNumbers`."""
        return str(self.dtype.torch).removeprefix("torch.")

    @property
    def parts(self) -> tuple[AnyNumbers, ...]:
        """The stored arrays, in order."""
        return (self,)

    @property
    def bytes(self) -> int:
        """Size of the elements as stored, in bytes."""
        return len(self) * self.dtype.bytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of element type and elements, in hexadecimal digits."""
        return sha256(self.dtype.value.encode() + self._elements.tobytes()).hexdigest()

    @property
    def array(self) -> Array:
        """The elements, read-only."""
        return self._elements

    def tensor(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy of the elements as a tensor, in their own element type unless `dtype` is given."""
        return torch.from_numpy(self.array.copy()).to(dtype or self.dtype.torch)

    def like(self, reals: torch.Tensor) -> Numbers[float]:
        """Other reals in the storage form of these."""
        return Numbers.of_reals(reals.to(self.dtype.torch))

    @overload
    def __getitem__(self, index: int) -> Number: ...
    @overload
    def __getitem__(self, index: slice) -> Numbers[Number]: ...
    def __getitem__(self, index: int | slice) -> Number | Numbers[Number]:
        if isinstance(index, slice):
            return Numbers[Number](self.array[index].copy(), self.dtype)
        number: Number = self.array.item(index)
        return number

    def __len__(self) -> int:
        return len(self._elements)

    def __iter__(self) -> Iterator[Number]:
        return iter(self.array.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Numbers):
            return NotImplemented
        if self is other:
            return True
        return self.form == other.form and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return int(self.digest[:15], 16)

    def __reduce__(self) -> tuple[Callable[..., Numbers[Number]], tuple[object, ...]]:
        return Numbers, (self._elements, self.dtype)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.array[:4].tolist())) + (", ..." if len(self) > 4 else "")
        return f"{self._label}[{len(self)}]({shown})"

    @property
    def _label(self) -> str:
        return self.dtype.value


AnyNumbers = Numbers[int] | Numbers[float]


def numbers_of(tensor: torch.Tensor) -> AnyNumbers:
    """Numbers from a stored tensor, for `parse`."""
    return Numbers.of_reals(tensor) if tensor.is_floating_point() else Numbers.of_integers(tensor)


def _copied(tensor: torch.Tensor) -> tuple[Array, DType]:
    dtype = DType.of(tensor.dtype)
    kept = torch.float32 if dtype is DType.BF16 else tensor.dtype
    return tensor.detach().to("cpu", kept, copy=True).reshape(-1).contiguous().numpy(), dtype
