"""Integer pooling on Cortex-M with DSP: four channels of a pixel at a time, as the four bytes of a word."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .....ir import DType
from .....ir.arithmetic import Requant
from .....ir.ops.pool import AdaptiveAvgPool, AvgPool, MaxPool
from .....ir.ops.reduce import Mean
from ..base import Call, Function, Offer, Offers, Site, Work, kernel, template
from ..layouts import image_layouts
from ..rounding import saturated
from ..window import MAX_SPATIAL, Image, Window, followed, image, window
from .epilogue import HEADERS

_LANES = 4
_MAX_TAPS = 256  # number of elements of -128 whose sum fits a lane of 16 bits


@dataclass(frozen=True)
class PoolShape:
    """A pool of one image; `mean` is the conversion of a sum, None for the largest element."""

    x: Image
    y: Image
    window: Window
    mean: MeanForm | None

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return self.window.kernel[0] * self.window.kernel[1]


@dataclass(frozen=True)
class MeanForm:
    """requant(sum - offset, multiplier, shift) + zero_point, saturated to [low, high]."""

    offset: int
    requant: Requant
    zero_point: int
    low: int
    high: int

    @property
    def value(self) -> str:
        """The C expression of a mean from `sum`."""
        centred = f"sum - ({self.offset})"
        shifted = f"fxp_shift_left({centred}, {self.requant.shift})" if self.requant.shift else centred
        scaled = f"fxp_scale({shifted}, {self.requant.multiplier}, {self.zero_point})"
        return saturated(scaled, self.low, self.high)


def supports(shape: PoolShape) -> bool:
    """True if channels fill words, windows are not dilated, and sums fit their lanes and stay inside the image."""
    whole = shape.x.c % _LANES == 0 and shape.x.n == 1 and shape.window.dilation == (1, 1)
    if shape.mean is None:
        return whole
    return whole and shape.taps <= _MAX_TAPS and not shape.window.reaches_out(shape.x, shape.y)


def estimate(shape: PoolShape) -> Work:
    """The work of the layer, fitted to exact counts."""
    words = shape.y.h * shape.y.w * shape.y.c / _LANES
    per_tap, per_word = (5, 25) if shape.mean is not None else (6, 20)
    rows = 1 if shape.window.kernel[1] == shape.x.w else shape.window.kernel[0]
    return Work(words * per_tap * shape.taps, 6 * words * rows, words * per_word, 140)


def function(shape: PoolShape) -> Function:
    """The C function `name(x, y)`."""
    path = "dsp/max_pool.c.j2" if shape.mean is None else "dsp/avg_pool.c.j2"
    variant = "padded" if shape.window.reaches_out(shape.x, shape.y) else ""
    return template(path, _context(shape), "const int8_t *x, int8_t *y", headers=HEADERS, variant=variant)


@kernel("max_pool")
def maximum(site: Site) -> Offers:
    """The largest element of each window."""
    op = site.node.op
    assert isinstance(op, MaxPool)
    if len(op.kernel) > MAX_SPATIAL:
        return "the DSP pools support images"
    return _offer(site, window(op.kernel, op.stride, op.padding, op.dilation), None)


@kernel("avg_pool", "adaptive_avg_pool")
def average(site: Site) -> Offers:
    """The mean of each window, if windows have equal sizes."""
    op = site.node.op
    assert isinstance(op, AvgPool | AdaptiveAvgPool)
    plain = op if isinstance(op, AvgPool) else op.as_avg_pool(site.type("x"))
    if plain is None or len(plain.kernel) > MAX_SPATIAL or not site.is_integer:
        return "the DSP pools support images of int8, and windows of equal sizes"
    seen = window(plain.kernel, plain.stride, plain.padding)
    counts = set(plain.counts(site.type("x").shape).flatten().tolist())
    if len(counts) > 1:
        return "the DSP pools support windows of equal sizes"
    qx, qy = site.quantization("x"), site.output_quantization
    taps = seen.kernel[0] * seen.kernel[1]
    factor = Requant.of(qx.scale[0] / qy.scale[0] / counts.pop())
    return _offer(site, seen, MeanForm(taps * qx.zero_point[0], factor, qy.zero_point[0], qy.qmin, qy.qmax))


@kernel("mean")
def spatial_mean(site: Site) -> Offers:
    """The mean over all spatial dimensions."""
    op, x = site.node.op, site.type("x")
    assert isinstance(op, Mean)
    if not site.is_integer or x.rank - 2 not in (1, MAX_SPATIAL) or set(op.axes) != set(range(2, x.rank)):
        return "the DSP pools support means of int8 over all spatial dimensions"
    factor, zero = op.fixed_point(x, site.output)
    whole = image(x.shape)
    qy = site.output_quantization
    mean = MeanForm(whole.h * whole.w * zero, factor, qy.zero_point[0], qy.qmin, qy.qmax)
    return _offer(site, Window((whole.h, whole.w), (1, 1), (0, 0)), mean)


def _offer(site: Site, seen: Window, mean: MeanForm | None) -> Offers:
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    if site.type("x").dtype is not DType.I8 or site.output.dtype is not DType.I8:
        return "the DSP pools compute on int8"
    x = image(site.type("x").shape)
    y = image(site.output.shape) if site.output.rank == site.type("x").rank else Image(x.n, 1, 1, x.c)
    shape = PoolShape(x, y, seen, mean)
    if not supports(shape):
        return "the DSP pools do not support these channels, windows or padding"
    layouts = image_layouts(site)
    made = Offer.of_calls(
        f"{site.node.op.name}_dsp", layouts[:1], layouts[1:], estimate(shape), Call(function(shape), (0,))
    )
    return replace(made, follows=followed(site, seen, x, y))


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
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    pitch: int
    row_step: int
    column_step: int


def _context(shape: PoolShape) -> _Context:
    seen, x, y = shape.window, shape.x, shape.y
    kernel_h, kernel_w = seen.kernel
    if shape.mean is not None and kernel_w == x.w:  # rows of the image are consecutive
        kernel_h, kernel_w = 1, shape.taps
    kind = "Largest" if shape.mean is None else "Mean"
    return _Context(
        title=f"{kind} of {seen.kernel[0]}x{seen.kernel[1]} windows, {x.text} to {y.text}",
        value="" if shape.mean is None else shape.mean.value,
        out_h=y.h,
        out_w=y.w,
        in_h=x.h,
        in_w=x.w,
        channels=x.c,
        kernel_h=kernel_h,
        kernel_w=kernel_w,
        stride_h=seen.stride[0],
        stride_w=seen.stride[1],
        padding_h=seen.padding[0],
        padding_w=seen.padding[1],
        pitch=x.w * x.c,
        row_step=seen.stride[0] * x.w * x.c,
        column_step=seen.stride[1] * x.c,
    )
