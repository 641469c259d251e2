"""The DSP kernels of accumulating operators, offered for nodes of int8 and int16 on machines with the extension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from .....ir import DType
from .....ir.ops.accumulate import Clamp, fixed_point
from .....ir.ops.conv import Conv
from .....ir.ops.linear import Linear
from ...plan.layout import Layout
from ...write.literal import c_type
from ..base import Call, Constant, Function, Implementation, Offer, Site, Work, form, kernel
from ..costs import CoreCosts
from ..layouts import image_layouts, layer_operands, row_layouts
from ..low_bits import BYTE
from ..rounding import folded_bias
from ..wide_sums import scaled_sums_fit, sums_fit
from ..window import MAX_SPATIAL, image, window
from . import conv as conv_dsp
from . import depthwise as depthwise_dsp
from . import linear as linear_dsp
from . import winograd as winograd_dsp
from .conv import ConvShape
from .depthwise import DepthwiseShape
from .epilogue import Elements, Epilogue
from .gemm import Int8Array, Int32Array, IntArray
from .linear import LinearShape

Scales = tuple[Int32Array, Int32Array]
Shape_contra = TypeVar("Shape_contra", bound="_Shape", contravariant=True)

_TIME_PER_BYTE = 100  # cycles that a byte of flash must save in one run, where speed can be bought with flash


@kernel("conv")
def convolution(site: Site) -> Offer:
    """A convolution of one group, or of as many groups as channels."""
    op = site.node.op
    assert isinstance(op, Conv)
    refusal = _refusal(site)
    if refusal:
        return refusal
    x, y = site.type("x").shape, site.output.shape
    if op.rank > MAX_SPATIAL or x[0] != 1:
        return "the DSP kernels take one image"
    if op.groups == 1:
        return _dense(site, op)
    if op.groups == x[1] == y[1]:
        return _depthwise(site, op)
    return f"the DSP kernels take 1 or {x[1]} groups"


@kernel("linear")
def linear(site: Site) -> Offer:
    """A linear layer: of one row as such, of several as a pointwise convolution."""
    op = site.node.op
    assert isinstance(op, Linear)
    refusal = _refusal(site)
    if refusal:
        return refusal
    outputs, inputs = site.type("weight").shape
    rows = site.output.numel // outputs
    epilogue, scales = _epilogue(site, op.clamp)
    layouts, weights, bits = row_layouts(site), site.array("weight"), site.quantization("weight").bits
    if rows == 1:
        shape = LinearShape(inputs, outputs, epilogue, bits)
        if not linear_dsp.supports(shape):
            return "the rows are too long for the DSP kernel"
        built = _built(site, "linear_dsp", linear_dsp, shape, weights, scales)
        return (_implementation(site, built, layouts),)
    pointwise = ConvShape(
        in_h=1,
        in_w=rows,
        in_c=inputs,
        out_h=1,
        out_w=rows,
        out_c=outputs,
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        input_zero_point=site.quantization("x").zero_point[0],
        epilogue=epilogue,
        weight_bits=bits,
    )
    built = _built(site, "conv_dsp", conv_dsp, pointwise, weights[:, :, None, None], scales)
    return (_implementation(site, built, layouts),)


def _refusal(site: Site) -> str:
    """Why no DSP kernel can be asked for this node, or nothing."""
    if not site.machine.dsp:
        return f"{site.machine.name} has no DSP extension"
    tensors = [site.type("x"), site.output, *([site.type("residual")] if site.has("residual") else [])]
    if not site.is_integer or any(type.dtype not in (DType.I8, DType.I16) for type in tensors):
        return "the DSP kernels compute on int8 and int16"
    if site.weights_refusal:
        return site.weights_refusal
    if not (sums_fit(site) and scaled_sums_fit(site)):
        return "sums of these weights could leave int32"
    return ""


def _dense(site: Site, op: Conv) -> Offer:
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(site.type("weight").shape[2:], op.stride, op.padding, op.dilation)
    epilogue, scales = _epilogue(site, op.clamp)
    shape = ConvShape(
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
        epilogue=epilogue,
        weight_bits=site.quantization("weight").bits,
    )
    if not conv_dsp.supports(shape):
        return "windows of too many single bytes for the DSP kernel"
    weights = site.array("weight").reshape(y.c, x.c, *seen.kernel)
    if shape.pointwise and shape.pixels == 1:
        row = LinearShape(x.c, y.c, epilogue, shape.weight_bits)
        single = _built(site, "linear_dsp", linear_dsp, row, weights[:, :, 0, 0], scales)
        return (_implementation(site, single, image_layouts(site)),)
    direct = _built(site, "conv_dsp", conv_dsp, shape, weights, scales)
    built = [direct]
    if winograd_dsp.supports(shape):
        transformed = _built(site, "winograd_dsp", winograd_dsp, shape, weights, scales)
        if _is_worth_its_flash(transformed, direct, site):
            # Weights that are unpacked at run time take memory: where it is short, the direct form is wanted too.
            built = [transformed, direct] if shape.weight_bits < BYTE else [transformed]
    return tuple(_implementation(site, one, image_layouts(site)) for one in built)


def _is_worth_its_flash(large: _Built, small: _Built, site: Site) -> bool:
    """Whether a larger kernel saves enough time for the flash that it takes more, over all uses of its weights."""
    costs, elements = CoreCosts.of(site.machine), form(site.node)
    times = [
        costs.cost(_implementation(site, one, image_layouts(site)), elements).time for one in (small, large)
    ]
    saved = site.weight_uses * (times[0] - times[1])
    extra = large.flash_bytes - small.flash_bytes
    return saved > 0 and saved >= _TIME_PER_BYTE * extra


def _depthwise(site: Site, op: Conv) -> Offer:
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(site.type("weight").shape[2:], op.stride, op.padding, op.dilation)
    epilogue, scales = _epilogue(site, op.clamp)
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
        epilogue=epilogue,
        weight_bits=site.quantization("weight").bits,
    )
    if seen.dilation != (1, 1) or not depthwise_dsp.supports(shape):
        return "the DSP kernel takes no dilated, residual or large depthwise convolution"
    weights = site.array("weight").reshape(y.c, 1, *seen.kernel)
    built = _built(site, "depthwise_dsp", depthwise_dsp, shape, weights, scales)
    if depthwise_dsp.may_overwrite_input(shape):
        built = replace(built, overwrites=(0,))
    return (_implementation(site, built, image_layouts(site)),)


def _epilogue(site: Site, clamp: Clamp) -> tuple[Epilogue, Scales]:
    """The epilogue, and each output channel's multiplier and shift."""
    residual = site.type("residual") if site.has("residual") else None
    fixed = fixed_point(site.type("x"), site.type("weight"), site.output, residual=residual, clamp=clamp)
    channels = site.type("weight").shape[0]
    epilogue = Epilogue(
        fixed.zero_point,
        fixed.low,
        fixed.high,
        shifted=any(fixed.shifts),
        apart=site.weight_uses > 1,
        residual=fixed.residual,
        elements=_elements(site),
    )
    return epilogue, (_per_channel(fixed.multipliers, channels), _per_channel(fixed.shifts, channels))


