"""Packed form of stored weights: codes of 2 to 8 bits and scales, in blocks of rows and steps of columns.

Rows are all dimensions but the last, groups the parts of a row that share a scale. Blocks of 16 rows and steps of 16
columns of each group are filled up, so that every kernel reads whole lines.
"""

from __future__ import annotations

from math import prod

from .tensor_type import TensorType

BLOCK_ROWS, STEP_COLUMNS = 16, 16
_ZERO_BYTES, _LEVEL_BYTES = 1, 4  # int8, float32
_CODES_PER_BIT = STEP_COLUMNS * BLOCK_ROWS // 8  # bytes of a step of a block, for each bit


def packed_shape(type: TensorType) -> tuple[int, int, int]:
    """Shape [blocks, groups, bytes] of the packed codes of a weight with groups along its last dimension."""
    assert type.quantization is not None
    rows = prod(type.shape[:-1])
    groups = len(type.quantization.scale) // rows
    steps = -(-(type.shape[-1] // groups) // STEP_COLUMNS)
    return -(-rows // BLOCK_ROWS), groups, steps * _CODES_PER_BIT * type.quantization.bits


def packed_bytes(type: TensorType) -> int:
    """Bytes of packed codes, and of the scales, zero points and levels that are stored beside them."""
    encoding = type.quantization
    assert encoding is not None
    blocks, groups, size = packed_shape(type)
    each = encoding.scale.dtype.bytes + (0 if encoding.is_symmetric else _ZERO_BYTES)
    table = 0 if encoding.levels is None else _LEVEL_BYTES * len(encoding.levels)
    return blocks * groups * (size + BLOCK_ROWS * each) + table
