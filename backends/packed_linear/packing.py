"""Packed form of a matrix of integers with scales, as `packed_linear.c` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...ir import TensorType
from ...ir.packing import BLOCK_ROWS, STEP_COLUMNS

FOLDER = Path(__file__).parent
SOURCE, HEADER, NORM = "packed_linear.c", "packed_linear.h", "rms_norm.c"
"""Files of the kernels in `FOLDER`: those of the product, and those of the norm before it for torch modules."""

_PART = 1 << 20
"""Number of codes packed at a time, so that temporaries stay small."""

SCALE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Element types of scales; their index is `scale_type` in C."""


@dataclass(frozen=True, slots=True)
class PackedForm:
    """Sizes of a weight that can be packed; its rows are all dimensions but the last."""

    rows: int
    columns: int
    bits: int
    group_size: int
    scale_dtype: torch.dtype

    @staticmethod
    def of(type: TensorType) -> PackedForm | None:
        """The form of a weight; None if `packed_linear.c` does not support it.

        It supports symmetric integers of up to 8 bits, with a scale for each row of a matrix, or for groups of
        columns.
        """
        encoding = type.quantization
        if encoding is None or type.rank < 2 or encoding.axis != 0:
            return None
        if encoding.bits > 8 or not encoding.is_symmetric or encoding.levels is not None:
            return None
        if type.rank > 2 if encoding.group_size is None else type.shape[-1] % encoding.group_size:
            return None
        rows, columns = prod(type.shape[:-1]), type.shape[-1]
        stored = encoding.scale.dtype.torch
        dtype = stored if stored in SCALE_TYPES else torch.float32
        return PackedForm(rows, columns, encoding.bits, encoding.group_size or columns, dtype)

    @property
    def groups(self) -> int:
        """Number of groups of columns."""
        return self.columns // self.group_size

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        """Shape of `pack_codes`."""
        return -(-self.rows // BLOCK_ROWS), self.groups, self._padded * 2 * self.bits

    @property
    def scales_shape(self) -> tuple[int, int, int]:
        """Shape of `pack_scales`."""
        return -(-self.rows // BLOCK_ROWS), self.groups, BLOCK_ROWS

    def scratch_bytes(self, tokens: int, *, is_float: bool) -> int:
        """Working memory of a product: `packed_linear_scratch`."""
        return tokens * (4 + self.groups * (4 + self._padded * (4 if is_float else 1)))

    @property
    def _padded(self) -> int:
        return -(-self.group_size // STEP_COLUMNS) * STEP_COLUMNS


def pack_codes(integers: Tensor, bits: int, group_size: int, *, lowest: int | None = None) -> Tensor:
    """Integers [..., columns] in the packed form of packed_linear.c: [blocks, groups, bytes] of uint8.

    `lowest` is the integer with code 0; default: the lowest of these bits in two's complement.
    """
    rows = integers.reshape(-1, integers.shape[-1] // group_size, group_size)
    offset = 1 << (bits - 1) if lowest is None else -lowest
    count = max(1, _PART // (BLOCK_ROWS * integers.shape[-1])) * BLOCK_ROWS
    return torch.cat([_packed_rows(part, bits, offset) for part in rows.split(count)])


def _packed_rows(rows: Tensor, bits: int, offset: int) -> Tensor:
    """Integers [rows, groups, columns] in the packed form, with rows padded to blocks."""
    group_size = rows.shape[2]
    codes = (rows.to(torch.int16) + offset).to(torch.uint8)
    codes = pad(codes, (0, -group_size % STEP_COLUMNS, 0, 0, 0, -len(rows) % BLOCK_ROWS), value=offset)
    blocks, groups, steps = len(codes) // BLOCK_ROWS, codes.shape[1], codes.shape[2] // STEP_COLUMNS
    rest = codes.reshape(blocks, BLOCK_ROWS, groups, steps, 4, 4).permute(0, 2, 3, 4, 1, 5)
    rest = rest.reshape(blocks, groups, steps, 4, 4 * BLOCK_ROWS)  # lines of 4 columns
    planes, left = [], bits
    while left:
        width = next(width for width in (8, 4, 2, 1) if width <= left)
        plane = rest & ((1 << width) - 1)
        # parts of a byte are separate columns or, for single bits, neighbours within a line
        shape = (-1, 8) if width == 1 else (-1, 8 // width, 4 * BLOCK_ROWS)
        axis = -1 if width == 1 else -2
        parts = plane.reshape(blocks, groups, steps, *shape)
        shifts = torch.arange(0, 8, width, dtype=torch.uint8).reshape(-1, *[1] * (-1 - axis))
        planes.append((parts << shifts).sum(axis, dtype=torch.uint8).flatten(3))
        rest, left = rest >> width, left - width
    return torch.cat(planes, -1).flatten(2)


def pack_scales(scale: Tensor, rows: int) -> Tensor:
    """Scales [rows * groups] in the packed form: [blocks, groups, 16]; those of absent rows are 0."""
    table = pad(scale.reshape(rows, -1), (0, 0, 0, -rows % BLOCK_ROWS))
    return table.reshape(-1, BLOCK_ROWS, table.shape[1]).transpose(1, 2).contiguous()
