"""Expansion of a window of int8 or int16 to the 16-bit operands of the matrix product: selection and order.

A window is `rows` x `segments` runs of contiguous elements. Since weights may be in any order of taps, runs are read
four elements at a time. If the length of a run is not a multiple of four, either its last four elements overlap the
previous ones, with zero weights for the overlap, or the remaining elements of all runs share separate words. The same
holds for int16, except that four bytes are split into the first and third, the second and fourth, and four int16 into
the first two and the last two, which are already adjacent in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MAX_GATHERED = 16
# A word of weights is split like bytes, so that the second of two int16 corresponds to its third byte.
_PAIRED = (0, 2, 1, 3)


@dataclass(frozen=True)
class Word:
    """Four bytes at `offset` of a tap pointer, and the positions of their even and odd halves."""

    offset: int
    even: int
    odd: int


@dataclass(frozen=True)
class Tail:
    """Four single bytes, as C expressions, and the positions of their even and odd halves."""

    even: int
    odd: int
    b0: str
    b1: str
    b2: str
    b3: str


@dataclass(frozen=True)
class Expansion:
    """Reads of a window; `order` is, for each tap of the product, its index in the window, or -1.

    If `summed`, 128 times the sum of all words of a row's operand follow it, modulo 2^32.
    """

    interleaved: int
    rows: int
    segments: int
    segment_step: int
    loops: int
    loop_words: tuple[Word, ...]
    single_words: tuple[Word, ...]
    tails: tuple[Tail, ...]
    order: tuple[int, ...]
    wide: bool
    summed: bool = False

    @property
    def words(self) -> int:
        """Words of the operand, and of the sum if there is one."""
        return len(self.order) // 2 + self.summed

    @property
    def element(self) -> str:
        """C type of the elements."""
        return "int16_t" if self.wide else "int8_t"

    @property
    def steps(self) -> int:
        """Words of four taps."""
        return len(self.order) // 4

    @property
    def has_words(self) -> bool:
        """True if some bytes are read as words."""
        return self.loops > 0 or len(self.single_words) > 0

    @property
    def uses_pitch(self) -> bool:
        """True if the distance of rows is used."""
        return self.has_words or self.rows > 1

    @property
    def loop_bytes(self) -> int:
        """Bytes that one iteration of the loop reads."""
        return 4 * len(self.loop_words)

    @property
    def loop_stride(self) -> int:
        """Words of the columns that one iteration of the loop advances."""
        return 2 * self.interleaved * len(self.loop_words)

    @property
    def single_stride(self) -> int:
        """Words of the columns that the words after the loop advance."""
        return 2 * self.interleaved * len(self.single_words)

    @property
    def instructions(self) -> float:
        """Instructions to expand one window."""
        runs = self.rows * self.segments * self.has_words
        words = self.steps - len(self.tails)
        summing = 2 * self.steps + 3 if self.summed else 0
        reading = (4 if self.wide else 5) * words + runs * (3 + 3 * self.loops) + 14 * len(self.tails)
        return 6 + reading + summing

    @property
    def code_bytes(self) -> int:
        """Bytes of code."""
        return 40 + 18 * (len(self.loop_words) + len(self.single_words)) + 50 * len(self.tails)


def plan_expansion(
    rows: int,
    segments: int,
    segment_step: int,
    length: int,
    *,
    interleaved: int,
    wide: bool = False,
    summed: bool = False,
) -> Expansion:
    """The reads of `rows` x `segments` runs of `length` bytes, with runs of one row `segment_step` apart.

    The words of `interleaved` windows alternate. In the C, rows are `pitch` bytes apart, which differs between the
    image and a copied window.
    """
    runs = rows * segments
    rest = length % 4
    overlapped_steps = runs * -(-length // 4)
    gathered_steps = runs * (length // 4) - (-runs * rest // 4)
    gathers = rest > 0 and (
        length < 4 or (gathered_steps < overlapped_steps and runs * rest <= _MAX_GATHERED)
    )
    overlaps = rest > 0 and not gathers

    words = length // 4
    unroll = words if words <= 4 else next(n for n in (4, 3, 5, 6, 1) if words % n == 0)
    loops = words // unroll if words > unroll > 1 or unroll == 1 < words else 0
    looped = unroll if loops else 0
    singles = [4 * i for i in range(words - loops * looped)]
    if overlaps:
        singles.append(rest + 4 * len(singles) - 4)

    run_order = list(range(length - rest))
    if overlaps:
        run_order += [-1] * (4 - rest) + list(range(length - rest, length))
    order = [start if start < 0 else run * length + start for run in range(runs) for start in run_order]
    if wide:
        order = [order[i + lane] for i in range(0, len(order), 4) for lane in _PAIRED]
    tails: list[Tail] = []

    def byte(tap: int) -> str:
        if tap < 0:
            return "0"
        run, offset = divmod(tap, length)
        row, segment = divmod(run, segments)
        place = segment * segment_step + offset
        return f"window[{row} * pitch + {place}]" if row else f"window[{place}]"

    if gathers:
        left_over = [run * length + i for run in range(runs) for i in range(length - rest, length)]
        left_over += [-1] * (-len(left_over) % 4)
        tails = [
            _tail(tuple(left_over[i : i + 4]), i // 4 * 2 * interleaved, interleaved, byte)
            for i in range(0, len(left_over), 4)
        ]
        order += left_over
    return Expansion(
        interleaved=interleaved,
        rows=rows,
        segments=segments,
        segment_step=segment_step,
        loops=loops,
        loop_words=_words([4 * i for i in range(looped)], interleaved),
        single_words=_words(singles, interleaved),
        tails=tuple(tails),
        order=tuple(order),
        wide=wide,
        summed=summed,
    )


def _words(offsets: list[int], interleaved: int) -> tuple[Word, ...]:
    stride = 2 * interleaved
    return tuple(Word(offset, i * stride, i * stride + interleaved) for i, offset in enumerate(offsets))


def _tail(taps: tuple[int, ...], even: int, interleaved: int, byte: Callable[[int], str]) -> Tail:
    b0, b1, b2, b3 = (byte(tap) for tap in taps)
    return Tail(even, even + interleaved, b0, b1, b2, b3)
