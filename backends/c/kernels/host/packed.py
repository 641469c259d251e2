"""Linear layers and embeddings with stored weights, by the kernel of `packed_linear.c`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from .....ir import CodedNumbers
from ....packed_linear import SCALE_TYPES, SOURCE, PackedForm, pack_codes, pack_scales
from ...plan.layout import contiguous
from ...plan.stored_weights import PackedEmbedding, PackedLinear
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..layouts import row_layouts
from ..rounding import clamped

ELSEWHERE = "weights stored as integers between float activations are supported only on a computer"
"""Reason why other targets have no such kernel."""
_CODED_SCALES = (
    "scales stored as codes have no kernel in C; write `scales: float16` in the options of weight_only"
)


@dataclass(frozen=True)
class PackedLinearContext:
    """Template context: sizes of the matrix and the C expression of a result, if `y` is not only the product."""

    title: str
    form: PackedForm
    scale_type: int
    tokens: int
    is_float: int
    value: str


@dataclass(frozen=True)
class PackedEmbeddingContext:
    """Template context."""

    title: str
    form: PackedForm
    scale_type: int
    count: int


@kernel("packed_linear")
def linear(site: Site) -> Offers:
    """Activations, rounded to int8 or in float, times packed integers; then bias, residual and bounds."""
    op, form = site.node.op, PackedForm.of(site.type("weight"))
    assert isinstance(op, PackedLinear) and form is not None
    if not site.machine.is_host:
        return ELSEWHERE
    if isinstance(site.quantization("weight").scale, CodedNumbers):
        return _CODED_SCALES
    if site.has("bias") and not site.is_constant("bias"):
        return "the bias must be a constant"
    tokens = prod(site.output.shape[:-1])
    layouts = row_layouts(site)
    value = "y[i]"
    value += " + bias[r]" if site.has("bias") else ""
    value += " + residual[i]" if site.has("residual") else ""
    value = clamped(value, op.clamp)
    context = PackedLinearContext(
        f"Linear layer of {form.bits}-bit weights, {tokens} x {form.columns} to {form.rows}",
        form,
        SCALE_TYPES.index(form.scale_dtype),
        tokens,
        int(not op.is_rounded),
        "" if value == "y[i]" else value,
    )
    bias = {"bias": site.array("bias")} if site.has("bias") else {}
    return offer(
        site,
        "host/packed_linear.c.j2",
        context,
        Work(float(site.node.macs), code_bytes=100),
        reads=site.layer_operands(layouts),
        writes=layouts[1:],
        constants=_sizes(form),
        pack=_packing(site, form),
        tables=bias,
        scratch="uint8_t",
        scratch_bytes=form.scratch_bytes(tokens, is_float=not op.is_rounded),
        sources=(SOURCE,),
    )


@kernel("packed_embedding")
def embedding(site: Site) -> Offers:
    """Rows of packed integers as reals; an index outside of the table selects the first or the last row."""
    form = PackedForm.of(site.type("weight"))
    assert isinstance(site.node.op, PackedEmbedding) and form is not None
    if not site.machine.is_host:
        return ELSEWHERE
    if isinstance(site.quantization("weight").scale, CodedNumbers):
        return _CODED_SCALES
    count = site.type("indices").numel
    title = f"Lookup of {count} of {form.rows} rows of {form.columns}, stored in {form.bits} bits"
    return offer(
        site,
        "host/packed_embedding.c.j2",
        PackedEmbeddingContext(title, form, SCALE_TYPES.index(form.scale_dtype), count),
        Work(float(count * form.columns), code_bytes=100),
        reads={"indices": contiguous(site.type("indices").shape)},
        writes=(contiguous(site.output.shape),),
        constants=_sizes(form),
        pack=_packing(site, form),
        sources=(SOURCE,),
    )


def _sizes(form: PackedForm) -> Mapping[str, int]:
    scale_bytes = prod(form.scales_shape) * form.scale_dtype.itemsize
    return {"weights": prod(form.codes_shape), "scales": scale_bytes}


def _packing(site: Site, form: PackedForm) -> Callable[[], list[AnyArray]]:
    def pack() -> list[AnyArray]:
        codes = pack_codes(torch.from_numpy(site.array("weight")), form.bits, form.group_size)
        scales = pack_scales(site.quantization("weight").scale.tensor(form.scale_dtype), form.rows)
        is_wide = form.scale_dtype is torch.float32
        stored = scales.numpy() if is_wide else scales.view(torch.int16).numpy().view(np.uint16)
        return [codes.numpy().reshape(-1), stored.reshape(-1)]

    return pack
