"""Integer convolution on Cortex-M with DSP: windows, two to four at a time, for the matrix product of `gemm_dsp`.

Any kernel, stride, padding and dilation, one group. A window that extends over the border is first copied, with its
padding, to a small patch, so that gathering needs no test for the border.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..base import Function, Work, template
from ..low_bits import BYTE, weights_text
from .epilogue import HEADERS, Epilogue, parameters
from .expand import Expansion, plan_expansion
from .gemm import CHANNELS, Gemm, Int32Array, IntArray, fewer_together, pack_rows, pixels_together

_MAX_TAILS = 16
_WRITTEN_OUT = 4  # iterations of a loop that GCC unrolls


@dataclass(frozen=True)
class ConvShape:
    """A convolution in NHWC, batch 1; `padding` is (top, left), the rest follows from the sizes.

    `together` is the number of pixels computed at a time; None for the number with the fewest instructions.
    """

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    input_zero_point: int
    epilogue: Epilogue
    weight_bits: int = BYTE
    together: int | None = None

    @property
    def title(self) -> str:
        """Description of the function, for its comment."""
        sizes = f"{self.in_h}x{self.in_w}x{self.in_c} to {self.out_h}x{self.out_w}x{self.out_c}"
        return f"Convolution {self.kernel[0]}x{self.kernel[1]}, {sizes}{weights_text(self.weight_bits)}"

    @property
    def pixels(self) -> int:
        """Output pixels."""
        return self.out_h * self.out_w

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.pixels * self.out_c * self.in_c * self.kernel[0] * self.kernel[1]

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the input under a window."""
        return (self.kernel[0] - 1) * self.dilation[0] + 1, (self.kernel[1] - 1) * self.dilation[1] + 1

    @property
    def last(self) -> tuple[int, int]:
        """The bottommost and rightmost place of a window inside the input."""
        return self.in_h - self.extent[0], self.in_w - self.extent[1]

    @property
    def padded(self) -> bool:
        """True if some window extends over the border."""
        bottom = (self.out_h - 1) * self.stride[0] - self.padding[0]
        right = (self.out_w - 1) * self.stride[1] - self.padding[1]
        return self.padding != (0, 0) or bottom > self.last[0] or right > self.last[1]

    @property
    def pointwise(self) -> bool:
        """True if the windows are the pixels, one after the other."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not self.padded


def of_less_memory(shape: ConvShape) -> tuple[ConvShape, ...]:
    """The shape with fewer pixels at a time, which needs less working memory."""
    fewer = fewer_together(_together(shape), shape.weight_bits)
    return tuple(replace(shape, together=together) for together in fewer)


def supports(shape: ConvShape) -> bool:
    """True if the kernel supports `shape`: all but windows with too many single bytes to gather."""
    return len(_expansion(shape).tails) <= _MAX_TAILS


def scratch_bytes(shape: ConvShape) -> int:
    """Bytes of working memory, aligned to 4."""
    return 4 * _gemm(shape).column_words + (_patch_bytes(shape) if shape.padded else 0)


def constant_words(shape: ConvShape) -> tuple[int, int]:
    """Words of the weights, and of biases and scales."""
    return _gemm(shape).constant_words


def pack(
    shape: ConvShape, weights: IntArray, bias: IntArray, multiplier: IntArray, shift: IntArray
) -> tuple[Int32Array, ...]:
    """The constants of the layer, in words.

    `weights` are in the order [out, in, kh, kw], the rest per channel; `bias` has -zx * sum(w) folded in.
    """
    window = weights.reshape(shape.out_c, shape.in_c, -1).transpose(0, 2, 1).reshape(shape.out_c, -1)
    order = np.array(_expansion(shape).order)
    taps = np.where(order >= 0, window[:, np.maximum(order, 0)], 0).astype(weights.dtype)
    return pack_rows(shape.epilogue, taps, bias, multiplier, shift, together=CHANNELS, bits=shape.weight_bits)


def estimate(shape: ConvShape) -> Work:
    """The work of the layer, fitted to exact counts; code as `benchmarks/code_size.py` measures it."""
    gemm, expansion = _gemm(shape), _expansion(shape)
    groups = -(-shape.pixels // gemm.pixels)
    gather = shape.pixels * (expansion.instructions + (0 if shape.pointwise else 14))
    border = (
        _border_pixels(shape) * (60 + 35 * shape.kernel[0] + _patch_bytes(shape) / 3) if shape.padded else 0
    )
    results = groups * (30 + gemm.around(shape.epilogue))
    return Work(groups * gemm.products, gather + border, results, _code_bytes(shape))


def _code_bytes(shape: ConvShape) -> int:
    """Code bytes measured by `benchmarks/code_size.py`; GCC unrolls short loops."""
    gemm, expansion = _gemm(shape), _expansion(shape)
    turns = expansion.loops if expansion.loops <= _WRITTEN_OUT else 1
    words = turns * len(expansion.loop_words) + len(expansion.single_words)
    loop = 0 if not expansion.loops else 108 if expansion.loops <= _WRITTEN_OUT else 382
    reading = 32 * words + loop + 78 * len(expansion.tails)
    ragged = shape.pixels % gemm.pixels > 0
    where = 182 * shape.pointwise + 188 * shape.padded + 192 * ragged
    return gemm.code_bytes + reading + where + 190 * (shape.epilogue.residual is not None)


def function(shape: ConvShape) -> Function:
    """The C function `name(x, [r,] y, constants..., scratch)`."""
    path = "dsp/pointwise.c.j2" if shape.pointwise else "dsp/conv.c.j2"
    together = _together(shape)
    kinds = [f"{together} pixels"] * (together != 3) + ["ragged"] * (shape.pixels % together > 0)
    variant = " ".join(kinds + ["weights of 16 bits"] * (shape.weight_bits > BYTE))
    return template(path, _context(shape), parameters(shape.epilogue), headers=HEADERS, variant=variant)


@dataclass(frozen=True)
class _Context:
    """Template context."""

    title: str
    epilogue: Epilogue
    gemm: Gemm
    expansion: Expansion
    residual_argument: str
    pixels: int
    ragged: bool
    group_bytes: int
    padded: bool
    padding: int
    fills_bytes: bool
    pixel_bytes: int
    patch_bytes: int
    patch_elements: int
    patch_pitch: int
    pitch: int
    kernel_h: int
    extent_h: int
    extent_w: int
    dilation_h: int
    stride_h: int
    stride_w: int
    in_h: int
    in_w: int
    in_c: int
    first_top: int
    first_left: int
    end_left: int


def _context(shape: ConvShape) -> _Context:
    return _Context(
        title=shape.title,
        epilogue=shape.epilogue,
        gemm=_gemm(shape),
        expansion=_expansion(shape),
        residual_argument="" if shape.epilogue.residual is None else "r, ",
        pixels=shape.pixels,
        ragged=shape.pixels % _together(shape) != 0,
        group_bytes=_together(shape) * shape.out_c,
        padded=shape.padded,
        padding=shape.input_zero_point if shape.padded else 0,
        fills_bytes=not shape.epilogue.elements.wide or shape.input_zero_point == 0,
        pixel_bytes=shape.epilogue.elements.bytes * shape.in_c,
        patch_bytes=_patch_bytes(shape),
        patch_elements=_patch_elements(shape),
        patch_pitch=shape.extent[1] * shape.in_c,
        pitch=shape.dilation[0] * shape.in_w * shape.in_c,
        kernel_h=shape.kernel[0],
        extent_h=shape.extent[0],
        extent_w=shape.extent[1],
        dilation_h=shape.dilation[0],
        stride_h=shape.stride[0],
        stride_w=shape.stride[1],
        in_h=shape.in_h,
        in_w=shape.in_w,
        in_c=shape.in_c,
        first_top=-shape.padding[0],
        first_left=-shape.padding[1],
        end_left=shape.out_w * shape.stride[1] - shape.padding[1],
    )


def _expansion(shape: ConvShape) -> Expansion:
    kernel_h, kernel_w = shape.kernel
    step = shape.in_c * shape.dilation[1]
    segments, length = (1, kernel_w * shape.in_c) if shape.dilation[1] == 1 else (kernel_w, shape.in_c)
    wide = shape.epilogue.elements.wide
    return plan_expansion(kernel_h, segments, step, length, interleaved=_together(shape), wide=wide)


def _gemm(shape: ConvShape) -> Gemm:
    steps, shifted = _expansion(shape).steps, shape.epilogue.shifted
    return Gemm(shape.out_c, steps, shifted, shape.weight_bits, _together(shape))


def _together(shape: ConvShape) -> int:
    return shape.together or pixels_together(shape.pixels, shape.weight_bits)


def _patch_bytes(shape: ConvShape) -> int:
    return shape.epilogue.elements.bytes * _patch_elements(shape)


def _patch_elements(shape: ConvShape) -> int:
    return shape.kernel[0] * shape.extent[1] * shape.in_c


def _border_pixels(shape: ConvShape) -> int:
    inside_h = _inside(shape.out_h, shape.stride[0], shape.padding[0], shape.last[0])
    inside_w = _inside(shape.out_w, shape.stride[1], shape.padding[1], shape.last[1])
    return shape.pixels - inside_h * inside_w


def _inside(outputs: int, stride: int, padding: int, last: int) -> int:
    return sum(0 <= i * stride - padding <= last for i in range(outputs))
