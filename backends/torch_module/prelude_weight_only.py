"""Prelude of emitted weight-only modules; the source of these definitions is copied into the emitted file.

A weight is stored in the packed form of `packed_linear.c`, a file next to the emitted one. Linear layers call the
kernel of that file, which is compiled at its first use. Without a C compiler they use torch's own integer products
where these fit, else the weight is dequantized at each call.
"""

import ctypes
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


class PackedWeight(nn.Module):
    """A weight of `bits`-bit integers, with a scale for each `group_size` of them along the last dimension.

    Rows, all dimensions but the last, are packed in blocks of 16: codes [blocks, groups, bytes], in steps of 16
    columns, and scales [blocks, groups, 16] of `dtype`.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, *shape: int, bits: int, group_size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.bits, self.group_size = shape, bits, group_size
        blocks, groups, steps = -(-prod(shape[:-1]) // 16), shape[-1] // group_size, -(-group_size // 16)
        self.register_buffer("codes", torch.zeros(blocks, groups, steps * 32 * bits, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(blocks, groups, 16, dtype=dtype))
        self.matrix: PackedMatrix | None = None
        self.packed: tuple[Tensor, ...] = ()
        self.packed_from: tuple[int, ...] = ()

    def linear(self, x: Tensor, bias: Tensor | None = None, *, rounded: bool = False) -> Tensor:
        """x @ weight^T + bias; `rounded`: x is rounded to int8 with a scale for each row (token) before."""
        if x.shape[-1] != self.shape[-1]:
            raise RuntimeError(f"an input of {x.shape[-1]} columns for a weight of {self.shape[-1]}")
        y = None
        if not self.is_traced() and not (x.requires_grad and torch.is_grad_enabled()):
            rows = x.reshape(-1, x.shape[-1])
            is_here = x.device.type == self.codes.device.type == "cpu" and x.dtype != torch.float64
            y = self.product(rows.to(torch.float32), rounded) if is_here else None
        if y is None:
            x = fake_quantize_per_token(x) if rounded else x
            return nn.functional.linear(x, self.reals(x.dtype), bias)
        y = y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
        return y if bias is None else y + bias

    def is_traced(self) -> bool:
        """True where a tracer is to see torch operators."""
        return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]

    def product(self, x: Tensor, rounded: bool) -> Tensor | None:
        """x [tokens, columns] @ weight^T by the kernel, or by torch without a compiler; None where neither fits."""
        kernel, types = packed_linear_library(), (torch.float32, torch.float16, torch.bfloat16)
        if kernel is None:
            return self.torch_product(x, rounded)
        if self.scale.dtype not in types:
            return None
        if not (self.codes.is_contiguous() and self.scale.is_contiguous()):
            self.codes, self.scale = self.codes.contiguous(), self.scale.contiguous()
        matrix, tokens, rows = self.matrix, len(x), self.shape[0]
        if matrix is None or (matrix.codes, matrix.scales) != (self.codes.data_ptr(), self.scale.data_ptr()):
            self.matrix = matrix = PackedMatrix(
                self.codes.data_ptr(),
                self.scale.data_ptr(),
                rows,
                self.shape[1],
                self.group_size,
                self.bits,
                types.index(self.scale.dtype),
            )
        x = x.contiguous()
        reference = ctypes.byref(matrix)
        size = kernel.packed_linear_scratch(reference, tokens, not rounded)
        y, scratch = torch.empty(tokens, rows), torch.empty(size, dtype=torch.uint8)
        threads = torch.get_num_threads() if tokens * rows * self.shape[1] >= 1 << 18 else 1
        kernel.packed_linear(
            reference, x.data_ptr(), tokens, not rounded, y.data_ptr(), scratch.data_ptr(), threads
        )
        return y

    def torch_product(self, x: Tensor, rounded: bool) -> Tensor | None:
        """The product by torch's int8 kernel, or by its int4 kernel, which rounds x to bfloat16."""
        is_whole = self.bits == 8 and self.scale.shape[1] == 1
        is_grouped = self.bits == 4 and self.shape[0] % 16 == 0 and self.group_size in (32, 64, 128, 256)
        if not rounded or not (is_whole or is_grouped):
            return None
        state = (self.codes.data_ptr(), self.codes._version, self.scale.data_ptr(), self.scale._version)
        if state != self.packed_from:
            self.packed, self.packed_from = self.packed_whole() if is_whole else self.packed_groups(), state
        codes, scales = self.packed
        if is_whole:
            most = x.abs().amax(-1, keepdim=True)
            inverse = torch.where(most >= 1e-30, most.new_tensor(127.0) / most, 0.0)
            return torch._int_mm(torch.round(x * inverse).to(torch.int8), codes) * scales * (most / 127)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), codes, self.group_size, scales
        )
        return y.to(torch.float32)

    def packed_whole(self) -> tuple[Tensor, ...]:
        """Integers [columns, rows] and a scale for each row."""
        return self.integers().T, self.scales()[:, 0]

    def packed_groups(self) -> tuple[Tensor, ...]:
        """Codes and scales in the form of torch's int4 kernel."""
        scales = torch.stack([self.scales(), torch.zeros_like(self.scales())], -1).to(torch.bfloat16)
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu((self.integers() + 8).to(torch.int32), 1)
        return codes, scales.transpose(0, 1).contiguous()

    def rows(self, indices: Tensor) -> Tensor:
        """The reals of some rows; IndexError for one that is not there."""
        flat, count = indices.reshape(-1).long(), prod(self.shape[:-1])
        if not self.is_traced() and bool(((flat < 0) | (flat >= count)).any()):
            raise IndexError(f"an index outside of the {count} rows of an embedding")
        blocks, lanes = flat // 16, flat % 16
        reals = self.to_reals(blocks)
        chosen = reals[torch.arange(len(flat), device=flat.device), lanes]
        return chosen.reshape(*indices.shape, self.shape[-1])

    def reals(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The reals of the whole weight."""
        reals = self.to_reals(slice(None)).flatten(0, 1)
        return reals[: prod(self.shape[:-1])].reshape(self.shape).to(dtype)

    def integers(self) -> Tensor:
        """The integers of the whole weight [rows, columns], as int8."""
        return self.unpacked(self.codes).flatten(2).flatten(0, 1)[: prod(self.shape[:-1])]

    def scales(self) -> Tensor:
        """The scales of the whole weight [rows, groups], as float32."""
        scales = self.scale.transpose(1, 2).flatten(0, 1)[: prod(self.shape[:-1])]
        return scales.to(torch.float32)

    def to_reals(self, blocks: Tensor | slice) -> Tensor:
        """Reals [blocks, 16, columns] of some blocks."""
        scales = self.scale[blocks].to(torch.float32).transpose(1, 2)
        return (self.unpacked(self.codes[blocks]) * scales[..., None]).flatten(2)

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

    def __getstate__(self) -> dict[str, Any]:  # any: what a module holds
        return {**self.__dict__, "matrix": None, "packed": (), "packed_from": ()}


class DecodedWeight(PackedWeight):
    """A packed weight with a zero point for each scale, or a table of levels: its reals are made in each call."""

    zero: Tensor
    levels: Tensor

    def __init__(
        self,
        *shape: int,
        bits: int,
        group_size: int,
        dtype: torch.dtype = torch.float32,
        levels: int = 0,
    ) -> None:
        super().__init__(*shape, bits=bits, group_size=group_size, dtype=dtype)
        self.has_levels = levels > 0
        if self.has_levels:
            self.register_buffer("levels", torch.zeros(levels))
        else:
            self.register_buffer("zero", torch.zeros(self.scale.shape, dtype=torch.int8))

    def product(self, x: Tensor, rounded: bool) -> Tensor | None:
        """None: no kernel multiplies with such codes."""
        return None

    def to_reals(self, blocks: Tensor | slice) -> Tensor:
        """Reals [blocks, 16, columns] of some blocks."""
        scales = self.scale[blocks].to(torch.float32).transpose(1, 2)[..., None]
        codes = self.unpacked(self.codes[blocks]).to(torch.int32)
        if self.has_levels:
            return (self.levels[codes + (1 << (self.bits - 1))] * scales).flatten(2)
        return ((codes - self.zero[blocks].transpose(1, 2)[..., None]) * scales).flatten(2)


def fake_quantize_per_token(x: Tensor) -> Tensor:
    """x rounded to int8 and back, with a scale for each row."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    most = wide.abs().amax(-1, keepdim=True)
    inverse = torch.where(most >= 1e-30, most.new_tensor(127.0) / most, 0.0)
    return (torch.round(wide * inverse) * (most / 127)).to(x.dtype)


@cache
def packed_linear_library() -> ctypes.CDLL | None:
    """The kernel of packed_linear.c; None, with a warning, without a C compiler."""
    kernel = compiled_library("packed_linear.c", "packed_linear.h")
    if kernel is None:
        return None
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    kernel.packed_linear_scratch.argtypes = [pointer, count, number]
    kernel.packed_linear_scratch.restype = count
    kernel.packed_linear.argtypes = [pointer, pointer, count, number, pointer, pointer, number]
    kernel.packed_linear.restype = None
    return kernel
