"""The DSP kernels of accumulating operators, offered for nodes of int8 and int16 on machines with the extension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Protocol, TypeVar

import numpy as np

from .....ir import DType
from .....ir.ops.conv import Conv
from .....ir.ops.linear import Linear
from ...plan.layout import Layout
from ...write.literal import c_type
from ..base import Function, Offer, Offers, Site, Work, form, kernel, layer_offer
from ..costs import CoreCosts
from ..layouts import image_layouts, row_layouts
from ..low_bits import BYTE
from ..rounding import folded_bias, layer_fixed_point
from ..wide_sums import scaled_sums_fit, sums_fit
from ..window import MAX_SPATIAL, POINT, Image, Window, followed, image, window
from . import conv as conv_dsp
from . import depthwise as depthwise_dsp
from . import linear as linear_dsp
from . import winograd as winograd_dsp
from .conv import ConvShape
from .depthwise import DepthwiseShape
from .epilogue import Elements, Epilogue
from .gemm import Int32Array, IntArray
from .linear import LinearShape

Shape_contra = TypeVar("Shape_contra", bound=ConvShape | LinearShape | DepthwiseShape, contravariant=True)

_TIME_PER_BYTE = 100  # cycles that a byte of flash must save in one run, if speed can be traded for flash


@kernel("conv")
def convolution(site: Site) -> Offers:
    """A convolution of one group, or of as many groups as channels."""
    op = site.node.op
    assert isinstance(op, Conv)
    if refusal := _refusal(site):
        return refusal
    x, y = site.type("x").shape, site.output.shape
    if op.rank > MAX_SPATIAL or x[0] != 1:
        return "the DSP kernels support one image"
    if op.groups == 1:
        return _dense(site, op)
    if op.groups == x[1] == y[1]:
        return _depthwise(site, op)
    return f"the DSP kernels support 1 or {x[1]} groups"


@kernel("linear")
def linear(site: Site) -> Offers:
    """A linear layer: one row directly, several rows as a pointwise convolution or, without memory, row by row."""
    op = site.node.op
    assert isinstance(op, Linear)
    if refusal := _refusal(site):
        return refusal
    outputs, inputs = site.type("weight").shape
    rows = site.output.numel // outputs
    layouts = row_layouts(site)
    if rows == 1:
        return _rows(site, 1, inputs, layouts) or "the rows are too long for the DSP kernel"
    pixels = Image(1, 1, rows, inputs), Image(1, 1, rows, outputs)
    pointwise = _conv_shape(site, *pixels, POINT)
    follows = followed(site, POINT, *pixels, is_gathered=True)
    together = _offer(site, "conv_dsp", conv_dsp, pointwise, layouts, follows=follows)
    return (together, *_rows(site, rows, inputs, layouts))


def _rows(site: Site, rows: int, inputs: int, layouts: tuple[Layout, Layout]) -> tuple[Offer, ...]:
    """The offers of the linear kernel, row by row: of one row with its inputs expanded, and without working memory."""
    outputs = site.type("weight").shape[0]
    shape = LinearShape(inputs, outputs, _epilogue(site), site.quantization("weight").bits, rows)
    if not linear_dsp.supports(shape):
        return ()
    shapes = (*[shape] * (rows == 1), *linear_dsp.of_no_memory(shape))
    pixels = Image(1, 1, rows, inputs), Image(1, 1, rows, outputs)
    follows = followed(site, POINT, *pixels) if rows > 1 else {}
    return tuple(_offer(site, "linear_dsp", linear_dsp, one, layouts, follows=follows) for one in shapes)


def _refusal(site: Site) -> str:
    """Reason why no DSP kernel supports this node, or empty."""
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    tensors = [site.type("x"), site.output, *([site.type("residual")] if site.has("residual") else [])]
    if not site.is_integer or any(type.dtype not in (DType.I8, DType.I16) for type in tensors):
        return "the DSP kernels compute on int8 and int16"
    if site.weights_refusal:
        return site.weights_refusal
    if not (sums_fit(site) and scaled_sums_fit(site)):
        return "sums of these weights could exceed int32"
    return ""


def _dense(site: Site, op: Conv) -> Offers:
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(site.type("weight").shape[2:], op.stride, op.padding, op.dilation)
    layouts, shape = image_layouts(site), _conv_shape(site, x, y, seen)
    if shape.pixels == 1 and seen.covers(x) and (rows := _rows(site, 1, x.h * x.w * x.c, layouts)):
        return rows
    if not conv_dsp.supports(shape):
        return "windows of too many single bytes for the DSP kernel"
    follows = followed(site, seen, x, y, is_gathered=True)
    direct, *smaller = (
        _offer(site, "conv_dsp", conv_dsp, one, layouts, follows=follows)
        for one in (shape, *conv_dsp.of_less_memory(shape))
    )
    smaller += _rows(site, shape.pixels, shape.in_c, layouts) if shape.pointwise else ()
    if shape.weight_bits > BYTE or not winograd_dsp.supports(shape):
        return (direct, *smaller)
    transformed = _offer(
        site,
        "winograd_dsp",
        winograd_dsp,
        shape,
        layouts,
        follows=followed(site, *winograd_dsp.rows(shape)) if shape.weight_bits == BYTE else {},
        generalized=False,
    )
    transformed = replace(transformed, rows_together=winograd_dsp.ROWS)
    if not _is_worth_its_flash(transformed, direct, site):
        return (direct, *smaller)
    # Weights that are unpacked at run time take memory: if it is short, the direct form is offered, too.
    return (transformed, direct) if shape.weight_bits < BYTE else transformed


def _is_worth_its_flash(large: Offer, small: Offer, site: Site) -> bool:
    """True if a larger kernel saves enough time for its additional flash, over all uses of its weights."""
    costs, elements = CoreCosts.of(site.machine), form(site.node)
    saved = (
        site.calls * site.weight_uses * (costs.cost(small, elements).time - costs.cost(large, elements).time)
    )
    sizes = [one.constant_bytes + one.work.code_bytes for one in (small, large)]
    return saved > 0 and saved >= _TIME_PER_BYTE * (sizes[1] - sizes[0])


def _depthwise(site: Site, op: Conv) -> Offers:
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(site.type("weight").shape[2:], op.stride, op.padding, op.dilation)
    shape = DepthwiseShape(
        in_h=x.h,
        in_w=x.w,
        channels=x.c,
        out_h=y.h,
        out_w=y.w,
        kernel=seen.kernel,
        stride=seen.stride,
        padding=seen.padding,
        input_zero_point=site.quantization("x").zero_point[0],
        epilogue=_epilogue(site),
        weight_bits=site.quantization("weight").bits,
    )
    if shape.weight_bits > BYTE or seen.dilation != (1, 1) or not depthwise_dsp.supports(shape):
        return "the DSP kernel does not support dilated, 16-bit, residual or large depthwise convolutions"
    overwrites = (0,) if depthwise_dsp.may_overwrite_input(shape) else ()
    return _offer(site, "depthwise_dsp", depthwise_dsp, shape, image_layouts(site), overwrites=overwrites)


def _conv_shape(site: Site, x: Image, y: Image, seen: Window) -> ConvShape:
    return ConvShape(
        in_h=x.h,
        in_w=x.w,
        in_c=x.c,
        out_h=y.h,
        out_w=y.w,
        out_c=y.c,
        kernel=seen.kernel,
        stride=seen.stride,
        padding=seen.padding,
        dilation=seen.dilation,
        input_zero_point=site.quantization("x").zero_point[0],
        epilogue=_epilogue(site),
        weight_bits=site.quantization("weight").bits,
    )


def _epilogue(site: Site) -> Epilogue:
    fixed = layer_fixed_point(site)
    return Epilogue(
        fixed.zero_point,
        fixed.low,
        fixed.high,
        shifted=any(fixed.shifts),
        apart=site.weight_uses > 1,
        residual=fixed.residual,
        elements=_elements(site),
    )


def _elements(site: Site) -> Elements:
    x, y = c_type(site.type("x").dtype), c_type(site.output.dtype)
    return Elements(x, y, c_type(site.type("residual").dtype)) if site.has("residual") else Elements(x, y)


class _Maker(Protocol[Shape_contra]):
    """A module of a kernel."""

    def function(self, shape: Shape_contra, /) -> Function: ...
    def constant_words(self, shape: Shape_contra, /) -> tuple[int, int]: ...
    def pack(
        self,
        shape: Shape_contra,
        weights: IntArray,
        bias: IntArray,
        multiplier: IntArray,
        shift: IntArray,
        /,
    ) -> tuple[Int32Array, ...]: ...
    def scratch_bytes(self, shape: Shape_contra, /) -> int: ...
    def estimate(self, shape: Shape_contra, /) -> Work: ...


def _offer(
    site: Site,
    name: str,
    maker: _Maker[Shape_contra],
    shape: Shape_contra,
    layouts: tuple[Layout, Layout],
    *,
    overwrites: tuple[int, ...] = (),
    follows: Mapping[int, int] = MappingProxyType({}),
    generalized: bool = True,
) -> Offer:
    """The offer of a module for a shape."""
    epilogue, words = shape.epilogue, maker.constant_words(shape)
    apart = words if epilogue.apart else (sum(words),)

    def pack() -> tuple[Int32Array, ...]:
        weights, fixed = site.array("weight"), layer_fixed_point(site)
        scales = (
            np.broadcast_to(np.array(values, np.int32), (site.type("weight").shape[0],))
            for values in (fixed.multipliers, fixed.shifts)
        )
        return maker.pack(shape, weights, folded_bias(site, weights), *scales)

    constants = {role: 4 * count for role, count in zip(epilogue.arrays, apart, strict=True)}
    function, work, scratch = maker.function(shape), maker.estimate(shape), maker.scratch_bytes(shape)
    return layer_offer(
        site,
        name,
        function,
        work,
        layouts,
        constants,
        pack,
        scratch_bytes=scratch,
        overwrites=overwrites,
        follows=follows,
        general=partial(maker.function, replace(shape, epilogue=epilogue.generalized()))
        if generalized
        else None,
        numbers=tuple(epilogue.numbers.values()),
    )
