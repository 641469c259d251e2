"""Prelude of emitted native modules; the source of these definitions is copied into the emitted file.

Layers on bytes are computed by the kernels of `int8_layers.c`, a file next to the emitted one, which is compiled at its
first use. They compute the integers of the graph, with the channels of images last in memory. Without a C compiler,
and on other devices than the CPU, layers are those of the eager form.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .prelude_eager import Int8Conv, Int8Layer, Int8Linear
from .prelude_library import compiled_library


class PackedLayer(ctypes.Structure):
    """`struct int8_layer` of int8_layers.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weights", "starts", "multipliers", "shifts")),
        *((name, ctypes.c_int32) for name in ("inputs", "outputs", "groups")),
        *((name, ctypes.c_int32 * 2) for name in ("kernel", "stride", "dilation", "before")),
        *((name, ctypes.c_int32) for name in ("x_zero", "y_zero", "low", "high")),
        *((f"residual_{name}", ctypes.c_int32) for name in ("multiplier", "offset", "shift")),
    ]


class ImageSizes(ctypes.Structure):
    """`struct int8_sizes` of int8_layers.c."""

    _fields_ = [(name, ctypes.c_int32) for name in ("images", "height", "width", "out_height", "out_width")]


@dataclass(frozen=True)
class Call:
    """The kernel of a layer for operands of one shape, with all its arguments."""

    shape: torch.Size
    strides: tuple[int, ...]
    result_shape: tuple[int, ...]
    result_strides: tuple[int, ...]
    kernel: Callable[..., None]
    pointers: tuple[int, int]  # pointers to the packed layer and the sizes
    scratch: int
    is_large: bool  # enough for several threads
    held: tuple[Any, ...]  # keeps the memory of the pointers alive


class NativeLayer(Int8Layer):
    """A layer that equals the integers of the graph, bit for bit.

    `bias` is added to the accumulator, `multiplier` and `shift` are those of the requantization of each output
    channel; `residual_step` is multiplier, offset and shift of the residual's rescaling.
    """

    multiplier: Tensor
    shift: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        residual_step: tuple[int, int, int] = (0, 0, 0),
        bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(shape, bias=bias, **options)
        self.residual_step = residual_step
        if bias:
            self.register_buffer("bias", torch.zeros(shape[0], dtype=torch.int32))
        self.register_buffer("multiplier", torch.zeros(shape[0], dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(shape[0], dtype=torch.int32))
        self.call: Call | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """uint8 to uint8."""
        call = self.call
        if call is None or call.shape != x.shape or not x.is_cpu:
            call = self.call = self.prepared(x)
        if call is None:
            return super().forward(x, residual)
        if x.stride() != call.strides:
            x = self.arranged(x)
        if residual is not None and residual.stride() != call.result_strides:
            residual = self.arranged(residual)
        y = x.new_empty_strided(call.result_shape, call.result_strides, dtype=torch.uint8)
        scratch = x.new_empty(call.scratch, dtype=torch.uint8) if call.scratch else y
        call.kernel(
            *call.pointers,
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            scratch.data_ptr(),
            torch.get_num_threads() if call.is_large else 1,
        )
        return y

    def prepared(self, x: Tensor) -> Call | None:
        """The kernel for operands like `x`; None if there is none."""
        library, layer = int8_layers_library() if x.is_cpu and self.weight.is_cpu else None, self.layer()
        size = -1 if library is None else library.int8_layer_bytes(ctypes.byref(layer))
        if library is None or size < 0:
            return None
        if not fits(self.weight, self.bias, self.shift, self.x_grid[1], self.residual_step):
            return None
        memory = x.new_empty(size, dtype=torch.uint8)
        parts = (self.weight, self.bias, self.multiplier, self.shift)
        held = [None if part is None else part.contiguous() for part in parts]
        pointers = [None if part is None else part.data_ptr() for part in held]
        library.int8_layer_pack(ctypes.byref(layer), *pointers, memory.data_ptr())
        sizes, shape = self.sizes(x)
        layer_and_sizes = ctypes.addressof(layer), ctypes.addressof(sizes)
        result = self.arranged(x.new_empty(shape, dtype=torch.uint8))
        return Call(
            x.shape,
            self.arranged(x).stride(),
            shape,
            result.stride(),
            library.int8_layer,
            layer_and_sizes,
            library.int8_layer_scratch(*layer_and_sizes),
            result.numel() * self.weight[0].numel() >= 1 << 18,
            (layer, sizes, memory),
        )

    def layer(self) -> PackedLayer:
        """The layer without its packed weight."""
        low, high = self.clamp or (0, 255)
        return PackedLayer(
            outputs=len(self.weight),
            inputs=self.weight.shape[1],
            groups=1,
            kernel=(1, 1),
            stride=(1, 1),
            dilation=(1, 1),
            x_zero=self.x_grid[1],
            y_zero=self.y_grid[1],
            low=low,
            high=high,
            residual_multiplier=self.residual_step[0],
            residual_offset=self.residual_step[1],
            residual_shift=self.residual_step[2],
        )

    def sizes(self, x: Tensor) -> tuple[ImageSizes, tuple[int, ...]]:
        """Sizes for an operand, and the shape of the result."""
        raise NotImplementedError

    def arranged(self, x: Tensor) -> Tensor:
        """An operand in the layout of the kernel."""
        raise NotImplementedError

    def real_bias(self) -> Tensor | None:
        """The bias in float."""
        if self.bias is None:
            return None
        return (self.bias * (self.weight_scale.double() * self.x_grid[0])).float()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "call": None}

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.call = None
        super()._load_from_state_dict(*arguments)


