"""The DSP depthwise convolution against an integer reference in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fxpress.backends.c.kernels.dsp import depthwise as depthwise_dsp
from fxpress.backends.c.kernels.dsp.depthwise import DepthwiseShape
from fxpress.backends.c.kernels.dsp.epilogue import Epilogue

KINDS = ("plain", "clamp", "shift")


def depthwise_shape(
    size: tuple[int, int, int],
    kernel: tuple[int, int],
    epilogue: Epilogue,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    zero_point: int = -5,
    bits: int = 8,
) -> DepthwiseShape:
    """A depthwise convolution of a [h, w, c] image with padding (top, left, bottom, right)."""
    height, width, channels = size
    out_h = (height + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
    out_w = (width + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
    return DepthwiseShape(
        height, width, channels, out_h, out_w, kernel, stride, padding[:2], zero_point, epilogue, bits
    )


def depthwise_case(
    kit: Any,
    rng: np.random.Generator,
    name: str,
    shape: DepthwiseShape,
    *,
    fill: tuple[int, int] | None = None,
    in_place: bool = False,
) -> Any:
    """A case of random (or constant) activations and weights."""

    def accumulate(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return sum(elements * w[:, 0, ky, kx] for ky, kx, elements in kit.taps(shape, x))

    return kit.layer_case(
        rng,
        name,
        depthwise_dsp,
        shape,
        x=(shape.in_h, shape.in_w, shape.channels),
        w=(shape.channels, 1, *shape.kernel),
        zero_point=shape.input_zero_point,
        accumulate=accumulate,
        fill=fill,
        in_place=in_place,
    )


@pytest.mark.parametrize(
    ("stride", "bits"),
    [
        ((1, 1), 8),
        ((2, 2), 8),
        ((2, 2), 4),
        ((3, 1), 2),
        *(pytest.param(stride, 8, marks=pytest.mark.slow) for stride in ((1, 2), (3, 1))),
        *(pytest.param((1, 1), bits, marks=pytest.mark.slow) for bits in (4, 2)),
    ],
)
def test_any_kernel_and_padding_is_exact(kit: Any, stride: tuple[int, int], bits: int) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for i, kernel in enumerate([(3, 3), (5, 5), (4, 2), (1, 1), (1, 7), (2, 3)]):
        height, width, channels = (int(rng.integers(low, high)) for low, high in ((7, 14), (7, 14), (1, 6)))
        top, left, bottom, right = (int(rng.integers(0, min(kernel))) for _ in range(4))
        shape = depthwise_shape(
            (height, width, channels),
            kernel,
            kit.epilogue(KINDS[(i + stride[0]) % 3], rng),
            stride=stride,
            padding=(top, left, bottom, right),
            zero_point=int(rng.integers(-128, 128)),
            bits=bits,
        )
        cases.append(depthwise_case(kit, rng, f"depthwise_{i}", shape))
    kit.check(cases)


@pytest.mark.parametrize("bits", [8, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (4, 2))])
def test_weights_that_calls_share_have_an_array_of_their_own(kit: Any, bits: int) -> None:
    rng = np.random.default_rng(4)
    kernels = [(3, 3), (5, 5), (4, 2), (1, 1), (1, 7), (2, 3)]
    shapes = [
        depthwise_shape((9, 7, 5), kernel, kit.epilogue("apart", rng), stride=(1 + i % 2, 1), bits=bits)
        for i, kernel in enumerate(kernels)
    ]
    kit.check([depthwise_case(kit, rng, f"depthwise_{i}", shape) for i, shape in enumerate(shapes)])


def test_time_series_and_images_of_odd_sizes_are_exact(kit: Any) -> None:
    rng = np.random.default_rng(2)
    shapes = [
        depthwise_shape((30, 1, 4), (10, 1), Epilogue(-128)),
        depthwise_shape((15, 1, 4), (15, 1), Epilogue(-128)),
        depthwise_shape((1, 1, 3), (3, 3), Epilogue(7), padding=(1, 1, 1, 1)),
        depthwise_shape((6, 6, 4), (3, 3), Epilogue(0), stride=(2, 2), padding=(0, 0, 1, 1)),
    ]
    kit.check([depthwise_case(kit, rng, f"depthwise_{i}", shape) for i, shape in enumerate(shapes)])


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_extreme_activations_and_weights_are_exact(kit: Any, bits: int) -> None:
    rng = np.random.default_rng(3)
    shape = depthwise_shape((5, 6, 3), (3, 3), Epilogue(3), padding=(1, 1, 1, 1), zero_point=127, bits=bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    extremes = ((-128, low), (127, high), (-128, high), (127, low))
    kit.check(
        [depthwise_case(kit, rng, f"depthwise_{i}", shape, fill=fill) for i, fill in enumerate(extremes)]
    )


def test_the_output_may_take_the_place_of_the_input(kit: Any) -> None:
    rng = np.random.default_rng(4)
    cases = []
    for i, (height, width) in enumerate([(25, 5), (3, 3), (6, 8)]):
        shape = depthwise_shape((height, width, 4), (3, 3), Epilogue(-128), padding=(1, 1, 1, 1))
        assert depthwise_dsp.may_overwrite_input(shape)
        cases.append(depthwise_case(kit, rng, f"depthwise_{i}", shape, in_place=True))
    kit.check(cases)


def test_a_strided_output_may_not_take_the_place_of_the_input() -> None:
    shape = depthwise_shape((6, 6, 4), (3, 3), Epilogue(0), stride=(2, 2), padding=(0, 0, 1, 1))
    assert not depthwise_dsp.may_overwrite_input(shape)


def test_a_residual_and_a_large_kernel_are_refused(kit: Any) -> None:
    rng = np.random.default_rng(5)
    assert not depthwise_dsp.supports(depthwise_shape((9, 9, 4), (3, 3), kit.epilogue("residual", rng)))
    assert not depthwise_dsp.supports(depthwise_shape((30, 30, 4), (9, 9), Epilogue(0)))
