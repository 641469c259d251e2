"""Rows of int8 weights in pairs: a lane of 16 bits has a weight of both rows, and is multiplied as it is.

For inputs x and rows a, b, with lanes L = 256 * b + (a + 128), all modulo 2^32:

    both = sum(x * L),   second = sum(x * b),   sum(x * a) = both - 256 * second - 128 * sum(x)

All weights of 8 bits make lanes of 16 bits; b is the high byte of a lane, which one SXTB16 takes out of two lanes. So
two products take one and a half instructions, in place of two where the weights of each row are unpacked.
"""

from __future__ import annotations

import numpy as np

from .gemm import Int32Array, IntArray

_OFFSET = 128


def pair_words(taps: IntArray, *, together: int) -> Int32Array:
    """Weights [rows, 4 * steps] as words [groups, words]: for every step, two words of each pair of `together` rows.

    They are for the words of the operand, even and odd ones; rows that are missing are zeros.
    """
    groups = -(-len(taps) // together)
    filled = np.zeros((groups * together, taps.shape[1]), np.int64)
    filled[: len(taps)] = taps
    pairs = filled.reshape(groups, together // 2, 2, -1, 2, 2)  # group, pair, row, step, lane, word
    bytes_of = (pairs + np.array([_OFFSET, 0]).reshape(2, 1, 1, 1)).astype(np.uint8)
    words: Int32Array = bytes_of.transpose(0, 3, 1, 5, 4, 2).reshape(groups, -1).view("<i4").astype(np.int32)
    return words


def pair_biases(biases: Int32Array) -> Int32Array:
    """Biases [groups, rows] as initial sums: of both rows of each pair, and of the second."""
    pairs = biases.astype(np.int64).reshape(len(biases), -1, 2)
    both = pairs[..., 0] + 256 * pairs[..., 1]
    return np.stack([both.astype(np.uint32).view(np.int32), biases.reshape(pairs.shape)[..., 1]], -1).reshape(
        biases.shape
    )
