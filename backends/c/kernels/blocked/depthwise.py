"""Float depthwise convolution in registers: four channels of a pixel at a time.

Constants: the biases of all channels, then the weights [kh, kw, channels].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .....ir.ops.accumulate import Clamp
from ..base import Function, Work, template
from ..rounding import clamped
from ..window import Image, Window
from .gemm import CHANNELS, HEADERS, FloatArray


@dataclass(frozen=True)
class FloatDepthwiseShape:
    """A depthwise convolution of one image, without dilation."""

    x: Image
    y: Image
    window: Window
    clamp: Clamp


def supports(shape: FloatDepthwiseShape) -> bool:
    """True if windows are not dilated."""
    return shape.window.dilation == (1, 1)


def floats(shape: FloatDepthwiseShape) -> int:
    """Number of constants."""
    return shape.y.c * (1 + shape.window.kernel[0] * shape.window.kernel[1])


def pack(_: FloatDepthwiseShape, weights: FloatArray, bias: FloatArray | None) -> FloatArray:
    """The constants of the layer; `weights` are in the order [channels, 1, kh, kw]."""
    channels = len(weights)
    first = np.zeros(channels, np.float32) if bias is None else bias
    return np.concatenate([first, weights.reshape(channels, -1).T.reshape(-1)])


def estimate(shape: FloatDepthwiseShape) -> Work:
    """The work of the layer with a multiply-add in one instruction, fitted to exact counts."""
    fours, pixels = shape.y.c / CHANNELS, shape.y.h * shape.y.w
    rows = shape.y.w * shape.window.rows_inside(shape.x, shape.y)
    taps = shape.window.taps_inside(shape.x, shape.y)
    code_bytes = 300 + 150 * (shape.y.c % CHANNELS > 0)
    return Work(17 * fours * taps, 12 * fours * rows, pixels * (30 + 35 * fours), code_bytes)


def function(shape: FloatDepthwiseShape) -> Function:
    """The C function `name(x, y, constants)`."""
    parameters = "const float *x, float *y, const float *constants"
    return template("blocked/depthwise.c.j2", _context(shape), parameters, headers=HEADERS)


@dataclass(frozen=True)
class _Context:
    """Template context."""

    title: str
    value: str
    out_h: int
    out_w: int
    in_h: int
    in_w: int
    channels: int
    fours: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int


def _context(shape: FloatDepthwiseShape) -> _Context:
    window, x, y = shape.window, shape.x, shape.y
    return _Context(
        title=f"Depthwise convolution {window.kernel[0]}x{window.kernel[1]}, {x.text} to {y.text}",
        value=clamped("value", shape.clamp),
        out_h=y.h,
        out_w=y.w,
        in_h=x.h,
        in_w=x.w,
        channels=y.c,
        fours=y.c - y.c % CHANNELS,
        kernel_h=window.kernel[0],
        kernel_w=window.kernel[1],
        stride_h=window.stride[0],
        stride_w=window.stride[1],
        padding_h=window.padding[0],
        padding_w=window.padding[1],
    )
