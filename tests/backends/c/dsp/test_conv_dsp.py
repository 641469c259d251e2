"""The DSP convolution against an integer reference in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fxpress.backends.c.kernels.dsp import conv as conv_dsp
from fxpress.backends.c.kernels.dsp import winograd as winograd_dsp
from fxpress.backends.c.kernels.dsp.conv import ConvShape
from fxpress.backends.c.kernels.dsp.epilogue import Epilogue

SLOW = pytest.mark.slow
KINDS = ("plain", "clamp", "shift", "residual")
APART = ("apart", "apart residual")


def conv_shape(
    size: tuple[int, int, int],
    out_c: int,
    kernel: tuple[int, int],
    epilogue: Epilogue,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    zero_point: int = -5,
    bits: int = 8,
) -> ConvShape:
    """A convolution of a [h, w, c] image with padding (top, left, bottom, right)."""
    height, width, channels = size
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    out_h = (height + padding[0] + padding[2] - extent[0]) // stride[0] + 1
    out_w = (width + padding[1] + padding[3] - extent[1]) // stride[1] + 1
    return ConvShape(
        height,
        width,
        channels,
        out_h,
        out_w,
        out_c,
        kernel,
        stride,
        padding[:2],
        dilation,
        zero_point,
        epilogue,
        bits,
    )


def conv_case(
    kit: Any,
    rng: np.random.Generator,
    name: str,
    shape: ConvShape,
    *,
    fill: tuple[int, int] | None = None,
    in_place: bool = False,
    kernel: Any = conv_dsp,
) -> Any:
    """A case of random (or constant) activations and weights, for a kernel of dense convolutions."""

    def accumulate(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        met = kit.taps(shape, x, dilation=shape.dilation)
        return sum(elements @ w[:, :, ky, kx].T for ky, kx, elements in met)

    return kit.layer_case(
        rng,
        name,
        kernel,
        shape,
        x=(shape.in_h, shape.in_w, shape.in_c),
        w=(shape.out_c, shape.in_c, *shape.kernel),
        zero_point=shape.input_zero_point,
        accumulate=accumulate,
        fill=fill,
        in_place=in_place,
    )


def shapes(epilogue: Epilogue, *, bits: int = 8) -> list[ConvShape]:
    """The first layers, pointwise layers and odd sizes that networks have."""
    sizes = [
        conv_shape((7, 5, 8), 6, (3, 3), epilogue, padding=(1, 1, 1, 1)),
        conv_shape((6, 6, 3), 5, (3, 3), epilogue, stride=(2, 2), padding=(0, 0, 1, 1)),
        conv_shape((9, 10, 1), 7, (10, 4), epilogue, stride=(2, 2), padding=(4, 1, 5, 1)),
        conv_shape((5, 5, 13), 8, (1, 1), epilogue),
        conv_shape((4, 4, 64), 10, (1, 1), epilogue, stride=(2, 2)),
        conv_shape((8, 7, 5), 3, (3, 3), epilogue, padding=(2, 2, 2, 2), dilation=(2, 2)),
        conv_shape((1, 1, 40), 4, (1, 1), epilogue),
        conv_shape((1, 12, 1), 3, (1, 5), epilogue, padding=(0, 2, 0, 2)),
        conv_shape((1, 2, 3), 1, (3, 3), epilogue, padding=(1, 1, 1, 1), zero_point=-128),
    ]
    return [replace(shape, weight_bits=bits) for shape in sizes]


@pytest.mark.parametrize(
    ("first", "bits"),
    [(0, 8), (2, 4), (1, 2), *(pytest.param(*pair, marks=SLOW) for pair in ((1, 8), (3, 4), (0, 2)))],
)
def test_a_convolution_equals_its_reference_with_every_epilogue(kit: Any, first: int, bits: int) -> None:
    rng = np.random.default_rng(first)
    epilogues = [kit.epilogue(kind, rng) for kind in KINDS]
    taken = [shapes(epilogues[(i + first) % 4], bits=bits)[i] for i in range(len(shapes(epilogues[0])))]
    kit.check([conv_case(kit, rng, f"conv_{i}", shape) for i, shape in enumerate(taken)])


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("apart", 4),
        ("apart residual", 8),
        *(pytest.param("apart", bits, marks=SLOW) for bits in (8, 2)),
        *(pytest.param("apart residual", bits, marks=SLOW) for bits in (4, 2)),
    ],
)
def test_weights_that_calls_share_have_an_array_of_their_own(kit: Any, kind: str, bits: int) -> None:
    rng = np.random.default_rng(5)
    taken = shapes(kit.epilogue(kind, rng), bits=bits)
    kit.check([conv_case(kit, rng, f"conv_{i}", shape) for i, shape in enumerate(taken)])


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_extreme_activations_and_weights_are_exact(kit: Any, bits: int) -> None:
    rng = np.random.default_rng(2)
    shape = conv_shape((5, 5, 16), 4, (3, 3), Epilogue(3), padding=(1, 1, 1, 1), zero_point=127, bits=bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    extremes = ((-128, low), (127, high), (-128, high), (127, low))
    kit.check([conv_case(kit, rng, f"conv_{i}", shape, fill=fill) for i, fill in enumerate(extremes)])


def test_the_output_may_take_the_place_of_the_residual(kit: Any) -> None:
    rng = np.random.default_rng(3)
    epilogue = kit.epilogue("residual", rng)
    images = [
        conv_shape((4, width, 16), out_c, (3, 3), epilogue, padding=(1, 1, 1, 1))
        for width, out_c in ((3, 4), (4, 5), (5, 6))
    ]
    kit.check([conv_case(kit, rng, f"conv_{i}", shape, in_place=True) for i, shape in enumerate(images)])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in (1, 2, 3))])
def test_any_kernel_stride_padding_and_dilation_is_exact(kit: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = []
    while len(cases) < 16:
        kernel, dilation, stride = (tuple(rng.integers(1, high, 2).tolist()) for high in (6, 3, 4))
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple(int(rng.integers(0, extent[i % 2])) for i in range(4))
        height, width = (int(rng.integers(extent[i], extent[i] + 9)) for i in range(2))
        size = (height, width, int(rng.integers(1, 24)))
        shape = conv_shape(
            size,
            int(rng.integers(1, 12)),
            kernel,
            kit.epilogue(KINDS[len(cases) % 4], rng),
            stride=stride,
            padding=padding,
            dilation=dilation,
            zero_point=int(rng.integers(-128, 128)),
            bits=(8, 4, 2)[len(cases) % 3],
        )
        if conv_dsp.supports(shape):
            cases.append(conv_case(kit, rng, f"conv_{len(cases)}", shape))
    kit.check(cases)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        *((kind, 8) for kind in ("plain", "apart residual")),
        *(pytest.param(kind, 8, marks=SLOW) for kind in ("clamp", "shift", "residual", "apart")),
        ("residual", 4),
        ("shift", 2),
    ],
)
def test_winograd_equals_the_reference_bit_for_bit(kit: Any, kind: str, bits: int) -> None:
    rng = np.random.default_rng(4)
    epilogue = kit.epilogue(kind, rng)
    around = (1, 1, 1, 1)
    taken = [
        conv_shape((4, 6, 4), 2, (3, 3), epilogue, padding=around),
        conv_shape((8, 8, 20), 4, (3, 3), epilogue, padding=around, zero_point=127),
        conv_shape((2, 2, 12), 6, (3, 3), epilogue, padding=around),
        conv_shape((8, 6, 8), 4, (3, 3), epilogue),
    ]
    cases = [
        conv_case(
            kit,
            rng,
            f"conv_{i}",
            replace(shape, weight_bits=bits),
            in_place=kind == "residual",
            kernel=winograd_dsp,
        )
        for i, shape in enumerate(taken)
    ]
    kit.check(cases)


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_winograd_is_exact_at_the_extremes(kit: Any, bits: int) -> None:
    rng = np.random.default_rng(5)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    around = (1, 1, 1, 1)
    shape = conv_shape((4, 4, 256), 2, (3, 3), Epilogue(3), padding=around, zero_point=127, bits=bits)
    extremes = ((-128, low), (127, high), (-128, high), (127, low))
    cases = [
        conv_case(kit, rng, f"conv_{i}", shape, fill=fill, kernel=winograd_dsp)
        for i, fill in enumerate(extremes)
    ]
    kit.check(cases)


@pytest.mark.parametrize(
    "attributes", [{"stride": (2, 2)}, {"dilation": (2, 2)}, {"padding": (1, 0, 0, 0)}], ids=str
)
def test_winograd_refuses_other_strides_dilations_and_broken_tiles(attributes: dict[str, Any]) -> None:
    assert not winograd_dsp.supports(conv_shape((10, 10, 8), 4, (3, 3), Epilogue(0), **attributes))


def test_winograd_transforms_no_weights_of_fewer_bits_that_calls_share() -> None:
    shape = conv_shape((10, 10, 8), 4, (3, 3), Epilogue(0, apart=True), padding=(1, 1, 1, 1))
    assert winograd_dsp.supports(shape)
    assert not winograd_dsp.supports(replace(shape, weight_bits=4))


def test_a_window_of_too_many_single_bytes_is_refused() -> None:
    assert not conv_dsp.supports(conv_shape((30, 30, 3), 4, (7, 7), Epilogue(0), dilation=(2, 2)))