def _elements(site: Site) -> Elements:
    x, y = c_type(site.type("x").dtype), c_type(site.output.dtype)
    return Elements(x, y, c_type(site.type("residual").dtype)) if site.has("residual") else Elements(x, y)


def _per_channel(values: Sequence[int], channels: int) -> Int32Array:
    return np.broadcast_to(np.array(values, np.int32), (channels,))


@dataclass(frozen=True, eq=False)
class _Built:
    """A kernel made for a shape."""

    kernel: str
    function: Function
    constants: tuple[Constant, ...]
    scratch_bytes: int
    work: Work
    overwrites: tuple[int, ...] = ()

    @property
    def flash_bytes(self) -> int:
        """Bytes of flash, constants and code."""
        return sum(constant.bytes for constant in self.constants) + self.work.code_bytes


class _Shape(Protocol):
    """A shape of a kernel."""

    @property
    def epilogue(self) -> Epilogue: ...


class _Maker(Protocol[Shape_contra]):
    """A module of a kernel."""

    def function(self, shape: Shape_contra, /) -> Function: ...
    def pack(
        self,
        shape: Shape_contra,
        weights: Int8Array,
        bias: IntArray,
        multiplier: IntArray,
        shift: IntArray,
        /,
    ) -> tuple[Int32Array, ...]: ...
    def scratch_bytes(self, shape: Shape_contra, /) -> int: ...
    def estimate(self, shape: Shape_contra, /) -> Work: ...


def _built(
    site: Site,
    name: str,
    maker: _Maker[Shape_contra],
    shape: Shape_contra,
    weights: Int8Array,
    scales: Scales,
) -> _Built:
    """The kernel of a module for a shape; `weights` as its `pack` takes them."""
    arrays = maker.pack(shape, weights, folded_bias(site, weights), *scales)
    constants = tuple(map(Constant, shape.epilogue.arrays, arrays))
    return _Built(name, maker.function(shape), constants, maker.scratch_bytes(shape), maker.estimate(shape))


def _implementation(site: Site, built: _Built, layouts: tuple[Layout, Layout]) -> Implementation:
    """The node computed by one call; a residual lies like the result, which may take its place."""
    operands = layer_operands(site, layouts)
    return Implementation(
        kernel=built.kernel,
        reads=site.reads(operands),
        writes=(layouts[1],),
        work=built.work,
        calls=(
            Call(built.function, tuple(map(site.index, operands)), constants=built.constants, scratch=True),
        ),
        scratch_bytes=built.scratch_bytes,
        overwrites=built.overwrites or site.overwritten_residual,
    )
