"""Prelude of emitted weight-only modules; the source of these definitions is copied into the emitted file.

A weight is stored in the packed form of `packed_linear.c`, a file next to the emitted one. Linear layers call the
kernel of that file, which is compiled at its first use. Without a C compiler they use torch's own integer products if
possible; otherwise the weight is dequantized at each call.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .prelude_library import compiled_library


class PackedMatrix(ctypes.Structure):
    """`struct packed_linear` of packed_linear.c."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
    ]


PackedMatrices = tuple[list[tuple[int, torch.dtype]], "ctypes.Array[PackedMatrix]"]
"""Array of matrices, and the addresses and element types of their tensors."""


class PackedWeight(nn.Module):
    """A weight of `bits`-bit integers, with a scale for each `group_size` of them along the last dimension.

    Rows, all dimensions but the last, are packed in blocks of 16: codes [blocks, groups, bytes], in steps of 16
    columns, and scales [blocks, groups, 16] of `dtype`. Scales of an integer type are codes [rows, groups] for
    `decoded_scales`; with `steps`, the length of `scale_step`, they are quantized twice.
    """

    codes: Tensor
    scale: Tensor
    scale_step: Tensor
    scale_offset: Tensor

    def __init__(
        self,
        *shape: int,
        bits: int,
        group_size: int,
        dtype: torch.dtype = torch.float32,
        steps: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.bits, self.group_size = shape, bits, group_size
        rows, groups, lines = prod(shape[:-1]), shape[-1] // group_size, -(-group_size // 16)
        blocks = -(-rows // 16)
        self.register_buffer("codes", torch.zeros(blocks, groups, lines * 32 * bits, dtype=torch.uint8))
        self.has_scale_codes, self.has_steps = not dtype.is_floating_point, steps > 0
        packed = (rows, groups) if self.has_scale_codes else (blocks, groups, 16)
        self.register_buffer("scale", torch.ones(packed, dtype=dtype))
        if self.has_steps:
            self.register_buffer("scale_step", torch.zeros(steps, dtype=torch.float32))
            self.register_buffer("scale_offset", torch.ones(1, dtype=torch.float32))
        self.dtype = torch.float32  # element type of its reals
        self.matrices: PackedMatrices | None = None  # of this weight and those of the same call
        self.token_bytes = [4 + groups * (4 + lines * 16 * size) for size in (4, 1)]  # scratch: floats, int8
        self.packed: tuple[tuple[int, ...], Any, Tensor] | None = None  # and their source tensors
        self.decoded: tuple[tuple[int, ...], Tensor] | None = None  # packed scales from codes; likewise

    def linear(self, x: Tensor, bias: Tensor | None = None, *, rounded: bool = False) -> Tensor:
        """x @ weight^T + bias; `rounded`: x is first rounded to int8 with a scale for each row (token)."""
        return joined_linear(x, (self,), (bias,), rounded=rounded)[0]

    def products(
        self, x: Tensor, weights: Sequence["PackedWeight"], rounded: bool
    ) -> Sequence[Tensor] | None:
        """Products of x [..., columns] with weights of one form, the first of which is this one; None without an
        integer product.
        """
        kernels = packed_linear_library() if x.is_cpu else None
        if kernels is None or not all(weight.has_kernel() for weight in weights):
            return self.torch_products(x, weights, rounded)
        held = packed_tensors(weights)
        lead, tokens = x.shape[:-1], x.numel() // self.shape[1]
        x = x.to(torch.float32).contiguous()
        found = [x.new_empty(*lead, weight.shape[0]) for weight in weights]
        scratch = x.new_empty(tokens * self.token_bytes[rounded], dtype=torch.uint8)
        places = (ctypes.c_void_p * len(found))(*[y.data_ptr() for y in found])
        threads = torch.get_num_threads() if x.numel() * self.shape[0] >= 1 << 18 else 1
        matrices, scratch_place = self.packed_matrices(weights, held), scratch.data_ptr()
        kernels.packed_linear_joined(
            matrices, len(found), x.data_ptr(), tokens, not rounded, places, scratch_place, threads
        )
        return found

    def has_kernel(self) -> bool:
        """True if the kernels support the element types of codes and scales."""
        return self.scale.dtype != torch.float64

    def packed_matrices(
        self, weights: Sequence["PackedWeight"], tensors: Sequence[Tensor]
    ) -> "ctypes.Array[PackedMatrix]":
        """The weights, this one first, as arguments of the kernels; they have the addresses of `tensors`."""
        places = [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]
        known = self.matrices  # read once: other threads may replace it
        if known is None or known[0] != places:
            types = (torch.float32, torch.float16, torch.bfloat16)
            matrices = []
            for weight, codes, scale in zip(weights, tensors[::2], tensors[1::2], strict=True):
                sizes = (prod(weight.shape[:-1]), weight.shape[-1], weight.group_size, weight.bits)
                matrices.append(
                    PackedMatrix(codes.data_ptr(), scale.data_ptr(), *sizes, types.index(scale.dtype))
                )
            self.matrices = known = places, (PackedMatrix * len(weights))(*matrices)
        return known[1]

    def torch_products(
        self, x: Tensor, weights: Sequence["PackedWeight"], rounded: bool
    ) -> Sequence[Tensor] | None:
        """The products by torch's int8 kernel, or by its int4 kernel, which rounds x to bfloat16."""
        lead, rows = x.shape[:-1], [weight.shape[0] for weight in weights]
        kind = torch_kernel(x.device, self, rows) if rounded else None
        if kind is None:
            return None
        held = packed_tensors(weights)
        state = tuple(number for tensor in held for number in (tensor.data_ptr(), tensor._version))
        known = self.packed
        if known is None or known[0] != state:
            integers = torch.cat([weight.integers() for weight in weights])
            scales = torch.cat([weight.scales() for weight in weights])
            packed = pack_int8(integers, scales) if kind == "int8" else pack_int4(integers, scales)
            self.packed = known = state, *packed
        (_, codes, scales), x = known, x.reshape(-1, x.shape[-1])
        is_int8, size = kind == "int8", self.group_size
        y = int8_product(x, codes, scales) if is_int8 else int4_product(x, size, codes, scales)
        return torch.split(y.reshape(*lead, sum(rows)), rows, -1)

    def rows(self, indices: Tensor) -> Tensor:
        """The reals of some rows; IndexError for a row that does not exist."""
        shape, count = (*indices.shape, self.shape[-1]), prod(self.shape[:-1])
        flat = indices.reshape(-1).long()
        if is_traced() or flat.is_meta:
            return self.chosen(flat).reshape(shape).to(self.dtype)
        kernels = packed_linear_library() if flat.is_cpu and self.codes.is_cpu else None
        if kernels is not None and self.has_kernel():
            flat, y = flat.contiguous(), self.scale.new_empty(shape, dtype=torch.float32)
            held = packed_tensors([self])
            matrices = self.packed_matrices([self], held)
            is_there = not kernels.packed_linear_rows(matrices, flat.data_ptr(), len(flat), y.data_ptr())
        elif is_there := not bool(((flat < 0) | (flat >= count)).any()):
            y = self.chosen(flat).reshape(shape)
        if not is_there:
            raise IndexError(f"an index outside of the {count} rows of an embedding")
        return y.to(self.dtype)

    def chosen(self, flat: Tensor) -> Tensor:
        """The reals of some rows, by torch operators."""
        reals = self.to_reals(flat // 16)
        return reals[torch.arange(flat.shape[0], device=flat.device), flat % 16]

    def reals(self, dtype: torch.dtype | None = None) -> Tensor:
        """The reals of the whole weight; by default in the element type chosen by, for example, `half()`."""
        reals = self.to_reals(slice(None)).flatten(0, 1)
        return reals[: prod(self.shape[:-1])].reshape(self.shape).to(dtype or self.dtype)

    def integers(self) -> Tensor:
        """The integers of the whole weight [rows, columns], as int8."""
        return self.unpacked(self.codes).flatten(2).flatten(0, 1)[: prod(self.shape[:-1])]

    def scales(self) -> Tensor:
        """The scales of the whole weight [rows, groups], as float32."""
        return self.block_scales(slice(None)).flatten(0, 1)[: prod(self.shape[:-1])]

    def block_scales(self, blocks: Tensor | slice) -> Tensor:
        """The scales [blocks, 16, groups] of some blocks, as float32."""
        if not self.has_scale_codes:
            return self.scale[blocks].to(torch.float32).transpose(1, 2)
        codes = self.scale
        rows, groups = codes.shape
        starts = torch.arange(0, rows, 16, device=codes.device)[blocks]
        places = (starts[:, None] + torch.arange(16, device=codes.device)).clamp(max=rows - 1)
        if not self.has_steps:
            return decoded_scales(codes[places])
        among = places[..., None] * groups + torch.arange(groups, device=codes.device)
        return decoded_scales(codes[places], self.scale_step[among // 256], self.scale_offset)

    def packed_scales(self) -> Tensor:
        """The scales [blocks, groups, 16] in the form of the kernels; codes are decoded once, if they are in memory."""
        codes = self.scale
        if not self.has_scale_codes:
            if not codes.is_contiguous():
                self.scale = codes = codes.contiguous()
            return codes
        stored = [codes, self.scale_step, self.scale_offset] if self.has_steps else [codes]
        state, known = (
            tuple(n for tensor in stored for n in (tensor.data_ptr(), tensor._version)),
            self.decoded,
        )
        if known is None or known[0] != state:
            known = state, self.block_scales(slice(None)).transpose(1, 2).contiguous()
            if "scale" in self._buffers:  # tensors that are read at each use are in memory only for that use
                self.decoded = known
        return known[1]

    def to_reals(self, blocks: Tensor | slice) -> Tensor:
        """Reals [blocks, 16, columns] of some blocks."""
        return (self.unpacked(self.codes[blocks]) * self.block_scales(blocks)[..., None]).flatten(2)

    def unpacked(self, codes: Tensor) -> Tensor:
        """Integers [blocks, 16, groups, group_size] of some blocks, as int8."""
        blocks, groups, _ = codes.shape
        steps = -(-self.group_size // 16)
        codes = codes.reshape(blocks, groups, steps, 32 * self.bits)
        planes, at, used = [], 0, 0
        while used < self.bits:
            width = next(width for width in (8, 4, 2, 1) if width <= self.bits - used)
            size = 32 * width
            shape = (4, 8, 1) if width == 1 else (size // 64, 1, 64)
            stored = codes[..., at : at + size].reshape(blocks, groups, steps, *shape)
            shifts = torch.arange(0, 8, width).to(codes)
            parts = torch.bitwise_right_shift(stored, shifts if width == 1 else shifts[:, None])
            plane = (parts & ((1 << width) - 1)).reshape(blocks, groups, steps, 4, 16, 4)
            planes.append(plane * (1 << used))
            at, used = at + size, used + width
        total = sum(planes[1:], planes[0]).to(torch.int16)
        levels = (total - (1 << (self.bits - 1))).to(torch.int8)
        columns = levels.permute(0, 4, 1, 2, 3, 5).reshape(blocks, 16, groups, steps * 16)
        return columns[..., : self.group_size]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedWeight":
        """Device changes apply to all tensors; element types to the computed reals, not to scales."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            after = self._buffers[name]
            if tensor is not None and after is not None and after.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(after.device)
        self.dtype = fn(self.scale.new_zeros(0, dtype=self.dtype)).dtype
        return self

    def __getstate__(self) -> dict[str, Any]:  # any: an object of a module
        return {**self.__dict__, "matrices": None, "packed": None, "decoded": None}


class DecodedWeight(PackedWeight):
    """A packed weight with a zero point for each scale, or a table of levels: it is dequantized in each call."""

    zero: Tensor
    levels: Tensor

    def __init__(
        self,
        *shape: int,
        bits: int,
        group_size: int,
        dtype: torch.dtype = torch.float32,
        steps: int = 0,
        levels: int = 0,
    ) -> None:
        super().__init__(*shape, bits=bits, group_size=group_size, dtype=dtype, steps=steps)
        self.has_levels = levels > 0
        if self.has_levels:
            self.register_buffer("levels", torch.zeros(levels, dtype=torch.float32))
        else:
            self.register_buffer("zero", torch.zeros(*self.codes.shape[:2], 16, dtype=torch.int8))

    def has_kernel(self) -> bool:
        """False: the kernels do not support such codes."""
        return False

    def torch_products(self, x: Tensor, weights: Sequence[PackedWeight], rounded: bool) -> None:
        """None: torch has no such product, either."""

    def to_reals(self, blocks: Tensor | slice) -> Tensor:
        """Reals [blocks, 16, columns] of some blocks."""
        scales = self.block_scales(blocks)[..., None]
        codes = self.unpacked(self.codes[blocks]).to(torch.int32)
        if self.has_levels:
            return (self.levels[codes + (1 << (self.bits - 1))] * scales).flatten(2)
        return ((codes - self.zero[blocks].transpose(1, 2)[..., None]) * scales).flatten(2)


def joined_linear(
    x: Tensor,
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None] = (),
    *,
    rounded: bool = False,
) -> list[Tensor]:
    """x @ weight^T + bias for each weight, in one call of a kernel; the weights may differ only in their rows.

    `rounded`: x is first rounded to int8 with a scale for each row (token).
    """
    first, biases = weights[0], biases or [None] * len(weights)
    if x.shape[-1] != first.shape[-1]:
        raise RuntimeError(f"an input of {x.shape[-1]} columns for a weight of {first.shape[-1]}")
    found = None
    if not is_traced() and not (x.requires_grad and torch.is_grad_enabled()):
        is_here = x.device == first.codes.device and x.dtype != torch.float64
        found = first.products(x, weights, rounded) if is_here else None
    if found is None:
        x = fake_quantize_per_token(x) if rounded else x
        pairs = zip(weights, biases, strict=True)
        return [nn.functional.linear(x, weight.reals(x.dtype), bias) for weight, bias in pairs]
    if x.dtype != torch.float32:
        found = [y.to(x.dtype) for y in found]
    return [y if bias is None else y + bias for y, bias in zip(found, biases, strict=True)]


def packed_tensors(weights: Sequence[PackedWeight]) -> list[Tensor]:
    """Codes and scales of each weight, one after the other, in the form of the kernels."""
    held: list[Tensor] = []
    for weight in weights:
        codes = weight.codes
        if not codes.is_contiguous():
            weight.codes = codes = codes.contiguous()
        held += (codes, weight.packed_scales())
    return held


def decoded_scales(codes: Tensor, steps: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """Scales from codes: powers of two, 2^(code - 127), or with steps offset + code * step, as float32.

    A code c below 0 is the negative of the scale with the code -1 - c. Products with steps are exact.
    """
    wide = codes.to(torch.int32)
    if steps is None or offset is None:
        return torch.where(wide == 0, 1 << 22, wide << 23).view(torch.float32)
    sizes = torch.where(wide < 0, -1 - wide, wide) * steps + offset
    return torch.where(wide < 0, -sizes, sizes)


def is_traced() -> bool:
    """True while a tracer records torch operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def torch_kernel(
    device: torch.device,
    weight: PackedWeight,
    rows: Sequence[int],
    *,
    capability: tuple[int, int] | None = None,
) -> str | None:
    """The torch kernel for weights of this form and these rows, `int8` or `int4`; None if there is none.

    `capability` is that of a CUDA device; default: queried from the device.
    """
    is_whole = weight.bits == 8 and weight.group_size == weight.shape[1]
    is_grouped = weight.bits == 4 and weight.group_size in (32, 64, 128, 256)
    if device.type == "cpu":
        return (
            "int8" if is_whole else "int4" if is_grouped and not any(count % 16 for count in rows) else None
        )
    if device.type != "cuda" or any(count % 8 for count in rows):
        return None
    capability = capability or torch.cuda.get_device_capability(device)
    if is_whole and weight.shape[1] % 8 == 0 and capability >= (7, 5):
        return "int8"
    return "int4" if is_grouped and weight.shape[1] % 128 == 0 and capability >= (8, 0) else None


def pack_int8(
    integers: Tensor, scales: Tensor
) -> tuple[Any, Tensor]:  # any: a tensor, or a packed matrix of FBGEMM
    """Integers [rows, columns] in the form of torch's kernel for their device, and a scale for each row."""
    scales = scales[:, 0].contiguous()
    if not integers.is_cpu or not has_fbgemm():
        return integers, scales
    ones = torch.ones(len(integers), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensors with a quantizer, which later versions replace
        weight = torch._make_per_channel_quantized_tensor(integers, ones, torch.zeros_like(ones).long(), 0)
        return torch.ops.quantized.linear_prepack(weight, None), scales


def has_fbgemm() -> bool:
    """True if torch has FBGEMM's kernel of packed int8, and the processor computes exact sums with it (VNNI)."""
    is_chosen = torch.backends.quantized.engine in ("x86", "fbgemm")
    return (
        is_chosen and torch.cpu._is_vnni_supported() and hasattr(torch, "_make_per_channel_quantized_tensor")
    )


def int8_product(x: Tensor, codes: Any, scales: Tensor) -> Tensor:  # any: of `pack_int8`
    """x [tokens, columns], rounded to int8 for each token, @ codes, with exact sums; float32.

    On processors without VNNI there is no fast kernel with exact sums: rows are then multiplied in float32, as many
    at a time as fit in a cache.
    """
    x = x.to(torch.float32)
    most = x.abs().amax(-1, keepdim=True)
    inverse = torch.where(most >= 1e-30, most.new_tensor(127.0) / most, 0.0)
    rounded = torch.round(x * inverse)
    if not isinstance(codes, Tensor):  # rounded again there, to uint8 with a zero point of 128
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        sums: Tensor = multiply(rounded, 1.0, 128, codes)
        return sums * scales * (most / 127)
    is_fast = torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()
    if codes.is_cpu and not is_fast:
        parts = codes.split(max(1, (1 << 19) // codes.shape[1]))
        return torch.cat([rounded @ part.float().T for part in parts], 1) * scales * (most / 127)
    rounded = rounded.to(torch.int8)
    if not codes.is_cpu and len(x) < 17:  # the smallest number that cuBLAS supports
        rounded = nn.functional.pad(rounded, (0, 0, 0, 17 - len(x)))
    return torch._int_mm(rounded, codes.T).narrow(0, 0, len(x)) * scales * (most / 127)


def pack_int4(integers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and pairs of scale and offset in the form of torch's int4 kernel for the device."""
    pairs = torch.stack([scales, torch.zeros_like(scales)], -1).to(torch.bfloat16)
    codes = (integers + 8).to(torch.int32)
    if integers.is_cpu:
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    else:  # two in a byte, the first in its high half
        first, second = codes.unflatten(1, (-1, 2)).unbind(2)
        codes = torch.ops.aten._convert_weight_to_int4pack((first << 4 | second).to(torch.uint8), 8)
    return codes, pairs.transpose(0, 1).contiguous()


def int4_product(x: Tensor, group_size: int, codes: Tensor, pairs: Tensor) -> Tensor:
    """x [tokens, columns], rounded to bfloat16, @ codes; float32."""
    aten = torch.ops.aten
    multiply = aten._weight_int4pack_mm_for_cpu if x.is_cpu else aten._weight_int4pack_mm
    y: Tensor = multiply(x.to(torch.bfloat16), codes, group_size, pairs)
    return y.to(torch.float32)


class RmsNorm(nn.RMSNorm):
    """`nn.RMSNorm`, by the kernel of rms_norm.c if that supports the input."""

    def forward(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight."""
        weight = self.weight
        is_here = x.is_cpu and weight.is_cpu and x.dtype == weight.dtype == torch.float32 and not is_traced()
        if not is_here or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
            return super().forward(x)
        kernels, width = packed_linear_library(), weight.numel()
        if kernels is None or x.shape[-weight.ndim :] != weight.shape or not weight.is_contiguous():
            return super().forward(x)
        x = x.contiguous()
        y, eps = torch.empty_like(x), torch.finfo(x.dtype).eps if self.eps is None else self.eps
        kernels.rms_norm(x.data_ptr(), weight.data_ptr(), x.numel() // width, width, eps, y.data_ptr())
        return y


def fake_quantize_per_token(x: Tensor) -> Tensor:
    """x rounded to int8 and back, with a scale for each row."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    most = wide.abs().amax(-1, keepdim=True)
    inverse = torch.where(most >= 1e-30, most.new_tensor(127.0) / most, 0.0)
    return (torch.round(wide * inverse) * (most / 127)).to(x.dtype)


@cache
def packed_linear_library() -> ctypes.CDLL | None:
    """The kernels of packed_linear.c and rms_norm.c; None, with a warning, without a C compiler."""
    kernels = compiled_library("packed_linear.c", "packed_linear.h", "rms_norm.c")
    if kernels is None:
        return None
    pointer, count, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    kernels.packed_linear_joined.argtypes = [
        pointer,
        number,
        pointer,
        count,
        number,
        pointer,
        pointer,
        number,
    ]
    kernels.packed_linear_joined.restype = None
    kernels.packed_linear_rows.argtypes = [pointer, pointer, count, pointer]
    kernels.rms_norm.argtypes = [pointer, pointer, count, count, real, pointer]
    kernels.rms_norm.restype = None
    return kernels
