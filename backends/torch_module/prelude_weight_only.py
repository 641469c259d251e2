"""Prelude of emitted weight-only modules; the source of these definitions is copied into the emitted file.

A weight is stored in the packed form of `packed_linear.c`, a file next to the emitted one. Linear layers call the
kernel of that file, which is compiled at its first use. Without a C compiler they use torch's own integer products
where these fit, else the weight is dequantized at each call.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


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

    Rows, all dimensions but the last, are packed in blocks of 16: codes [blocks, groups, steps of 16 columns, bytes]
    and scales [blocks, groups, 16] of `dtype`.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, *shape: int, bits: int, group_size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.bits, self.group_size = shape, bits, group_size
        blocks, groups, steps = -(-prod(shape[:-1]) // 16), shape[-1] // group_size, -(-group_size // 16)
        self.register_buffer("codes", torch.zeros(blocks, groups, steps, 32 * bits, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(blocks, groups, 16, dtype=dtype))
        self.matrix: PackedMatrix | None = None
        self.packed: tuple[Tensor, ...] | None = None

    def linear(self, x: Tensor, bias: Tensor | None = None, *, rounded: bool = False) -> Tensor:
        """x @ weight^T + bias; `rounded`: x is rounded to int8 with a scale for each row (token) before."""
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            return nn.functional.linear(
                fake_quantize_per_token(x) if rounded else x, self.reals(x.dtype), bias
            )
        rows = x.reshape(-1, x.shape[-1])
        y = self.product(rows.to(torch.float32), rounded) if x.device.type == "cpu" else None
        if y is None:
            return nn.functional.linear(
                fake_quantize_per_token(x) if rounded else x, self.reals(x.dtype), bias
            )
        y = y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
        return y if bias is None else y + bias

    def product(self, x: Tensor, rounded: bool) -> Tensor | None:
        """x [tokens, columns] @ weight^T by the kernel, or by torch without a compiler; None where neither fits."""
        kernel = packed_linear_library()
        if kernel is None:
            return self.torch_product(x, rounded)
        matrix, tokens, rows = self.matrix, len(x), self.shape[0]
        if matrix is None or matrix.codes != self.codes.data_ptr() or matrix.scales != self.scale.data_ptr():
            self.matrix = matrix = PackedMatrix(
                self.codes.data_ptr(),
                self.scale.data_ptr(),
                rows,
                self.shape[1],
                self.group_size,
                self.bits,
                (torch.float32, torch.float16, torch.bfloat16).index(self.scale.dtype),
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
        """The product by torch's int8 kernel, or by its int4 kernel, which rounds x to bfloat16; both pack once."""
        if not rounded:
            return None
        if self.bits == 8 and self.scale.shape[1] == 1:
            if self.packed is None:
                self.packed = (self.integers().T, self.scales()[:, 0])
            most = x.abs().amax(-1, keepdim=True)
            inverse = torch.where(most >= 1e-30, 127 / most, 0.0)
            codes = torch.round(x * inverse).to(torch.int8)
            return torch._int_mm(codes, self.packed[0]) * self.packed[1] * (most / 127)
        if self.bits == 4 and self.shape[0] % 16 == 0 and self.group_size in (32, 64, 128, 256):
            if self.packed is None:
                shifted = (self.integers() + 8).to(torch.int32)
                scales = torch.stack([self.scales(), torch.zeros_like(self.scales())], -1).to(torch.bfloat16)
                codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(shifted, 1)
                self.packed = (codes, scales.transpose(0, 1).contiguous())
            product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x.to(torch.bfloat16), self.packed[0], self.group_size, self.packed[1]
            )
            return product.to(torch.float32)
        return None

    def rows(self, indices: Tensor) -> Tensor:
        """The reals of some rows."""
        flat = indices.reshape(-1)
        blocks, lanes = flat // 16, flat % 16
        reals = self.to_reals(self.codes[blocks], self.scale[blocks])
        return reals[torch.arange(len(flat), device=flat.device), lanes].reshape(*indices.shape, -1)

    def reals(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The reals of the whole weight."""
        reals = self.to_reals(self.codes, self.scale).flatten(0, 1)
        return reals[: prod(self.shape[:-1])].reshape(self.shape).to(dtype)

    def integers(self) -> Tensor:
        """The integers of the whole weight [rows, columns], as int8."""
        return self.unpacked(self.codes).flatten(2).flatten(0, 1)[: prod(self.shape[:-1])]

    def scales(self) -> Tensor:
        """The scales of the whole weight [rows, groups], as float32."""
        scales = self.scale.transpose(1, 2).flatten(0, 1)[: prod(self.shape[:-1])]
        return scales.to(torch.float32)

    def to_reals(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Reals [blocks, 16, columns] of some blocks."""
        scales = scale.to(torch.float32).transpose(1, 2)
        return (self.unpacked(codes) * scales[..., None]).flatten(2)

    def unpacked(self, codes: Tensor) -> Tensor:
        """Integers [blocks, 16, groups, group_size] of some blocks, as int8."""
        blocks, groups, steps, _ = codes.shape
        planes, at, used = [], 0, 0
        while used < self.bits:
            width = next(width for width in (8, 4, 2, 1) if width <= self.bits - used)
            size = 32 * width
            stored = codes[..., at : at + size]
            if width == 1:
                parts = stored.reshape(blocks, groups, steps, 4, 8, 1) >> torch.arange(8).to(codes)
            else:
                shifts = torch.arange(0, 8, width).to(codes)
                parts = stored.reshape(blocks, groups, steps, -1, 1, 64) >> shifts[:, None]
            plane = (parts & ((1 << width) - 1)).reshape(blocks, groups, steps, 4, 16, 4)
            planes.append(plane << used)
            at, used = at + size, used + width
        codes = sum(planes[1:], planes[0])
        levels = (codes - (1 << (self.bits - 1))).view(torch.int8)
        columns = levels.permute(0, 4, 1, 2, 3, 5).reshape(blocks, 16, groups, steps * 16)
        return columns[..., : self.group_size]

    def __getstate__(self) -> dict[str, Any]:  # any: what a module holds
        return {**self.__dict__, "matrix": None, "packed": None}

    def _load_from_state_dict(self, *arguments: Any) -> None:  # any: those of nn.Module
        self.packed = None
        super()._load_from_state_dict(*arguments)


def fake_quantize_per_token(x: Tensor) -> Tensor:
    """x rounded to int8 and back, with a scale for each row."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    most = wide.abs().amax(-1, keepdim=True)
    inverse = torch.where(most >= 1e-30, 127 / most, 0.0)
    return (torch.round(wide * inverse) * (most / 127)).to(x.dtype)


@cache
def packed_linear_library() -> ctypes.CDLL | None:
    """The kernel of packed_linear.c, compiled for this processor; None, with a warning, without a C compiler.

    CC names the compiler (default: cc). The library is kept in ~/.cache/fxpress, or below XDG_CACHE_HOME.
    """
    source = Path(globals().get("__file__", "model.py")).with_name("packed_linear.c")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    flags = ["-O3", "-ffp-contract=off", "-shared", "-fPIC", native]
    try:
        probe = subprocess.run(
            [*compiler, native, "-dM", "-E", "-x", "c", os.devnull], check=True, capture_output=True
        )
        key = hashlib.sha256(b"\0".join([source.read_bytes(), probe.stdout, " ".join(flags).encode()]))
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxpress"
        library = folder / f"packed_linear-{key.hexdigest()[:16]}.so"
        if not library.exists():
            library = compiled(compiler, flags, source, library)
        kernel = ctypes.CDLL(str(library))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"packed_linear.c was not compiled, so that linear layers are slower: {error}", stacklevel=2
        )
        return None
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    kernel.packed_linear_scratch.argtypes = [pointer, count, number]
    kernel.packed_linear_scratch.restype = count
    kernel.packed_linear.argtypes = [pointer, pointer, count, number, pointer, pointer, number]
    kernel.packed_linear.restype = None
    return kernel


def compiled(compiler: list[str], flags: list[str], source: Path, library: Path) -> Path:
    """`library` compiled from `source`, with OpenMP where the compiler has it; in a folder of its own if need be."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=library.parent)) / library.name
    except OSError:
        library = made = Path(tempfile.mkdtemp()) / library.name
    command = [*compiler, *flags, "-o", str(made), str(source), "-lm"]
    if subprocess.run([*command, "-fopenmp"], capture_output=True, check=False).returncode:
        subprocess.run(command, capture_output=True, check=True)
    if made != library:
        made.replace(library)
        made.parent.rmdir()
    return library
