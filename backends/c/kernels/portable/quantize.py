"""Conversions between reals and integers, and between integers of different quantization parameters, in portable C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .....ir import DType
from .....ir.ops.quantize import rescale_between
from ...plan.layout import contiguous
from ...write.literal import C_TYPES, real
from ..base import Offers, Site, Work, kernel, offer
from ..rounding import rescaled, saturated

_BITS = {8, 16}


@dataclass(frozen=True)
class ConversionContext:
    """Template context; `value` is the C expression of the result from `v`."""

    title: str
    count: int
    element: str
    value: str


@kernel("quantize")
def quantize(site: Site) -> Offers:
    """x / scale, rounded half away from zero, plus the zero point, saturated; NaN gives the zero point."""
    q = site.output_quantization
    if not q.is_per_tensor or q.bits not in _BITS:
        return "only 8 or 16 bits with one scale per tensor"
    value = f"fxp_quantize{q.bits}(v / {real(q.scale[0])}, {q.zero_point[0]})"
    return _offer(site, "Quantization", "float", value, 25.0, in_place=q.bits == 8)


@kernel("dequantize")
def dequantize(site: Site) -> Offers:
    """(q - zero point) * scale."""
    q = site.quantization("x")
    if q.levels is not None:
        return "only integers, not codes of a codebook"
    if site.is_constant("x") and not q.is_per_tensor:
        return (
            "C reads stored weights in linear layers and embeddings: matrices of integers without zero points"
        )
    if not q.is_per_tensor or q.bits not in _BITS:
        return "only 8 or 16 bits with one scale per tensor"
    value = f"(float)(v - {q.zero_point[0]}) * {real(q.scale[0])}".replace("- -", "+ ")
    return _offer(site, "Dequantization", "int32_t", value, 10.0, in_place=False)


@kernel("requantize")
def requantize(site: Site) -> Offers:
    """The same reals with other quantization parameters, of any supported bit width."""
    qx, qy = site.quantization("x"), site.output_quantization
    if not {qx.bits, qy.bits} <= _BITS:
        return "only between 8 and 16 bits"
    value = saturated(rescaled(rescale_between(qx, qy), "v"), qy.qmin, qy.qmax)
    return _offer(site, "Requantization", "int32_t", value, 8.0, in_place=qx.bits == qy.bits)


@kernel("offset_binary")
def offset_binary(site: Site) -> Offers:
    """Bytes with the highest bit inverted."""
    value = f"({C_TYPES[site.output.dtype]})(v {'+' if site.output.dtype is DType.U8 else '-'} 128)"
    return _offer(site, "Offset binary", "int32_t", value, 4.0)


def _offer(
    site: Site, what: str, element: str, value: str, instructions: float, *, in_place: bool = True
) -> Offers:
    layout = site.at_hand("x") or contiguous(site.output.shape)
    count = layout.elements(site.output.shape)
    context = ConversionContext(f"{what} of {count} elements", count, element, value)
    overwrites = (0,) if in_place and not site.is_constant("x") else ()
    follows = {} if overwrites else narrowed(site)
    path, work = "portable/convert.c.j2", Work(results=instructions * count, code_bytes=60)
    return offer(
        site,
        path,
        context,
        work,
        reads={"x": layout},
        writes=(layout,),
        overwrites=overwrites,
        follows=follows,
        variant=site.node.op.name,
    )


def narrowed(site: Site) -> Mapping[int, int]:
    """`Offer.follows` of a kernel that goes over the elements of x: bytes from wider ones are written behind the read.

    A byte may alias what is still to be read; results of other types may not, in C. Nothing on computers: their
    compilers make vector code of loops over what does not overlap.
    """
    if site.machine.is_host:
        return {}
    wider = site.type("x").dtype.bytes > site.output.dtype.bytes and site.output.dtype is DType.I8
    return {0: 0} if wider and not site.is_constant("x") else {}
