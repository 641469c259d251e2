"""The DSP pools and sums against integer references in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from fxpress.backends.c.kernels.dsp import pool as pool_dsp
from fxpress.backends.c.kernels.dsp import sum as sum_dsp
from fxpress.backends.c.kernels.dsp.pool import MeanForm, PoolShape
from fxpress.backends.c.kernels.dsp.sum import SumShape
from fxpress.backends.c.kernels.window import Image, Window
from fxpress.ir.arithmetic import Requant, Rescale


def pool_shape(
    size: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    mean: MeanForm | None = None,
    padding: tuple[int, int] = (0, 0),
) -> PoolShape:
    """A pool with as much padding after as before."""
    height, width, channels = size
    out_h = (height + 2 * padding[0] - kernel[0]) // stride[0] + 1
    out_w = (width + 2 * padding[1] - kernel[1]) // stride[1] + 1
    images = Image(1, height, width, channels), Image(1, out_h, out_w, channels)
    return PoolShape(*images, Window(kernel, stride, padding), mean)


def pool_case(
    kit: Any, rng: np.random.Generator, name: str, shape: PoolShape, *, fill: int | None = None
) -> Any:
    """A case of random (or constant) elements."""
    x = rng.integers(-128, 128, (shape.x.h, shape.x.w, shape.x.c)).astype(np.int8)
    x = x if fill is None else np.full_like(x, fill)
    y = np.zeros((shape.y.h, shape.y.w, shape.y.c), np.int64)
    for oy in range(shape.y.h):
        for ox in range(shape.y.w):
            top = oy * shape.window.stride[0] - shape.window.padding[0]
            left = ox * shape.window.stride[1] - shape.window.padding[1]
            taps = x[max(top, 0) : top + shape.window.kernel[0], max(left, 0) : left + shape.window.kernel[1]]
            if shape.mean is None:
                y[oy, ox] = taps.max((0, 1))
                continue
            acc = (taps.astype(np.int64).sum((0, 1)) - shape.mean.offset) << shape.mean.requant.shift
            scaled = (acc * shape.mean.requant.multiplier + 2**31) >> 32
            y[oy, ox] = np.clip(scaled + shape.mean.zero_point, shape.mean.low, shape.mean.high)
    source = pool_dsp.function(shape).render(name)
    return kit.case(name=name, source=source, inputs=(x,), expected=y.astype(np.int8))


def test_the_largest_of_clipped_windows_is_exact(kit: Any) -> None:
    rng = np.random.default_rng(1)
    shapes = [
        pool_shape((8, 6, 4), (2, 2), (2, 2)),
        pool_shape((7, 7, 12), (3, 3), (2, 2), padding=(1, 1)),
        pool_shape((1, 9, 8), (1, 3), (1, 1)),
    ]
    kit.check([pool_case(kit, rng, f"pool_{i}", shape) for i, shape in enumerate(shapes)])


def test_means_are_exact_and_full_lanes_do_not_overflow(kit: Any) -> None:
    rng = np.random.default_rng(2)
    forms = [
        (
            pool_shape((25, 5, 8), (25, 5), (1, 1), MeanForm(-5 * 125, Requant.of(1.3 / 125), 3, -128, 127)),
            None,
        ),
        (pool_shape((6, 9, 4), (2, 3), (2, 3), MeanForm(24, Requant.of(0.9), -7, -7, 100)), None),
        (pool_shape((16, 16, 4), (16, 16), (1, 1), MeanForm(0, Requant.of(1 / 256), 0, -128, 127)), -128),
        (pool_shape((16, 16, 4), (16, 16), (1, 1), MeanForm(0, Requant.of(1 / 256), 0, -128, 127)), 127),
    ]
    kit.check([pool_case(kit, rng, f"pool_{i}", shape, fill=fill) for i, (shape, fill) in enumerate(forms)])


def test_pools_that_words_cannot_hold_are_refused() -> None:
    mean = MeanForm(0, Requant.of(0.01), 0, -128, 127)
    assert not pool_dsp.supports(pool_shape((8, 6, 3), (2, 2), (2, 2)))
    assert not pool_dsp.supports(pool_shape((17, 16, 4), (17, 16), (1, 1), mean))
    assert not pool_dsp.supports(pool_shape((7, 7, 4), (3, 3), (2, 2), mean, padding=(1, 1)))


def test_sums_and_differences_are_exact_and_may_overwrite_an_operand(kit: Any) -> None:
    rng = np.random.default_rng(3)
    shapes = [
        SumShape(64, Rescale.of((0.6, 0.7), (3, -4), 5)),
        SumShape(63, Rescale.of((1.4, -0.2), (-128, 127), -128)),
        SumShape(3, Rescale.of((20000.0, 3.0), (0, 0), 1)),
        SumShape(30, Rescale.of((0.9, 0.9), (0, 0), 0), low=0, high=90),
    ]
    cases = []
    for i, shape in enumerate(shapes):
        a, b = (rng.integers(-128, 128, shape.elements).astype(np.int8) for _ in range(2))
        ma, mb = shape.rescale.multipliers
        total = (
            a.astype(np.int64) * ma + b.astype(np.int64) * mb + shape.rescale.offset
        ) >> shape.rescale.shift
        cases.append(
            kit.case(
                name=f"sum_{i}",
                source=sum_dsp.function(shape).render(f"sum_{i}"),
                inputs=(a, b),
                expected=np.clip(total, shape.low, shape.high).astype(np.int8),
                in_place=i == 0,
            )
        )
    kit.check(cases)