class NativeLinear(NativeLayer, Int8Linear):
    """Affine map of the last dimension, plus a residual, within a clamp."""

    def sizes(self, x: Tensor) -> tuple[ImageSizes, tuple[int, ...]]:
        """Sizes with the tokens as pixels of one row."""
        tokens = x.shape[:-1].numel()
        return ImageSizes(1, 1, tokens, 1, tokens), (*x.shape[:-1], len(self.weight))

    def arranged(self, x: Tensor) -> Tensor:
        """The operand, contiguous."""
        return x.contiguous()


class NativeConv(NativeLayer, Int8Conv):
    """Convolution over one or two spatial dimensions, plus a residual, within a clamp."""

    def __init__(self, shape: tuple[int, ...], *, padding: tuple[int, ...], **options: Any) -> None:
        super().__init__(shape, padding=padding, **options)
        self.padding = (0, 0, *padding) if self.is_flat else padding

    def layer(self) -> PackedLayer:
        """The layer without its packed weight."""
        layer = super().layer()
        stride, _, dilation = self.geometry
        kernel = self.weight.shape[2:]
        layer.inputs, layer.groups = self.weight.shape[1] * self.groups, self.groups
        layer.kernel = (1, *kernel) if self.is_flat else tuple(kernel)
        layer.stride, layer.dilation, layer.before = tuple(stride), tuple(dilation), self.padding[::2]
        return layer

    def sizes(self, x: Tensor) -> tuple[ImageSizes, tuple[int, ...]]:
        """Sizes; one dimension is treated as a row."""
        stride, _, dilation = self.geometry
        layer = self.layer()
        image = [1, x.shape[2]] if self.is_flat else list(x.shape[2:])
        result = [
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, before, after, d, k, s in zip(
                image, self.padding[::2], self.padding[1::2], dilation, layer.kernel, stride, strict=True
            )
        ]
        shape = (len(x), layer.outputs, *result[self.is_flat :])
        return ImageSizes(len(x), *image, *result), shape

    def arranged(self, x: Tensor) -> Tensor:
        """The operand with the channels last."""
        return x.movedim(1, -1).contiguous().movedim(-1, 1)


def quantize(
    x: Tensor,
    scale: float,
    zero_point: int,
    dtype: torch.dtype = torch.uint8,
    *,
    bounds: tuple[int, int] = (0, 255),
    is_image: bool = False,
) -> Tensor:
    """The integers nearest to x / scale + zero_point, halves away from zero; for an image with the channels last."""
    library = (
        int8_layers_library() if x.is_cpu and x.dtype is torch.float32 and dtype is torch.uint8 else None
    )
    if library is None:
        ratio = (x / scale).nan_to_num(0.0, 1e9, -1e9).clamp(-1e9, 1e9)
        rounded = torch.trunc(ratio + torch.copysign(torch.full_like(ratio, 0.5), ratio)).int() + zero_point
        info = torch.iinfo(dtype)
        low, high = bounds if dtype is torch.uint8 else (info.min, info.max)
        return rounded.clamp(low, high).to(dtype)
    images, channels = 1, 1
    if is_image and x.is_contiguous():
        images, channels = x.shape[:2]
        y = x.new_empty(len(x), *x.shape[2:], channels, dtype=torch.uint8).movedim(-1, 1)
    else:
        x, y = with_result(x, torch.uint8)
    pixels = x.numel() // max(images * channels, 1)
    library.int8_quantize(x.data_ptr(), y.data_ptr(), images, channels, pixels, scale, zero_point, *bounds)
    return y


def dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Dequantized integers: (x - zero_point) * scale."""
    library = int8_layers_library() if x.is_cpu and x.dtype is torch.uint8 else None
    if library is None:
        return x.float().sub_(zero_point).mul_(scale)
    x, y = with_result(x, torch.float32)
    library.int8_dequantize(x.data_ptr(), y.data_ptr(), x.numel(), scale, zero_point)
    return y


def lookup(table: Tensor, x: Tensor) -> Tensor:
    """table[x] for bytes x."""
    library = int8_layers_library() if x.is_cpu else None
    if library is None:
        return table.index_select(0, x.reshape(-1).int()).view(x.shape)
    x, y = with_result(x, torch.uint8)
    library.int8_lookup(table.contiguous().data_ptr(), x.data_ptr(), y.data_ptr(), x.numel())
    return y


def add(
    a: Tensor, b: Tensor, multipliers: tuple[int, int], offset: int, shift: int, low: int, high: int
) -> Tensor:
    """Rescaled sum of bytes: ((a * multipliers[0] + b * multipliers[1] + offset) >> shift) + 128, within the bounds."""
    library = int8_layers_library() if a.is_cpu and b.is_cpu else None
    if library is None:
        total = a.int() * multipliers[0] + b.int() * multipliers[1] + offset
        return ((total >> shift) + 128).clamp(low, high).to(torch.uint8)
    a, b, y = with_common_result(a, b)
    factors = (ctypes.c_int32 * 2)(*multipliers)
    library.int8_add(a.data_ptr(), b.data_ptr(), y.data_ptr(), y.numel(), factors, offset, shift, low, high)
    return y


def multiply(
    a: Tensor, b: Tensor, zeros: tuple[int, int, int], multiplier: int, shift: int, low: int, high: int
) -> Tensor:
    """Requantized product of bytes minus their zero points; the third zero point is that of the result."""
    library = int8_layers_library() if a.is_cpu and b.is_cpu else None
    if library is None:
        product = (a.long() - zeros[0]) * (b.long() - zeros[1]) << shift
        return ((product * multiplier + (1 << 31) >> 32) + zeros[2]).clamp(low, high).to(torch.uint8)
    a, b, y = with_common_result(a, b)
    points = (ctypes.c_int32 * 3)(*zeros)
    library.int8_multiply(
        a.data_ptr(), b.data_ptr(), y.data_ptr(), y.numel(), points, multiplier, shift, low, high
    )
    return y


def average(x: Tensor, kernel: tuple[int, ...], **options: Any) -> Tensor:
    """Average of windows, as a depthwise convolution with weights 1; `options` are those of `averaging_layer`."""
    y: Tensor = averaging_layer(x.shape[1], kernel, **options)(x)
    return y


@cache
def averaging_layer(
    channels: int, kernel: tuple[int, ...], *, divisor: int, step: tuple[int, int], **options: Any
) -> NativeConv:
    """The layer of `average`; `step` is multiplier and shift of the requantization of a window's sum."""
    ones = (1,) * len(kernel)
    layer = NativeConv((channels, 1, *kernel), dilation=ones, groups=channels, bias=False, **options)
    layer.weight.fill_(1)
    layer.weight_scale.fill_(1 / divisor)
    layer.multiplier.fill_(step[0])
    layer.shift.fill_(step[1])
    return layer


def with_result(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x`, contiguous, and an empty result of the same layout."""
    y = torch.empty_like(x, dtype=dtype)
    if y.stride() != x.stride():
        x = x.contiguous()
        y = torch.empty_like(x, dtype=dtype)
    return x, y


def with_common_result(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two operands, broadcast to one shape and layout, and an empty result like them."""
    a, b = torch.broadcast_tensors(a, b)
    a, y = with_result(a, torch.uint8)
    return a, b if b.stride() == y.stride() else torch.empty_like(y).copy_(b), y


def fits(
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor,
    zero_point: int,
    residual_step: tuple[int, int, int],
) -> bool:
    """True if the sums of a layer, for bytes with this zero point, and its rescaled residual fit 32 bits."""
    bound = weight.flatten(1).long().abs().sum(1) * max(zero_point, 255 - zero_point)
    bound += 0 if bias is None else bias.long().abs()
    multiplier, offset, _ = residual_step
    return int((bound << shift).max()) < 1 << 31 and abs(offset) + 255 * abs(multiplier) < 1 << 30


@cache
def int8_layers_library() -> ctypes.CDLL | None:
    """The kernels of int8_layers.c; None, with a warning, without a C compiler."""
    library = compiled_library("int8_layers.c")
    if library is None:
        return None
    pointer, count, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
    library.int8_layer_bytes.argtypes = [pointer]
    library.int8_layer_bytes.restype = count
    library.int8_layer_scratch.argtypes = [pointer, pointer]
    library.int8_layer_scratch.restype = count
    functions = {
        "int8_layer_pack": [pointer] * 6,
        "int8_layer": [pointer] * 6 + [number],
        "int8_quantize": [pointer] * 2 + [count] * 3 + [real] + [number] * 3,
        "int8_dequantize": [pointer] * 2 + [count, real, number],
        "int8_lookup": [pointer] * 3 + [count],
        "int8_add": [pointer] * 3 + [count, pointer] + [number] * 4,
        "int8_multiply": [pointer] * 3 + [count, pointer] + [number] * 4,
    }
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
