"""The blocked float kernels against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fxpress.backends.c.kernels.blocked import conv as conv_blocked
from fxpress.backends.c.kernels.blocked import depthwise as depthwise_blocked
from fxpress.backends.c.kernels.blocked import linear as linear_blocked
from fxpress.backends.c.kernels.blocked.conv import FloatConvShape
from fxpress.backends.c.kernels.blocked.depthwise import FloatDepthwiseShape
from fxpress.backends.c.kernels.blocked.linear import FloatLinearShape
from fxpress.backends.c.kernels.window import Image, Window

RELU = (0.0, float("inf"))


def tolerance(taps: int) -> float:
    """Two float sums of `taps` products of order 1 in any order of rounding: taps * epsilon on either side."""
    return 4 * (taps + 2) * float(np.finfo(np.float32).eps)


def windows(
    size: tuple[int, int, int], out_c: int, kernel: tuple[int, int], **attributes: tuple[int, ...]
) -> tuple[Image, Image, Window]:
    """Images and window of a convolution with padding (top, left, bottom, right)."""
    height, width, channels = size
    stride, dilation = attributes.get("stride", (1, 1)), attributes.get("dilation", (1, 1))
    padding = attributes.get("padding", (0, 0, 0, 0))
    sizes = [
        (n + padding[i] + padding[i + 2] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
        for i, n in enumerate((height, width))
    ]
    window = Window(kernel, (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]))
    return Image(1, height, width, channels), Image(1, sizes[0], sizes[1], out_c), window


def convolve(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, y: Image, window: Window, groups: int
) -> np.ndarray:
    """torch's convolution of a [h, w, c] image, zeros wherever a window reaches."""
    image = functional.pad(
        torch.tensor(x).permute(2, 0, 1)[None], (window.padding[1], 64, window.padding[0], 64)
    )
    bias = None if b is None else torch.tensor(b)
    full = functional.conv2d(image, torch.tensor(w), bias, window.stride, 0, window.dilation, groups)
    return full[0, :, : y.h, : y.w].permute(1, 2, 0).numpy()


def conv_case(
    kit: Any,
    rng: np.random.Generator,
    name: str,
    shape: FloatConvShape,
    *,
    bias: bool = True,
    in_place: bool = False,
) -> Any:
    """A random convolution."""
    x = rng.uniform(-1, 1, (shape.x.h, shape.x.w, shape.x.c)).astype(np.float32)
    w = rng.uniform(-1, 1, (shape.y.c, shape.x.c, *shape.window.kernel)).astype(np.float32)
    b = rng.uniform(-1, 1, shape.y.c).astype(np.float32) if bias else None
    y = convolve(x, w, b, shape.y, shape.window, 1)
    r = rng.uniform(-1, 1, y.shape).astype(np.float32) if shape.residual else None
    y = y if r is None else y + r
    y = y if shape.clamp is None else np.clip(y, *shape.clamp)
    return kit.case(
        name=name,
        source=conv_blocked.function(shape).render(name),
        inputs=(x,) if r is None else (x, r),
        expected=y.astype(np.float32),
        constants=(conv_blocked.pack(shape, w, b),),
        scratch_bytes=conv_blocked.scratch_bytes(shape),
        in_place=in_place,
        tolerance=tolerance(w[0].size),
    )


def test_a_convolution_of_any_form_equals_torch(kit: Any) -> None:
    rng = np.random.default_rng(1)
    forms = [
        (windows((7, 5, 3), 6, (3, 3), padding=(1, 1, 1, 1)), None, False),
        (windows((8, 8, 4), 5, (3, 3), stride=(2, 2), padding=(0, 0, 1, 1)), RELU, False),
        (windows((5, 5, 7), 9, (1, 1)), None, True),
        (windows((9, 8, 2), 3, (3, 2), dilation=(2, 2), padding=(2, 1, 2, 1)), (0.0, 6.0), False),
        (windows((1, 3, 1), 1, (1, 1)), None, False),
        (windows((1, 1, 20), 10, (1, 1)), None, False),
        (windows((9, 10, 1), 7, (10, 4), stride=(2, 2), padding=(4, 1, 5, 1)), RELU, True),
    ]
    shapes = [FloatConvShape(*sizes, clamp, residual) for sizes, clamp, residual in forms]
    kit.check([conv_case(kit, rng, f"conv_{i}", shape, bias=i != 1) for i, shape in enumerate(shapes)])


def test_the_output_may_take_the_place_of_the_residual(kit: Any) -> None:
    rng = np.random.default_rng(2)
    shapes = [
        FloatConvShape(*windows((5, 5, 8), 8, (1, 1)), RELU, residual=True),
        FloatConvShape(*windows((3, 3, 5), 6, (3, 3), padding=(1, 1, 1, 1)), None, residual=True),
    ]
    kit.check([conv_case(kit, rng, f"conv_{i}", shape, in_place=True) for i, shape in enumerate(shapes)])


def test_a_depthwise_convolution_equals_torch(kit: Any) -> None:
    rng = np.random.default_rng(3)
    forms = [
        (windows((7, 5, 6), 6, (3, 3), padding=(1, 1, 1, 1)), None, True),
        (windows((8, 8, 4), 4, (3, 3), stride=(2, 2), padding=(0, 0, 1, 1)), RELU, True),
        (windows((12, 1, 5), 5, (5, 1)), None, False),
    ]
    cases = []
    for i, (sizes, clamp, bias) in enumerate(forms):
        shape = FloatDepthwiseShape(*sizes, clamp)
        x = rng.uniform(-1, 1, (shape.x.h, shape.x.w, shape.x.c)).astype(np.float32)
        w = rng.uniform(-1, 1, (shape.x.c, 1, *shape.window.kernel)).astype(np.float32)
        b = rng.uniform(-1, 1, shape.x.c).astype(np.float32) if bias else None
        y = convolve(x, w, b, shape.y, shape.window, shape.x.c)
        name = f"depthwise_{i}"
        cases.append(
            kit.case(
                name=name,
                source=depthwise_blocked.function(shape).render(name),
                inputs=(x,),
                expected=(y if clamp is None else np.clip(y, *clamp)).astype(np.float32),
                constants=(depthwise_blocked.pack(shape, w, b),),
                tolerance=tolerance(w[0].size),
            )
        )
    kit.check(cases)


def test_a_linear_layer_equals_torch(kit: Any) -> None:
    rng = np.random.default_rng(4)
    shapes = [
        FloatLinearShape(13, 5, None, residual=False),
        FloatLinearShape(640, 16, RELU, residual=False),
        FloatLinearShape(1, 9, None, residual=True),
    ]
    cases = []
    for i, shape in enumerate(shapes):
        x = rng.uniform(-1, 1, shape.inputs).astype(np.float32)
        w = rng.uniform(-1, 1, (shape.outputs, shape.inputs)).astype(np.float32)
        b, r = (rng.uniform(-1, 1, shape.outputs).astype(np.float32) for _ in range(2))
        y = functional.linear(*(torch.tensor(t) for t in (x, w, b))).numpy() + (r if shape.residual else 0)
        name = f"linear_{i}"
        cases.append(
            kit.case(
                name=name,
                source=linear_blocked.function(shape).render(name),
                inputs=(x, r) if shape.residual else (x,),
                expected=(y if shape.clamp is None else np.clip(y, *shape.clamp)).astype(np.float32),
                constants=(linear_blocked.pack(shape, w, b),),
                tolerance=tolerance(shape.inputs),
            )
        )
    kit.check(cases)
