"""Integer 3x3 convolution on Cortex-M with DSP by Winograd's F(2x2, 3x3), exact.

    y = A^T [(G g G^T) * (B^T d B)] A

With 2G in place of G every number is an integer and a sum is four times the convolution, so a right shift by 2 loses
nothing. Transformed weights are 16 int16 for 9 int8: more flash for speed. Weights of fewer bits are transformed into
working memory at run time, as many channels at a time as fit in 9 KiB. Source: Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, CVPR 2016.

Constants of two output channels: two biases; for each of 16 places and each pair of input channels (0 and 2, then
1 and 3, of every four) one word of each output channel; two multipliers; two left shifts if the epilogue is shifted.
Weights that several calls read are a separate array. Weights of fewer bits have the constants of `conv_dsp`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Function, Work, template
from ..low_bits import BYTE
from ..window import Image, Window
from .conv import ConvShape
from .conv import constant_words as constant_words_of_rows
from .epilogue import HEADERS, Elements, Epilogue, parameters
from .gemm import CHANNELS, Gemm, Int32Array, IntArray, pack_arrays, pack_rows

_TWICE_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
ROWS = 2
_TILES, _PLACES = 3, 16
_MAX_CHANNELS = 256
_UNROLL = 8
_UNPACKED_BYTES = 9 * 1024
_PRODUCT_WORDS = _PLACES * 2 * _TILES


def supports(shape: ConvShape) -> bool:
    """True if `shape` is a 3x3 convolution of stride 1 over whole tiles and whole words of channels.

    Weights of fewer bits must not be read by several calls.
    """
    square = shape.kernel == (3, 3) and shape.stride == (1, 1) and shape.dilation == (1, 1)
    whole = shape.out_h % 2 == 0 and shape.out_w % 2 == 0 and shape.in_c % 4 == 0 and shape.out_c % 2 == 0
    readable = shape.weight_bits == BYTE or not shape.epilogue.apart
    narrow = shape.in_c <= _MAX_CHANNELS and shape.epilogue.elements == Elements()
    return square and whole and readable and narrow


def scratch_bytes(shape: ConvShape) -> int:
    """Bytes of working memory, aligned to 4."""
    return 4 * (_v_words(shape) + _PRODUCT_WORDS + _unpacked_words(shape)) + _patch_bytes(shape)


def rows(shape: ConvShape) -> tuple[Window, Image, Image]:
    """The order in which tiles are read and written, as consecutive rows of four inputs and two outputs."""
    x = Image(1, shape.in_h, 1, shape.in_w * shape.in_c)
    y = Image(1, shape.out_h // 2, 1, 2 * shape.out_w * shape.out_c)
    return Window((4, 1), (2, 1), (shape.padding[0], 0)), x, y


def constant_words(shape: ConvShape) -> tuple[int, int]:
    """Words of the weights, and of biases and scales."""
    if shape.weight_bits < BYTE:
        return constant_words_of_rows(shape)
    pairs = shape.out_c // CHANNELS
    return pairs * _PLACES * shape.in_c, pairs * (CHANNELS + _scale_words(shape))


def pack(
    shape: ConvShape, weights: IntArray, bias: IntArray, multiplier: IntArray, shift: IntArray
) -> tuple[Int32Array, ...]:
    """The constants of the layer, in words.

    `weights` are in the order [out, in, 3, 3], the rest per channel; `bias` has -zx * sum(w) folded in.
    """
    weights = weights.reshape(shape.out_c, shape.in_c, 3, 3)
    if shape.weight_bits < BYTE:
        taps = weights.transpose(0, 2, 3, 1).reshape(shape.out_c, -1)
        return pack_rows(
            shape.epilogue, taps, bias, multiplier, shift, together=CHANNELS, bits=shape.weight_bits
        )
    transformed = np.einsum("ay,ocyx,bx->ocab", _TWICE_G, weights.astype(np.int64), _TWICE_G)
    lanes = (
        transformed.reshape(shape.out_c // 2, 2, shape.in_c // 4, 2, 2, _PLACES) & 0xFFFF
    )  # [..., high, odd]
    words = (lanes[:, :, :, 0] | lanes[:, :, :, 1] << 16).astype(np.uint32).view(np.int32)
    ordered = words.transpose(0, 4, 2, 3, 1).reshape(shape.out_c // 2, -1)
    scales = [multiplier, shift] if shape.epilogue.shifted else [multiplier]
    blocks = [np.asarray(values, np.int32).reshape(-1, 2) for values in (bias, *scales)]
    return pack_arrays(shape.epilogue, blocks[0], ordered, blocks[1:])


def estimate(shape: ConvShape) -> Work:
    """The work of the layer, fitted to exact counts; code as `benchmarks/code_size.py` measures it."""
    tiles = shape.out_h * shape.out_w // 4
    groups = -(-tiles // _TILES)
    pairs = shape.in_c // 2
    transform = 40 + 46 * shape.in_c
    outputs = 2 * (64 + 4 * shape.epilogue.instructions)
    loops = pairs // _UNROLL if pairs > _UNROLL + 1 else 0
    products = 12 + _PLACES * (6 + 8 * pairs + 3 * (loops > 0) + 2 * loops)
    border = 0.3 * tiles * (80 + 12 * shape.in_c) if shape.padded else 0.0
    transforms = 20 * groups + tiles * transform + border
    finished = tiles * shape.out_c / 2 * outputs
    multiplied = groups * (shape.out_c / 2) * (20 + products)
    code_bytes = 1350 + 32 * min(pairs, _UNROLL + 1)
    if shape.weight_bits == BYTE:
        return Work(multiplied, transforms, finished, code_bytes)
    parts = -(-shape.out_c // _part(shape))
    unpacking = 129.0 * pairs * shape.out_c
    return Work(multiplied, parts * transforms + unpacking, finished, code_bytes + 700)


def function(shape: ConvShape) -> Function:
    """The C function `name(x, [r,] y, constants..., scratch)`."""
    return template("dsp/winograd.c.j2", _context(shape), parameters(shape.epilogue), headers=HEADERS)


@dataclass(frozen=True)
class _SumRow:
    """One of the four sums down each column, and the words at which its four positions begin."""

    sum: str
    place0: int
    place1: int
    place2: int
    place3: int


@dataclass(frozen=True)
class _ProductColumn:
    """The products of one column of positions."""

    row0: int
    row1: int
    row2: int
    row3: int


@dataclass(frozen=True)
class _Packed:
    """Weights of fewer bits: locations of the words of a pair of channels, and their destinations."""

    bits: int
    unscale: int
    first: int
    end: int
    tap: int
    row: int
    two_rows: int
    weight_words: int
    scale_words: int
    at: int
    part: int
    part_words: int
    rows: tuple[_SumRow, ...]


@dataclass(frozen=True)
class _Context:
    """Template context."""

    title: str
    epilogue: Epilogue
    packed: _Packed | None
    factor: int
    unscale: int
    padded: bool
    padding_byte: int
    patch_bytes: int
    patch_pitch: int
    pitch: int
    in_h: int
    in_w: int
    in_c: int
    out_w: int
    out_c: int
    tiles: int
    first_top: int
    first_left: int
    end_left: int
    v_words: int
    column_1: int
    column_2: int
    column_3: int
    rows: tuple[_SumRow, ...]
    product_columns: tuple[_ProductColumn, ...]
    pairs: int
    single_pairs: range
    loops: int
    looped_pairs: range
    right: int
    below: int
    below_right: int
    weights_at: int
    scales: str
    scale_at: int
    scale_words: int
    pair_words: int
    first_channel: str
    end_channel: str
    residual_name: str
    residual_parameter: str
    residual_at: str
    residual_next: str


def _context(shape: ConvShape) -> _Context:
    pairs = shape.in_c // 2
    loops, singles = divmod(pairs - 1, _UNROLL)
    if loops <= 1:
        loops, singles = 0, pairs - 1
    has_residual = shape.epilogue.residual is not None
    return _Context(
        title=shape.title,
        epilogue=shape.epilogue,
        packed=_packed(shape) if shape.weight_bits < BYTE else None,
        factor=1 << _unscale(shape),
        unscale=_unscale(shape),
        padded=shape.padded,
        padding_byte=shape.input_zero_point,
        patch_bytes=_patch_bytes(shape),
        patch_pitch=4 * shape.in_c,
        pitch=shape.in_w * shape.in_c,
        in_h=shape.in_h,
        in_w=shape.in_w,
        in_c=shape.in_c,
        out_w=shape.out_w,
        out_c=shape.out_c,
        tiles=shape.out_h * shape.out_w // 4,
        first_top=-shape.padding[0],
        first_left=-shape.padding[1],
        end_left=shape.out_w - shape.padding[1],
        v_words=_v_words(shape),
        column_1=shape.in_c,
        column_2=2 * shape.in_c,
        column_3=3 * shape.in_c,
        rows=_sum_rows(_v_words(shape) // _PLACES),
        product_columns=tuple(
            _ProductColumn(*(6 * (4 * row + column) for row in range(4))) for column in range(4)
        ),
        pairs=pairs,
        single_pairs=range(singles),
        loops=loops,
        looped_pairs=range(_UNROLL if loops else 0),
        right=shape.out_c,
        below=shape.out_w * shape.out_c,
        below_right=(shape.out_w + 1) * shape.out_c,
        weights_at=0 if shape.epilogue.apart else CHANNELS,
        scales="s" if shape.epilogue.apart else "c",
        scale_at=CHANNELS if shape.epilogue.apart else _scale_at(shape),
        scale_words=CHANNELS + _scale_words(shape),
        pair_words=_PLACES * shape.in_c if shape.epilogue.apart else _pair_words(shape),
        first_channel="first" if shape.weight_bits < BYTE else "0",
        end_channel="end" if shape.weight_bits < BYTE else str(shape.out_c),
        residual_name="r, " if has_residual else "",
        residual_parameter="const int8_t *r, " if has_residual else "",
        residual_at="r + at, " if has_residual else "",
        residual_next="r + at + 1, " if has_residual else "",
    )


def _packed(shape: ConvShape) -> _Packed:
    gemm = Gemm(shape.out_c, 9 * shape.in_c // 4, shape.epilogue.shifted, shape.weight_bits)
    tap = CHANNELS * shape.in_c // 4
    return _Packed(
        bits=shape.weight_bits,
        unscale=gemm.unscale,
        first=gemm.words.start,
        end=gemm.words.start + tap,
        tap=tap,
        row=3 * tap,
        two_rows=6 * tap,
        weight_words=gemm.weight_words,
        scale_words=gemm.scale_words,
        at=_v_words(shape) + _PRODUCT_WORDS + _patch_bytes(shape) // 4,
        part=_part(shape),
        part_words=_part(shape) // CHANNELS * (CHANNELS + gemm.weight_words + gemm.scale_words),
        rows=_sum_rows(shape.in_c),
    )


def _sum_rows(place_words: int) -> tuple[_SumRow, ...]:
    """The sums, with positions `place_words` apart."""
    return tuple(
        _SumRow(f"s{row}", *((4 * row + column) * place_words for column in range(4))) for row in range(4)
    )


def _unscale(shape: ConvShape) -> int:
    """Right shift of a sum: two bits for each side of the transform, the rest from packed weights."""
    return 2 + BYTE - shape.weight_bits


def _scale_at(shape: ConvShape) -> int:
    """Words of biases and transformed weights of a pair of channels."""
    return CHANNELS + _PLACES * shape.in_c


def _pair_words(shape: ConvShape) -> int:
    return _scale_at(shape) + _scale_words(shape)


def _scale_words(shape: ConvShape) -> int:
    """Words of multipliers and shifts of a pair of channels."""
    return CHANNELS * (2 if shape.epilogue.shifted else 1)


def _unpacked_words(shape: ConvShape) -> int:
    """Words of working memory for transformed weights."""
    return _part(shape) // CHANNELS * _pair_words(shape) if shape.weight_bits < BYTE else 0


def _part(shape: ConvShape) -> int:
    """Output channels whose weights are unpacked together."""
    pairs = shape.out_c // CHANNELS
    parts = -(-pairs // max(1, _UNPACKED_BYTES // (4 * _pair_words(shape))))
    return CHANNELS * -(-pairs // parts)


def _patch_bytes(shape: ConvShape) -> int:
    return 16 * shape.in_c if shape.padded else 0


def _v_words(shape: ConvShape) -> int:
    return _PLACES * shape.in_c // 2 * _TILES
