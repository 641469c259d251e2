"""Sparse weights in flash: two Huffman codes for each nonzero weight, of the zeros before it and of its value.

    row     zeros value, zeros value, ..., zeros to the end of the row, if there are any
    zeros   0 to 254 before a value; 255 are zeros without a value, and another code of zeros follows

The two kinds of codes have tables of their own (Han et al., Deep Compression, ICLR 2016). The kernel of
`portable/sparse_linear` multiplies with the codes as it reads them: no memory holds decoded weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .image import Code, Halfwords, code_instructions, stream, stream_halfwords

MOST_ZEROS = 255
TABLES_BYTES = 1024
"""Working memory of the tables of both kinds of codes."""

_BYTES = 256
_WORD = 4


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Coded rows of int8 weights, not all of them zero."""

    rows: npt.NDArray[np.int8]

    @property
    def bytes(self) -> int:
        """Bytes in flash, whole words."""
        return -(-2 * (self.codes_at + stream_halfwords(self._bits)) // _WORD) * _WORD

    @property
    def values_at(self) -> int:
        """Halfwords before the table of the values."""
        return self.zeros.table_halfwords

    @property
    def codes_at(self) -> int:
        """Halfwords before the codes."""
        return self.values_at + self.values.table_halfwords

    @cached_property
    def zeros(self) -> Code:
        """Code of the numbers of zeros."""
        return Code.of(np.bincount([zeros for zeros, _ in self._symbols], minlength=_BYTES))

    @cached_property
    def values(self) -> Code:
        """Code of the values."""
        found = [value for _, value in self._symbols if value is not None]
        return Code.of(np.bincount(found, minlength=_BYTES))

    @property
    def halfwords(self) -> Halfwords:
        """The array in flash."""
        zeros, values = self.zeros.digits, self.values.digits
        digits = [zeros[n] + ("" if value is None else values[value]) for n, value in self._symbols]
        return stream([self.zeros.table, self.values.table], "".join(digits))

    @property
    def nonzero(self) -> int:
        """Weights that are not zero."""
        return int(np.count_nonzero(self.rows))

    @property
    def table_instructions(self) -> float:
        """Instructions of both tables on a Cortex-M4."""
        return self.zeros.table_instructions + self.values.table_instructions

    @property
    def code_instructions(self) -> float:
        """Instructions of reading the codes on a Cortex-M4."""
        return code_instructions([self.zeros, self.values], halfwords=stream_halfwords(self._bits))

    @property
    def _bits(self) -> int:
        return self.zeros.bits + self.values.bits

    @cached_property
    def _symbols(self) -> tuple[tuple[int, int | None], ...]:
        return tuple(symbol for row in self.rows for symbol in _symbols_of(row))


def _symbols_of(row: npt.NDArray[np.int8]) -> Iterator[tuple[int, int | None]]:
    """Zeros, and the value after them as a byte, in the order of a row."""
    done = 0
    for place in np.flatnonzero(row).tolist():
        for _ in range((place - done) // MOST_ZEROS):
            yield MOST_ZEROS, None
        yield (place - done) % MOST_ZEROS, int(row[place]) % _BYTES
        done = place + 1
    for start in range(done, len(row), MOST_ZEROS):
        yield min(MOST_ZEROS, len(row) - start), None
