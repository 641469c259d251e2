"""Attention on integers: scores in powers of two, exponentials from a table, the sums of values divided at the end.

For each query, over the keys that it reads, with q, k, v minus their zero points, floor division and the common
`requant`:

    s_j = saturate16(saturate16(requant(sum(q * k_j), score)) + bias_j)   in steps of log(2) / 256
    d_j = max(s, -28672) - s_j
    e_j = table[d_j % 256] >> min(d_j / 256, 31)              table[i] = min(2^(bits - i / 256), 32767)
    r   = (2^32 - 1) / ((S << n) >> 16)                       S = max(sum(e), 1), n its leading zeros
    t   = requant(sum(e_j * v_j) << (n - spread), r)          values in steps of v * 2^(spread - 16)
    y   = saturate(requant(t, result) + zero point)

A key that a mask hides has the score -32768, so that its exponential is zero: the range of the scores does not include
masked ones. Scores are saturated at 88.7, in natural logarithms, and those below -77.6 count like hidden ones. Queries
and keys of 8 bits, and values of 8 bits, have sums in int32; those of 16 bits in int64. Exponentials are powers of two
and the quotient is deferred, as in Stevens et al., Softermax, 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from ..arithmetic import INT32_MAX, Requant, prove_requant, requant, requant_sum
from ..encoding import Encoding
from ..errors import OverflowBoundError

SCORE_FRACTION = 8  # fraction bits of a score
SCORES = Encoding((log(2) / (1 << SCORE_FRACTION),), bits=16)
"""Encoding of the addends of scores."""
HIDDEN, LOWEST = 32768, -28672
"""Score of a hidden key is -`HIDDEN`; the largest score of a query is at least `LOWEST`."""
_ENTRIES = 1 << SCORE_FRACTION
_LONGEST_SHIFT = 31
_TABLE_BITS = 15
_FEWEST_TABLE_BITS = 8
_T_BITS = 16
_WIDEST_ACCUMULATOR = (1 << 47) - 1


@dataclass(frozen=True)
class AttentionForm:
    """Numbers of the fixed-point form; `wide_scores` and `wide_values` are True for sums that need int64."""

    query_zero: int
    key_zero: int
    value_zero: int
    score: Requant
    result: Requant
    table_bits: int
    spread: int
    wide_scores: bool
    wide_values: bool

    @staticmethod
    def of(
        q: Encoding, k: Encoding, v: Encoding, y: Encoding, *, features: int, keys: int, scale: float
    ) -> AttentionForm:
        """The form between encodings per tensor; OverflowBoundError if there is none."""
        if scale <= 0:
            raise OverflowBoundError(f"an attention with the scale {scale:g} has no integer form")
        score = Requant.of(q.scale[0] * k.scale[0] * scale / SCORES.scale[0])
        wide_scores, wide_values = max(q.bits, k.bits) > 8, v.bits > 8
        bound = q.reach * k.reach * features
        if not wide_scores:
            prove_requant(bound, score)
        elif bound << score.shift > _WIDEST_ACCUMULATOR:
            raise OverflowBoundError(f"a score can reach {bound << score.shift:,}, beyond 48 bits")
        spread = (v.reach - 1).bit_length() + 1
        room = INT32_MAX if wide_values else (1 << (32 - spread)) - 1  # limit of the sum of exponentials
        bits = min(_TABLE_BITS, (room // keys).bit_length() - 1) if keys else _TABLE_BITS
        if bits < _FEWEST_TABLE_BITS:
            raise OverflowBoundError(f"the sum over {keys:,} keys can leave int32")
        result = Requant.of(v.scale[0] * 2.0 ** (spread - _T_BITS) / y.scale[0])
        prove_requant(1 << _T_BITS, result)
        return AttentionForm(
            q.zero_point[0],
            k.zero_point[0],
            v.zero_point[0],
            score,
            result,
            bits,
            spread,
            wide_scores,
            wide_values,
        )

    @property
    def table(self) -> Tensor:
        """Powers of two (int64 [256])."""
        part = torch.arange(_ENTRIES, dtype=torch.float64) / _ENTRIES
        return torch.exp2(self.table_bits - part).round().to(torch.int64).clamp(max=32767)

    def apply(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kept: Tensor,
        bias: Tensor | None,
        y: Encoding,
        *,
        empty: str = "zero",
    ) -> Tensor:
        """Results for integers (int64).

        `kept` marks the keys that each query reads; `empty` defines the result for a query without any.
        """
        scores = self._scores(q - self.query_zero, k - self.key_zero).clamp(-HIDDEN, HIDDEN - 1)
        if bias is not None:
            scores = (scores + bias).clamp(-HIDDEN, HIDDEN - 1)
        if empty != "zero":
            is_empty = ~kept.any(-1, keepdim=True)
            kept = kept | is_empty
            scores = torch.where(is_empty, 0, scores) if empty == "uniform" else scores
        scores = torch.where(kept, scores, -HIDDEN)
        lowest = scores.new_full((*scores.shape[:-1], 1), LOWEST)
        below = torch.cat([scores, lowest], -1).amax(-1, keepdim=True) - scores
        parts = self.table[below % _ENTRIES] >> (below // _ENTRIES).clamp(max=_LONGEST_SHIFT)
        total = parts.sum(-1, keepdim=True).clamp(min=1)
        zeros = 32 - _bit_length(total)
        reciprocal = ((1 << 32) - 1) // ((total << zeros) >> 16)
        sums = _product(parts, v - self.value_zero)
        places = zeros - self.spread
        t = requant((sums << places.clamp(min=0)) >> (-places).clamp(min=0), reciprocal, 0)
        made = requant(t, self.result.multiplier, self.result.shift) + y.zero_point[0]
        return made.clamp(y.qmin, y.qmax)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        scaled = requant_sum if self.wide_scores else requant
        return scaled(_product(q, k.transpose(-1, -2)), self.score.multiplier, self.score.shift)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product of integers: float64 holds every partial sum exactly, and multiplies faster than int64."""
    return torch.matmul(a.double(), b.double()).to(torch.int64)


def _bit_length(x: Tensor) -> Tensor:
    """Bits of numbers from 1 to 2^31 - 1."""
    return torch.frexp(x.double()).exponent.to(torch.int64)
