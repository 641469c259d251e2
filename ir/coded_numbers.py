"""Reals stored in few bits: a code of 8 bits for each, and the numbers that decode the codes.

    e8m0     2^(code - 127)
    double   magnitude = offset + code * step,   a step for each 256 codes, one offset for all

E8M0 is the scale of the OCP Microscaling formats (2023). Double quantization stores scales as codes with a second
scale, 8.125 bits for each instead of 32 (Dettmers et al., QLoRA, NeurIPS 2023). There codes are signed and the offset
is the mean; here they are unsigned and the offset is the least magnitude, which loses less, since magnitudes spread
further upward than downward, and keeps every one of them above zero. Where some reals are negative, codes are int8:
codes 0 to 127 are magnitudes, and each code c below 0 is the negative of the real with the code -1 - c.

Steps have 16 significant bits. The product of a step and a code is then exact in float32, and only the sum is rounded,
so that a fused multiply-add gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import sqrt
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from .element_type import DType
from .errors import ShapeError
from .numbers import AnyNumbers, Array, Numbers, numbers_of

BLOCK = 256
"""Number of codes that share a step in double quantization."""
_BIAS, _LEAST_CODE, _LARGEST_CODE = 127, 1, 254  # of E8M0; 0 is no normal float32, 255 is NaN
_CUT_BITS = 8  # bits cut from the significand of a step
_LEAST_NORMAL = 2.0**-126


class CodedNumbers(Numbers[float]):
    """Reals in float32, stored as `parts`: codes, and the numbers that decode them; decoded at each use."""

    def __init__(self, form: str, parts: Sequence[AnyNumbers]) -> None:
        """The reals of these parts; ShapeError if the parts are not those of the form."""
        if form not in NUMBER_FORMS:
            raise ShapeError(f"unknown form {form!r} of numbers; the choices are {', '.join(NUMBER_FORMS)}")
        self._form, self._parts, self.dtype = form, tuple(parts), DType.F32
        types = NUMBER_FORMS[form].types
        count = len(parts[0]) if parts else 0
        sizes = (count, -(-count // BLOCK), 1)[: len(types)]
        found = [(part.dtype, len(part)) for part in parts]
        fits = [
            (dtype in allowed, size == wanted)
            for (dtype, size), allowed, wanted in zip(found, types, sizes, strict=False)
        ]
        if len(found) != len(types) or not all(map(all, fits)):
            wanted = (f"{allowed[0].value}[{size}]" for allowed, size in zip(types, sizes, strict=True))
            given = ", ".join(f"{dtype.value}[{size}]" for dtype, size in found)
            raise ShapeError(f"numbers of form {form} are stored as {', '.join(wanted)}, not as {given}")

    @staticmethod
    def of(reals: Tensor, form: str) -> CodedNumbers:
        """The numbers of this form that are nearest to the reals."""
        parts = NUMBER_FORMS[form].encode(reals.detach().to("cpu", torch.float32).reshape(-1))
        return CodedNumbers(form, [numbers_of(part) for part in parts])

    @property
    def form(self) -> str:
        """Name of the form."""
        return self._form

    @property
    def parts(self) -> tuple[AnyNumbers, ...]:
        """Codes, and the numbers that decode them."""
        return self._parts

    @property
    def bytes(self) -> int:
        """Size of all parts as stored."""
        return sum(part.bytes for part in self._parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the form and of the parts' digests, in hexadecimal digits."""
        return sha256("".join([self._form, *(part.digest for part in self._parts)]).encode()).hexdigest()

    @property
    def array(self) -> Array:
        """The reals, decoded anew."""
        return NUMBER_FORMS[self._form].decode([part.array for part in self._parts])

    def like(self, reals: Tensor) -> CodedNumbers:
        """The nearest numbers of the same form to other reals."""
        return CodedNumbers.of(reals, self._form)

    def __len__(self) -> int:
        return len(self._parts[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Numbers):
            return NotImplemented
        return self.form == other.form and self._parts == other.parts

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Callable[..., CodedNumbers], tuple[object, ...]]:
        return CodedNumbers, (self._form, self._parts)

    @property
    def _label(self) -> str:
        return self._form


def _encode_e8m0(reals: Tensor) -> tuple[Tensor, ...]:
    if not bool((reals > 0).all()):
        raise ShapeError("e8m0 stores powers of two, which are positive")
    fraction, exponent = torch.frexp(reals)
    powers = exponent - (fraction < sqrt(0.5)).to(exponent.dtype)
    return ((powers + _BIAS).clamp(_LEAST_CODE, _LARGEST_CODE).to(torch.uint8),)


def _decode_e8m0(parts: Sequence[Array]) -> Array:
    codes = parts[0].astype(np.int32)
    return np.where(codes == 0, 1 << 22, codes << 23).astype(np.int32).view(np.float32)


def _encode_double(reals: Tensor) -> tuple[Tensor, ...]:
    """Parts of double quantization. Magnitudes up to 2^-126 (groups of zeros) are ignored in the choice of the
    offset.
    """
    is_negative, sizes = reals < 0, reals.abs()
    counted = sizes[sizes > _LEAST_NORMAL]
    offset = counted.amin() if len(counted) else sizes.amin()
    largest = 127 if bool(is_negative.any()) else 255
    above = (sizes - offset).clamp(min=0)
    blocks = torch.nn.functional.pad(above, (0, -len(above) % BLOCK)).view(-1, BLOCK)
    steps = blocks.amax(1) / largest
    steps = torch.where(steps < _LEAST_NORMAL, 0.0, _shortened(steps))
    divisors = torch.where(steps > 0, steps, torch.inf)
    codes = (blocks / divisors[:, None]).round().clamp(0, largest).view(-1)[: len(above)]
    if largest == 255:
        return codes.to(torch.uint8), steps, offset[None]
    return torch.where(is_negative, -1 - codes, codes).to(torch.int8), steps, offset[None]


def _shortened(reals: Tensor) -> Tensor:
    """Reals with the last bits of the significand rounded."""
    half = 1 << (_CUT_BITS - 1)
    return ((reals.contiguous().view(torch.int32) + half) & -(1 << _CUT_BITS)).view(torch.float32)


def _decode_double(parts: Sequence[Array]) -> Array:
    codes, steps, offset = parts
    wide = codes.astype(np.int32)
    magnitudes = np.where(wide < 0, -1 - wide, wide).astype(np.float32)
    sizes = magnitudes * steps.repeat(BLOCK)[: len(codes)] + offset
    return np.where(wide < 0, -sizes, sizes)


@dataclass(frozen=True)
class _NumberForm:
    """Element types allowed for each part, and the conversion between reals in float32 and parts."""

    types: tuple[tuple[DType, ...], ...]
    encode: Callable[[Tensor], tuple[Tensor, ...]]
    decode: Callable[[Sequence[Array]], Array]


NUMBER_FORMS: Mapping[str, _NumberForm] = MappingProxyType(
    {
        "e8m0": _NumberForm(((DType.U8,),), _encode_e8m0, _decode_e8m0),
        "double": _NumberForm(
            ((DType.U8, DType.I8), (DType.F32,), (DType.F32,)), _encode_double, _decode_double
        ),
    }
)
"""The forms by name."""
