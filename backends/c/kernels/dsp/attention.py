"""Attention on int8 on Cortex-M with DSP: three queries at a time, two keys, two channels of the values.

The keys and values of a head are expanded to words of two numbers of 16 bits, in scratch memory: 6 products take 8
instructions. Rows of scores of three queries are stored. With a mask of keys the rows end at its last key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .....ir import DType
from .....ir.ops.attention import Attention
from .....ir.ops.attention_form import LOWEST, AttentionForm
from ...plan.layout import Layout, arranged
from ...write.literal import c_type
from ..base import Offers, Site, Work, kernel, offer
from ..nest import Nest
from ..portable.attention import (
    Operands,
    numbers,
    operands,
    powers,
    result_of,
    seen_share,
    title,
)
from .epilogue import HEADERS

_STRAIGHT = 16  # pairs of features that are unrolled
_UNROLL = 8
_TURNS = (8, 7, 6, 5, 4, 3, 2, 1)  # pairs of keys in an iteration, the preferred first


@dataclass(frozen=True)
class Rows:
    """Rows of int8 that are expanded: words of four elements, and the pairs of the elements after them."""

    count: int

    @property
    def quads(self) -> int:
        """Words of four elements."""
        return self.count // 4

    @property
    def rest(self) -> tuple[tuple[int, int], ...]:
        """Positions of the elements after them, in pairs; 0 in place of a missing second one."""
        return tuple((e, e + 1 if e + 1 < self.count else 0) for e in range(4 * self.quads, self.count, 2))


@dataclass(frozen=True)
class Pairs:
    """Steps of a product of this many pairs after the first: unrolled, then in a loop."""

    count: int

    @property
    def loops(self) -> int:
        """Iterations of the loop."""
        return 0 if self.count <= _STRAIGHT else (self.count - 1) // _UNROLL

    @property
    def single(self) -> range:
        """Steps before the loop."""
        return range(self.count - 1 - self.loops * _UNROLL)

    @property
    def looped(self) -> range:
        """Steps of an iteration."""
        return range(_UNROLL)


@dataclass(frozen=True)
class DspContext:
    """Template context; see `attention_form`. `row` is the words of a pair of channels, `turn` the pairs of an
    iteration.
    """

    title: str
    nest: Nest
    type: str
    queries: int
    keys: int
    features: Rows
    values: Rows
    pairs: Pairs
    turn: range
    row: int
    rows: tuple[int, int, int, int]
    step: int
    query_zero: bool
    key_zero: bool
    value_zero: bool
    score_shift: int
    spread: int
    lowest: int
    seen: str
    limit: str
    kept: str
    keeps_keys: bool
    added: str
    added_next: str
    result: str

    @property
    def names_query(self) -> bool:
        """True if the keys that a query reads, or the addends of their scores, depend on the query."""
        return any(re.search(r"\bi\b", text) for text in (self.limit, self.kept, self.added))

    @property
    def words(self) -> int:
        """Words of a row of features."""
        return self.pairs.count

    @property
    def channels(self) -> int:
        """Channels of the values."""
        return self.values.count

    @property
    def loops(self) -> str:
        """Iterations of the loop over pairs of keys."""
        turn = len(self.turn)
        return f"(pairs + {turn - 1}) / {turn}" if turn > 1 else "pairs"

    @property
    def key_words(self) -> int:
        """Words of the expanded keys."""
        return 2 * self.words * -(-self.keys // 2)

    @property
    def value_words(self) -> int:
        """Words of the expanded values."""
        return -(-self.channels // 2) * self.row

    @property
    def query_words(self) -> int:
        """Words of three expanded queries."""
        return 3 * self.words

    @property
    def part_words(self) -> int:
        """Words of the scores of three queries."""
        return 3 * self.row // 2

    @property
    def scratch_bytes(self) -> int:
        """Bytes of working memory."""
        sums = 6 * -(-self.channels // 2)
        return 4 * (self.key_words + self.value_words + self.query_words + self.part_words + sums)


@kernel("attention")
def attention(site: Site) -> Offers:
    """Three queries at a time, one head after the other."""
    op = site.node.op
    assert isinstance(op, Attention)
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    q, k, v = (site.type(name) for name in ("q", "k", "v"))
    if not site.is_integer or any(type.dtype is not DType.I8 for type in (q, k, v)):
        return "the DSP attention computes on queries, keys and values of int8"
    if not (site.output.numel and q.numel and k.numel):
        return "the DSP attention needs queries, keys and features"
    own = operands(site, result=_result_layout(site), by_row=True)
    if site.has("mask") and op.empty != "zero":
        return "the DSP attention gives zero for rows without kept keys"
    form = op.form([q, k, v], site.output)
    context = _context(site, op, form, own)
    share = seen_share(site)
    scores = site.output.numel / context.channels * context.keys * share
    heads = site.output.numel / (context.channels * context.queries)
    expanded = heads * context.keys * (q.shape[-1] + context.channels)
    return offer(
        site,
        "dsp/attention.c.j2",
        context,
        Work(0.7 * site.node.macs * share, 14.0 * scores, 25.0 * site.output.numel + 3.0 * expanded, 1400),
        kernel="attention_dsp",
        reads=own.layouts,
        writes=(own.result,),
        tables={"powers": powers(form), "numbers": numbers(form, site.output_quantization)},
        scratch="uint32_t",
        scratch_bytes=context.scratch_bytes,
        headers=(*HEADERS, "exponentials.h"),
    )


def _result_layout(site: Site) -> Layout | None:
    """The order in which the queries are available: later nodes often view their dimensions in that order."""
    at_hand = site.at_hand("q")
    if at_hand is None or at_hand.border or len(site.type("q").shape) != site.output.rank:
        return None
    return arranged(site.output.shape, at_hand.order)


def _turn(pairs: int) -> range:
    """Pairs of keys in an iteration, for the fewest instructions."""
    return range(min(_TURNS, key=lambda turn: -(-pairs // turn) * (8 * turn + 2)))


def _context(site: Site, op: Attention, form: AttentionForm, own: Operands) -> DspContext:
    q, k, v = (site.type(name).shape for name in ("q", "k", "v"))
    queries, keys, pairs = q[-2], k[-2], -(-k[-2] // 2)
    turn = _turn(pairs)
    return DspContext(
        title=title(site),
        nest=own.nest,
        type=c_type(site.output.dtype),
        queries=queries,
        keys=keys,
        features=Rows(q[-1]),
        values=Rows(v[-1]),
        pairs=Pairs(-(-q[-1] // 2)),
        turn=turn,
        row=2 * -(-pairs // len(turn)) * len(turn),
        rows=own.rows,
        step=own.steps[3],
        query_zero=form.query_zero != 0,
        key_zero=form.key_zero != 0,
        value_zero=form.value_zero != 0,
        score_shift=form.score.shift,
        spread=form.spread,
        lowest=(LOWEST & 0xFFFF) * 0x10001,
        seen="first + 3 < rows ? first + 3 : rows" if op.causal else "rows",
        limit="i < last ? i + 1 : last" if op.causal else "last",
        kept=own.place("mask"),
        keeps_keys=own.added.get("mask", ("", 1, 1))[1] == 0,
        added=own.place("bias"),
        added_next=own.place("bias", f"(j + 1 < {keys} ? j + 1 : j)"),
        result=result_of(form, site.output_quantization, multiplier="multiplier", zero_point="zero"),
    )
