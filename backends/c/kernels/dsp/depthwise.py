"""Integer depthwise convolution on Cortex-M with DSP, one channel at a time.

A channel is copied, with its padding, to a plane of int16, where SMLAD multiplies two neighbouring taps of a row. Taps
are paired along one of the two spatial axes, which is chosen: a time series is long along one axis only. Constants of
a channel: bias, multiplier, a left shift if the epilogue is shifted, then, row by row of the kernel, the pairs (w0,
w1), (w2, w3), ... for outputs whose window begins with a low lane, and, if there are others, the pairs (w1, w2), (w3,
w4), ... for those; a single tap reads its weight from either word. Weights of fewer than 8 bits are unpacked to these
words channel by channel, see `depthwise_taps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Function, Work, template
from ..low_bits import BYTE, weights_text
from .depthwise_axes import BLOCK, Axes, Axis, row_macs
from .depthwise_taps import Unpacked, pack_taps, unpack_taps
from .epilogue import HEADERS, Epilogue, parameters
from .gemm import Int32Array, IntArray, pack_arrays

_MAX_TAPS = 64
_COPIES = 8
_REGISTERS = 11
_SPILLED = 1.75  # instructions that GCC makes for each load and multiply-accumulate of a block
_REACH, _PAIR_REACH = 4095, 1020


@dataclass(frozen=True)
class DepthwiseShape:
    """A depthwise convolution in NHWC, batch 1, multiplier 1; `padding` is (top, left), the rest follows."""

    in_h: int
    in_w: int
    channels: int
    out_h: int
    out_w: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_zero_point: int
    epilogue: Epilogue
    weight_bits: int = BYTE

    @property
    def title(self) -> str:
        """Description of the function, for its comment."""
        sizes = f"{self.in_h}x{self.in_w}x{self.channels} to {self.out_h}x{self.out_w}"
        return f"Depthwise convolution {self.kernel[0]}x{self.kernel[1]}, {sizes}{weights_text(self.weight_bits)}"

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.out_h * self.out_w * self.channels * self.kernel[0] * self.kernel[1]


def supports(shape: DepthwiseShape) -> bool:
    """True if the kernel supports `shape`: no residual, and few enough taps to be unrolled."""
    taps = shape.kernel[0] * shape.kernel[1]
    return shape.epilogue.residual is None and taps <= _MAX_TAPS


def may_overwrite_input(shape: DepthwiseShape) -> bool:
    """True if the output may be in exactly the memory of the input."""
    elements = shape.epilogue.elements
    return (shape.out_h, shape.out_w) == (shape.in_h, shape.in_w) and elements.x == elements.y


def scratch_bytes(shape: DepthwiseShape) -> int:
    """Bytes of working memory, aligned to 4."""
    axes = _axes(shape)
    return 2 * axes.plane_cells + (4 * axes.channel_words if axes.bits < BYTE else 0)


def constant_words(shape: DepthwiseShape) -> tuple[int, int]:
    """Words of the weights, and of biases and scales."""
    return shape.channels * _axes(shape).taps.packed_words, shape.channels * _scale_words(shape)


def pack(
    shape: DepthwiseShape, weights: IntArray, bias: IntArray, multiplier: IntArray, shift: IntArray
) -> tuple[Int32Array, ...]:
    """The constants of the layer, in words.

    `weights` are in the order [channels, 1, kh, kw], the rest per channel; `bias` has -zx * sum(w) folded in.
    """
    axes = _axes(shape)
    rows = weights.reshape(shape.channels, *shape.kernel)
    rows = rows.transpose(0, 2, 1) if axes.turned else rows
    per_channel = [bias, multiplier, *([shift] if shape.epilogue.shifted else [])]
    heads = np.stack([np.asarray(values, np.int32) for values in per_channel], axis=1)
    return pack_arrays(shape.epilogue, heads, pack_taps(axes.taps, rows), ())


def estimate(shape: DepthwiseShape) -> Work:
    """The work of the layer, fitted to exact counts; code as `benchmarks/code_size.py` measures it."""
    axes = _axes(shape)
    unpacked = axes.taps.words if axes.bits < BYTE else 0
    copies = shape.channels * (axes.copy_instructions + 4.5 * unpacked) + 0.8 * axes.plane_cells
    blocks = shape.channels * axes.block_instructions(shape.epilogue)
    return Work(shape.channels * _products(axes), copies, blocks, _code_bytes(axes) + 16 * unpacked)


def _products(axes: Axes) -> float:
    """Instructions of one channel's multiply-accumulates with their loads; in GCC's case including register spills."""
    each = 0.0
    for count, outputs in axes.blocks:
        block = _block(axes, outputs) if count else None
        if block is not None:
            written = len(block.assembly)
            compiled = _SPILLED * sum(len(row.macs) + len(row.loads) + len(row.weights) for row in block.rows)
            each += count * (written or compiled)
    return axes.across.outputs * each


def function(shape: DepthwiseShape) -> Function:
    """The C function `name(x, y, constants..., scratch)`."""
    context = _context(shape)
    variant = "" if context.copy_loops > 1 else "short rows"
    return template(
        "dsp/depthwise.c.j2", context, parameters(shape.epilogue), headers=HEADERS, variant=variant
    )


def _axes(shape: DepthwiseShape) -> Axes:
    """The axes in the order with fewer instructions."""
    kernel, stride, padding = shape.kernel, shape.stride, shape.padding
    in_row, out_row = shape.in_w * shape.channels, shape.out_w * shape.channels
    vertical = Axis(shape.out_h, shape.in_h, kernel[0], stride[0], padding[0], in_row, out_row)
    horizontal = Axis(
        shape.out_w, shape.in_w, kernel[1], stride[1], padding[1], shape.channels, shape.channels
    )
    head_words = 0 if shape.epilogue.apart else _scale_words(shape)
    candidates = (
        Axes(along=horizontal, across=vertical, turned=False, head_words=head_words, bits=shape.weight_bits),
        Axes(along=vertical, across=horizontal, turned=True, head_words=head_words, bits=shape.weight_bits),
    )
    return min(candidates, key=lambda axes: axes.instructions(shape.epilogue))


def _scale_words(shape: DepthwiseShape) -> int:
    """Words of bias, multiplier and shift of a channel."""
    return 3 if shape.epilogue.shifted else 2


_INSTRUCTIONS = {
    "fxp_dot2": "smlad",
    "fxp_low_low": "smlabb",
    "fxp_low_high": "smlabt",
    "fxp_high_low": "smlatb",
    "fxp_high_high": "smlatt",
}


@dataclass(frozen=True)
class _Named:
    """A local variable and the location of its value."""

    name: str
    offset: int


@dataclass(frozen=True)
class _NamedMac:
    """A multiply-accumulate between local variables."""

    function: str
    x: str
    weight: str
    sum: str


@dataclass(frozen=True)
class _Row:
    """One kernel row of a block."""

    loads: tuple[_Named, ...]
    weights: tuple[_Named, ...]
    macs: tuple[_NamedMac, ...]


@dataclass(frozen=True)
class _Block:
    """A function for `count` adjacent outputs."""

    name: str
    outputs: tuple[_Named, ...]
    rows: tuple[_Row, ...]

    @property
    def registers(self) -> list[str]:
        """The words of one row."""
        return [word.name for word in (*self.rows[0].loads, *self.rows[0].weights)]

    @property
    def assembly(self) -> list[str]:
        """The rows as assembly instructions; empty if a row has more words than there are registers."""
        last_offset = 2 * self.rows[-1].loads[-1].offset
        if len(self.registers) + len(self.outputs) > _REGISTERS or last_offset > _REACH:
            return []
        return [line for row in self.rows for line in _assembly(row)]


def _assembly(row: _Row) -> list[str]:
    lines = [*_loads("plane", row.loads, 2), *_loads("constants", row.weights, 4)]
    for mac in row.macs:
        lines.append(f"{_INSTRUCTIONS[mac.function]} %[{mac.sum}], %[{mac.x}], %[{mac.weight}], %[{mac.sum}]")
    return lines


def _loads(base: str, words: tuple[_Named, ...], size: int) -> list[str]:
    """Loads of words at offsets counted in elements of `size` bytes, two neighbours at a time if possible."""
    lines, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        offset = size * word.offset
        if rest and size * rest[0].offset == offset + 4 and offset <= _PAIR_REACH:
            lines.append(f"ldrd %[{word.name}], %[{rest.pop(0).name}], [%[{base}], #{offset}]")
        else:
            lines.append(f"ldr %[{word.name}], [%[{base}], #{offset}]")
    return lines


def _block(axes: Axes, count: int) -> _Block:
    macs = row_macs(axes, count)
    words = sorted({mac.x for mac in macs})
    starts = sorted({mac.start for mac in macs}, key=axes.pair_starts.index)

    def row(index: int) -> _Row:
        first = axes.head_words + index * len(axes.pair_starts)
        return _Row(
            loads=tuple(_Named(f"x{word}", index * axes.pitch + 2 * word) for word in words),
            weights=tuple(_Named(f"w{start}", first + axes.pair_starts.index(start)) for start in starts),
            macs=tuple(_NamedMac(m.function, f"x{m.x}", f"w{m.start}", f"sum{m.output}") for m in macs),
        )

    return _Block(
        name=f"block{count}",
        outputs=tuple(_Named(f"sum{i}", i * axes.along.out_step) for i in range(count)),
        rows=tuple(row(index) for index in range(axes.across.kernel)),
    )


def _code_bytes(axes: Axes) -> int:
    """Code bytes measured by `benchmarks/code_size.py`; GCC unrolls loops of two or three iterations."""
    loops = axes.along.inputs_read // _COPIES
    second_block = axes.along.outputs >= BLOCK and axes.tail > 0
    return 620 + 150 * second_block + (210 * (loops - 1) if loops in (2, 3) else 0)


@dataclass(frozen=True)
class _Context:
    """Template context."""

    title: str
    epilogue: Epilogue
    padding_byte: int
    channels: int
    packed_words: int
    head_words: range
    scale_words: int
    unpacked: tuple[Unpacked, ...]
    plane_words: int
    plane_cells: int
    first_cell: int
    pitch: int
    rows_read: int
    copy_loops: int
    copies: tuple[_Copy, ...]
    last_copies: tuple[_Copy, ...]
    copy_cells: int
    copy_bytes: int
    in_row: int
    out_rows: int
    out_row: int
    row_cells: int
    blocks: tuple[_Block, ...]
    block_loops: int
    block_cells: int
    block_bytes: int
    tail_block: str


@dataclass(frozen=True)
class _Copy:
    """One cell of the plane and the byte it comes from."""

    cell: int
    offset: int


def _context(shape: DepthwiseShape) -> _Context:
    axes = _axes(shape)
    along, across = axes.along, axes.across
    loops = along.outputs // BLOCK
    copy_loops, left_over = divmod(along.inputs_read, _COPIES)
    whole = (_block(axes, BLOCK),) if loops else ()
    tail = (_block(axes, axes.tail),) if axes.tail else ()
    return _Context(
        title=shape.title,
        epilogue=shape.epilogue,
        padding_byte=shape.input_zero_point,
        channels=shape.channels,
        packed_words=axes.head_words + axes.taps.packed_words,
        head_words=range(axes.head_words),
        scale_words=_scale_words(shape) if shape.epilogue.apart else 0,
        unpacked=unpack_taps(axes.taps, head_words=axes.head_words),
        plane_words=axes.plane_cells // 2,
        plane_cells=axes.plane_cells,
        first_cell=across.padding * axes.pitch + along.padding,
        pitch=axes.pitch,
        rows_read=across.inputs_read,
        copy_loops=copy_loops,
        copies=tuple(_Copy(i, i * along.in_step) for i in range(_COPIES if copy_loops else 0)),
        last_copies=tuple(_Copy(i, i * along.in_step) for i in range(left_over)),
        copy_cells=_COPIES,
        copy_bytes=_COPIES * along.in_step,
        in_row=across.in_step,
        out_rows=across.outputs,
        out_row=across.out_step,
        row_cells=across.stride * axes.pitch,
        blocks=whole + tail,
        block_loops=loops,
        block_cells=BLOCK * along.stride,
        block_bytes=BLOCK * along.out_step,
        tail_block=tail[0].name if tail else "",
    )
