"""Float convolution in registers: two windows, copied next to each other, times four output channels. One group."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir.ops.accumulate import Clamp
from ..base import Function, Work, template
from ..window import Image, Window
from .gemm import CHANNELS, HEADERS, PIXELS, FloatArray, FloatGemm, group_floats, pack_groups


@dataclass(frozen=True)
class FloatConvShape:
    """A convolution of one image."""

    x: Image
    y: Image
    window: Window
    clamp: Clamp
    residual: bool

    @property
    def pixels(self) -> int:
        """Output pixels."""
        return self.y.h * self.y.w

    @property
    def pointwise(self) -> bool:
        """True if the windows are the pixels, one after the other."""
        return (
            self.window.kernel == (1, 1)
            and self.window.stride == (1, 1)
            and not self.window.reaches_out(self.x, self.y)
        )

    @property
    def gemm(self) -> FloatGemm:
        """The matrix product of a pair of windows."""
        taps = self.window.kernel[0] * self.window.kernel[1] * self.x.c
        return FloatGemm(self.y.c, taps, self.clamp, self.residual)


def scratch_bytes(shape: FloatConvShape) -> int:
    """Bytes of working memory, aligned to 4."""
    return 0 if shape.pointwise else 4 * PIXELS * shape.gemm.taps


def floats(shape: FloatConvShape) -> int:
    """Number of constants."""
    return group_floats(shape.y.c, shape.gemm.taps, together=CHANNELS)


def pack(shape: FloatConvShape, weights: FloatArray, bias: FloatArray | None) -> FloatArray:
    """The constants of the layer; `weights` are in the order [out, in, kh, kw]."""
    rows = weights.reshape(shape.y.c, shape.x.c, -1).transpose(0, 2, 1).reshape(shape.y.c, -1)
    return pack_groups(rows, bias, together=CHANNELS)


def estimate(shape: FloatConvShape) -> Work:
    """The work of the layer with a multiply-add in one instruction, fitted to exact counts."""
    pairs = -(-shape.pixels // PIXELS)
    copy = (
        0.0 if shape.pointwise else shape.pixels * (30 + 30 * shape.window.kernel[0] + 0.7 * shape.gemm.taps)
    )
    written = len(shape.gemm.looped) + len(shape.gemm.single)
    code_bytes = 200 + 56 * written + (0 if shape.pointwise else 250)
    return Work(pairs * shape.gemm.products, copy, pairs * (20 + shape.gemm.around), code_bytes)


def function(shape: FloatConvShape) -> Function:
    """The C function `name(x, [r,] y, constants, [scratch])`."""
    path = "blocked/pointwise.c.j2" if shape.pointwise else "blocked/conv.c.j2"
    working = "" if shape.pointwise else ", float *scratch"
    parameters = f"const float *x, {shape.gemm.residual_parameter}float *y, const float *constants{working}"
    return template(path, _context(shape), parameters, headers=HEADERS)


@dataclass(frozen=True)
class _Context:
    """Template context."""

    title: str
    gemm: FloatGemm
    pixels: int
    odd_pixels: bool
    pair_floats: int
    kernel_h: int
    kernel_w: int
    dilation_h: int
    dilation_w: int
    stride_h: int
    stride_w: int
    in_h: int
    in_w: int
    in_c: int
    runs: bool
    run: int
    first_top: int
    first_left: int
    end_left: int


def _context(shape: FloatConvShape) -> _Context:
    window, x, y = shape.window, shape.x, shape.y
    return _Context(
        title=f"Convolution {window.kernel[0]}x{window.kernel[1]}, {x.text} to {y.text}",
        gemm=shape.gemm,
        pixels=shape.pixels,
        odd_pixels=shape.pixels % PIXELS == 1,
        pair_floats=PIXELS * y.c,
        kernel_h=window.kernel[0],
        kernel_w=window.kernel[1],
        dilation_h=window.dilation[0],
        dilation_w=window.dilation[1],
        stride_h=window.stride[0],
        stride_w=window.stride[1],
        in_h=x.h,
        in_w=x.w,
        in_c=x.c,
        runs=window.dilation[1] == 1,
        run=window.kernel[1] * x.c,
        first_top=-window.padding[0],
        first_left=-window.padding[1],
        end_left=y.w * window.stride[1] - window.padding[1],
    )
