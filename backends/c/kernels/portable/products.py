"""Integer convolutions and linear layers in portable C as products of rows: two channels, and two rows, at a time.

A window is gathered into one row; the windows of a pointwise convolution are already rows. Cores with few registers
(armv6-m) compute one row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...write.literal import c_type
from ..base import AnyArray, Offers, Site, Work, kernel, offer
from ..low_bits import BYTE, Fields
from ..rounding import RowFinish, bias_bytes, folded_bias, layer_fixed_point, row_finish, scale_tables
from ..wide_sums import PORTABLE_ONLY, WIDE_WEIGHTS, part_size, sums_fit
from .gathered_rows import ROWS, Gather, LayerRows, Row, row_parameters, rows_of

_UNROLLED = 4
# Instructions of a product, by rows, and of a result.
_PRODUCT, _RESULT = {2: 2.3, 1: 3.2}, 14.0

# Instructions of a result that is summed in parts, and of a part.
_ADDED_UP, _PER_PART = 20.0, 8.0

# Additional instructions of a product with a weight of fewer than 8 bits.
_UNPACKING = {2: 0.3, 1: 0.6}


@dataclass(frozen=True, slots=True)
class Tap:
    """One step of the inner loop: the location of its operand, and the weights of two channels, as C expressions."""

    place: str
    even: str
    odd: str


@dataclass(frozen=True)
class ProductContext:
    """Template context."""

    title: str
    row_count: int
    depth: int
    channels: int
    element: str
    result: str
    rows: tuple[Row, ...]
    unrolled: tuple[Tap, ...]
    pair_stride: int
    last: str
    finish: RowFinish
    part: int  # products that are summed in int32; 0 if int32 holds all of them
    bias: str  # C type
    weight: str  # C type
    gather: Gather | None = None

    arrays = "weights, bias"

    @property
    def template(self) -> str:
        """The template of rows times channels."""
        return "portable/products_wide_rows.c.j2" if self.part else "portable/products_rows.c.j2"

    @property
    def kind(self) -> str:
        """Element type of the operand, for comments."""
        return self.element.removesuffix("_t")

    @property
    def paired(self) -> int:
        """Channels that are computed two at a time."""
        return self.channels - self.channels % 2

    @property
    def odd(self) -> bool:
        """True if one channel remains."""
        return self.channels % 2 == 1

    @property
    def rows_text(self) -> str:
        """Number of rows, as text."""
        return "One row" if len(self.rows) == 1 else "Two rows"

    @property
    def row_parameters(self) -> str:
        """The C parameters for rows and results."""
        return row_parameters(self.rows, self.element, self.result)


@kernel("conv", "linear")
def products(site: Site) -> Offers:
    """A linear layer, or a convolution of one group."""
    if not site.is_integer:
        return "products of rows are for integers"
    if site.weights_refusal:
        return site.weights_refusal
    rows = rows_of(site)
    return rows if isinstance(rows, str) else _offer(site, rows, _product(site, rows))


def _product(site: Site, rows: LayerRows) -> ProductContext:
    """The context of rows, computed two at a time if there are two."""
    computed, taps, pair_stride, last = _inner_loop(site, rows.depth, rows.together)
    part = 0 if sums_fit(site) else part_size(site, _rows(site), multiple=len(taps))
    residual = c_type(site.type("residual").dtype) if site.has("residual") else ""
    return ProductContext(
        rows.title,
        rows.count,
        rows.depth,
        rows.channels,
        *(c_type(site.type("x").dtype), c_type(site.output.dtype)),
        computed,
        taps,
        pair_stride,
        last,
        row_finish(layer_fixed_point(site), residual=residual, wide=part > 0),
        part,
        "int64_t" if bias_bytes(site, wide=part > 0) > 4 * rows.channels else "int32_t",
        c_type(site.type("weight").dtype),
        rows.gather,
    )


def _rows(site: Site) -> AnyArray:
    """Weights as [channels, taps], in the order of an image that is channels last."""
    weights = site.array("weight")
    channels, inputs = weights.shape[:2]
    return weights.reshape(channels, inputs, -1).transpose(0, 2, 1).reshape(channels, -1)


def _inner_loop(site: Site, depth: int, row_count: int) -> tuple[tuple[Row, ...], tuple[Tap, ...], int, str]:
    """Rows at a time, taps of an iteration, the distance between pairs of channels, the weight of a remaining
    channel.
    """
    single = row_count == 1 or site.machine.few_registers
    bits = site.quantization("weight").bits
    unroll = 1 if site.machine.few_registers and bits != 2 else _UNROLLED
    while depth % unroll:
        unroll //= 2
    rows = ROWS[:1] if single else ROWS
    if bits >= BYTE:
        places = ("i", *(f"i + {i}" for i in range(1, unroll)))
        return rows, tuple(Tap(i, f"w[{i}]", f"w[{depth} + {i}]") for i in places), 2 * depth, "w[i]"
    pair = Fields(bits, together=2)
    aligned = unroll % pair.in_byte == 0
    taps = tuple(
        Tap(
            f"i + {i}" if i else "i",
            pair.tap("i", i, channel=0, aligned=aligned),
            pair.tap("i", i, channel=1, aligned=aligned),
        )
        for i in range(unroll)
    )
    return rows, taps, pair.row_bytes(depth), Fields(bits).tap("i", 0)


def _packed(weights: AnyArray, bits: int) -> AnyArray:
    """Weights in the form of the inner loop: channels in pairs, a remaining one alone."""
    if bits >= BYTE:
        return weights.copy()
    paired = len(weights) - len(weights) % 2
    parts = [Fields(bits, together=2).pack(weights[:paired]), Fields(bits).pack(weights[paired:])]
    return np.concatenate([part.reshape(-1) for part in parts])


def _offer(site: Site, rows: LayerRows, context: ProductContext) -> Offers:
    bits, layouts = site.quantization("weight").bits, rows.layouts(site)
    if context.part and bits > BYTE:
        return WIDE_WEIGHTS
    gather = 0.0 if rows.gather is None else rows.gather.instructions
    patches = 0 if rows.gather is None else len(context.rows) * context.depth
    outputs = context.row_count * context.channels
    per_mac, per_output = _PRODUCT[len(context.rows)], _RESULT
    per_output += (context.part > 0) * (_ADDED_UP + _PER_PART * context.depth / max(context.part, 1))
    per_mac += (bits < BYTE) * _UNPACKING[len(context.rows)]
    products = per_mac * context.depth * outputs
    single = context.depth if bits > BYTE else Fields(bits).row_bytes(context.depth)
    stored = context.paired // 2 * context.pair_stride + context.odd * single
    weights = {"weights": stored * site.type("weight").dtype.bytes}
    return offer(
        site,
        f"portable/products_{rows.template}.c.j2",
        context,
        Work(products, gather * context.row_count, per_output * outputs, 420 if patches else 290),
        kernel="product_portable",
        reads=site.layer_operands(layouts),
        writes=layouts[1:],
        constants=weights | {"bias": bias_bytes(site, wide=context.part > 0)},
        pack=lambda: [_packed(_rows(site), bits), folded_bias(site, site.array("weight"))],
        tables=scale_tables(layer_fixed_point(site)),
        scratch=context.element if patches else "",
        scratch_bytes=patches * site.type("x").dtype.bytes,
        overwrites=site.overwritten_residual,
        follows=rows.follows(site, len(context.rows)),
        limitation=PORTABLE_ONLY if context.part else "",
        variant=" ".join(["two rows"] * (len(context.rows) > 1) + ["wide sums"] * (context.part > 0)),
    )
