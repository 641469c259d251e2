"""Instructions per multiply-accumulate on a Cortex-M4, of layers of the MLPerf Tiny networks; counts are exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fxpress.backends.c.kernels.base import Work
from fxpress.backends.c.kernels.dsp import conv as conv_dsp
from fxpress.backends.c.kernels.dsp import depthwise as depthwise_dsp
from fxpress.backends.c.kernels.dsp import linear as linear_dsp
from fxpress.backends.c.kernels.dsp import winograd as winograd_dsp
from fxpress.backends.c.kernels.dsp.conv import ConvShape
from fxpress.backends.c.kernels.dsp.depthwise import DepthwiseShape
from fxpress.backends.c.kernels.dsp.epilogue import Epilogue
from fxpress.backends.c.kernels.dsp.linear import LinearShape

PLAIN = Epilogue(-128)


def conv(
    size: tuple[int, int, int], out: tuple[int, int, int], kernel: tuple[int, int], **kwargs: Any
) -> ConvShape:
    """A dense convolution from [h, w, c] to [h, w, c]."""
    stride, padding = kwargs.get("stride", (1, 1)), kwargs.get("padding", (0, 0))
    return ConvShape(*size, *out, kernel, stride, padding, (1, 1), -128, PLAIN)


def depthwise(
    size: tuple[int, int, int], out: tuple[int, int], stride: tuple[int, int], top: int
) -> DepthwiseShape:
    """A 3x3 depthwise convolution."""
    return DepthwiseShape(*size, *out, (3, 3), stride, (top, top), -128, PLAIN)


LAYERS = [
    ("rgb", conv_dsp, conv((32, 32, 3), (32, 32, 16), (3, 3), padding=(1, 1)), 1.38),
    ("k3_64", conv_dsp, conv((8, 8, 64), (8, 8, 64), (3, 3), padding=(1, 1)), 0.90),
    ("winograd_16", winograd_dsp, conv((16, 16, 16), (16, 16, 16), (3, 3), padding=(1, 1)), 0.58),
    ("winograd_64", winograd_dsp, conv((8, 8, 64), (8, 8, 64), (3, 3), padding=(1, 1)), 0.43),
    ("speech", conv_dsp, conv((49, 10, 1), (25, 5, 64), (10, 4), stride=(2, 2), padding=(4, 1)), 1.16),
    ("pointwise_8_16", conv_dsp, conv((24, 24, 8), (24, 24, 16), (1, 1)), 1.80),
    ("pointwise_64", conv_dsp, conv((25, 5, 64), (25, 5, 64), (1, 1)), 1.00),
    ("pointwise_256", conv_dsp, conv((3, 3, 256), (3, 3, 256), (1, 1)), 0.87),
    ("depthwise", depthwise_dsp, depthwise((25, 5, 64), (25, 5), (1, 1), 1), 1.85),
    ("depthwise_2", depthwise_dsp, depthwise((24, 24, 16), (12, 12), (2, 2), 0), 2.95),
    ("linear", linear_dsp, LinearShape(640, 128, PLAIN), 1.19),
]
# The most that weights of fewer bits may cost, in instructions of the same kernel on int8.
LOW_BITS = [
    ("pointwise_64", conv_dsp, conv((8, 8, 64), (8, 8, 64), (1, 1)), {4: 1.18, 2: 1.20}),
    ("k3_16", conv_dsp, conv((16, 16, 16), (16, 16, 16), (3, 3), padding=(1, 1)), {4: 1.18, 2: 1.20}),
    ("rgb", conv_dsp, conv((16, 16, 3), (16, 16, 16), (3, 3), padding=(1, 1)), {4: 1.18, 2: 1.20}),
    (
        "winograd_16",
        winograd_dsp,
        conv((16, 16, 16), (16, 16, 16), (3, 3), padding=(1, 1)),
        {4: 1.06, 2: 1.06},
    ),
    ("winograd_32", winograd_dsp, conv((16, 16, 32), (16, 16, 32), (3, 3), padding=(1, 1)), {4: 1.6, 2: 1.6}),
    ("depthwise", depthwise_dsp, depthwise((25, 5, 64), (25, 5), (1, 1), 1), {4: 1.05, 2: 1.05}),
    ("linear", linear_dsp, LinearShape(640, 128, PLAIN), {4: 1.24, 2: 1.24}),
]


def case(kit: Any, name: str, kernel: Any, shape: Any) -> Any:
    """A case whose result does not matter."""
    rng = np.random.default_rng(0)
    inputs, channels, taps = _sizes(shape)
    end = 1 << (shape.weight_bits - 1)
    weights = rng.integers(-end, end, (channels, *taps)).astype(np.int8)
    zeros = np.zeros(channels, np.int64)
    constants = kernel.pack(shape, weights, zeros, np.full(channels, 2**22), zeros)
    return kit.case(
        name=name,
        source=kernel.function(shape).render(name),
        inputs=(rng.integers(-128, 128, inputs).astype(np.int8),),
        expected=np.zeros(shape.macs // weights[0].size, np.int8),
        constants=constants,
        scratch_bytes=kernel.scratch_bytes(shape),
    )


def _sizes(shape: Any) -> tuple[int, int, tuple[int, ...]]:
    match shape:
        case ConvShape():
            return shape.in_h * shape.in_w * shape.in_c, shape.out_c, (shape.in_c, *shape.kernel)
        case DepthwiseShape():
            return shape.in_h * shape.in_w * shape.channels, shape.channels, (1, *shape.kernel)
        case _:
            return shape.inputs, shape.outputs, (shape.inputs,)


def whole(work: Work) -> float:
    """Instructions of a Cortex-M4 with float unit, in which kernels state their work."""
    return work.products + work.loops + work.results


@pytest.fixture
def counts(kit: Any) -> list[int]:
    """Instructions of every layer."""
    found: list[int] = kit.instructions([case(kit, name, kernel, shape) for name, kernel, shape, _ in LAYERS])
    return found


def test_instructions_stay_below_their_ceilings_and_near_their_estimates(counts: list[int]) -> None:
    for (name, kernel, shape, ceiling), count in zip(LAYERS, counts, strict=True):
        print(f"{name:16} {count:9,} instructions, {count / shape.macs:.3f} per multiply-accumulate")
        assert count / shape.macs <= ceiling, name
        assert 0.8 < whole(kernel.estimate(shape)) / count < 1.25, name


def test_weights_of_fewer_bits_take_their_share_of_flash_and_few_instructions_more(kit: Any) -> None:
    cases, shapes = [], []
    for name, kernel, shape, _ in LOW_BITS:
        for bits in (8, 4, 2):
            shapes.append(replace(shape, weight_bits=bits))
            cases.append(case(kit, f"{name}_{bits}", kernel, shapes[-1]))
    found = kit.instructions(cases)
    for i, (name, kernel, shape, most) in enumerate(LOW_BITS):
        counts, own = found[3 * i : 3 * i + 3], cases[3 * i : 3 * i + 3]
        channels = _sizes(shape)[1]
        weight_bytes = [case.constants[0].nbytes - 8 * channels for case in own]
        print(f"{name:16} {counts} instructions, {weight_bytes} bytes of weights")
        for bits, count, nbytes in zip((4, 2), counts[1:], weight_bytes[1:], strict=True):
            assert count / counts[0] <= most[bits], (name, bits)
            assert nbytes <= weight_bytes[0] * bits // 8 + 4 * channels, (name, bits)
        for count, made in zip(counts, shapes[3 * i : 3 * i + 3], strict=True):
            assert 0.95 < whole(kernel.estimate(made)) / count < 1.05, made
