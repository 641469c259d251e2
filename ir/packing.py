"""Packed form of stored weights: codes of 2 to 8 bits and scales, in blocks of rows and steps of columns.

Rows are all dimensions but the last; groups are the parts of a row that share a scale. Blocks of 16 rows and steps of
16 columns of each group are padded, so that every kernel reads whole lines. Scales stored as codes are in the order
of rows and groups, without padding.
"""

from __future__ import annotations

from math import prod

from .coded_numbers import CodedNumbers
from .tensor_type import TensorType

BLOCK_ROWS, STEP_COLUMNS = 16, 16
_ZERO_BYTES, _LEVEL_BYTES = 1, 4  # int8, float32
_CODES_PER_BIT = STEP_COLUMNS * BLOCK_ROWS // 8  # bytes of a step of a block, per bit of the codes


def packed_shape(type: TensorType) -> tuple[int, int, int]:
    """Shape [blocks, groups, bytes] of the packed codes of a weight with groups along its last dimension."""
    assert type.quantization is not None
    rows = prod(type.shape[:-1])
    groups = len(type.quantization.scale) // rows
    steps = -(-(type.shape[-1] // groups) // STEP_COLUMNS)
    return -(-rows // BLOCK_ROWS), groups, steps * _CODES_PER_BIT * type.quantization.bits


def packed_bytes(type: TensorType) -> int:
    """Bytes of packed codes, and of the scales, zero points and levels stored with them."""
    encoding = type.quantization
    assert encoding is not None
    blocks, groups, size = packed_shape(type)
    is_coded = isinstance(encoding.scale, CodedNumbers)  # scales are decoded when they are packed
    each = (0 if is_coded else encoding.scale.dtype.bytes) + (0 if encoding.is_symmetric else _ZERO_BYTES)
    table = 0 if encoding.levels is None else _LEVEL_BYTES * len(encoding.levels)
    scales = encoding.scale.bytes if is_coded else 0
    return blocks * groups * (size + BLOCK_ROWS * each) + table + scales
