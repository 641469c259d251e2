"""Linear layer whose weights are mostly zero, in portable C: reads them as Huffman codes and skips the zeros."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .....ir.ops.linear import Linear
from ...plan.image import image_of
from ...plan.sparse_rows import MOST_ZEROS, TABLES_BYTES, SparseRows
from ..base import Offers, Site, Work, kernel, offer
from ..layouts import row_layouts
from ..low_bits import BYTE
from ..rounding import Finish, folded_bias, integer_finish, layer_fixed_point, scale_tables
from ..wide_sums import sums_fit

# Instructions of a product beside its codes, of a result, and bytes of code.
_PRODUCT, _RESULT, _CODE_BYTES = 8.0, 22.0, 420


@dataclass(frozen=True)
class SparseLinearContext:
    """Template context."""

    title: str
    channels: int
    depth: int
    values_at: int
    codes_at: int
    most_zeros: int
    finish: Finish
    uses_place: bool


@kernel("linear")
def sparse_linear(site: Site) -> Offers:
    """A linear layer of one row, where codes of the nonzero weights are smaller than codes of all bytes."""
    assert isinstance(site.node.op, Linear)
    if not site.coded:
        return "the weights are not coded"
    if not site.is_integer or site.weights_refusal:
        return site.weights_refusal or "codes are of integers"
    weights = site.array("weight")
    channels, depth = weights.shape
    bits = site.quantization("weight").bits
    if site.output.numel != channels:
        return "codes of nonzero weights are read for one row of inputs"
    if bits > BYTE or not weights.any() or not sums_fit(site):
        return "codes of nonzero weights are of at most 8 bits, and their sums of 32"
    coded = SparseRows(weights)
    if coded.bytes >= min(image_of(weights).bytes, bits * weights.size // BYTE):
        return "codes of nonzero weights are not smaller"
    fixed = layer_fixed_point(site)
    title = f"Linear layer, {depth} to {channels}, {coded.nonzero} nonzero weights"
    context = SparseLinearContext(
        title,
        channels,
        depth,
        coded.values_at,
        coded.codes_at,
        MOST_ZEROS,
        integer_finish(fixed),
        fixed.residual is not None,
    )
    layouts = row_layouts(site)
    made = offer(
        site,
        "portable/sparse_linear.c.j2",
        context,
        Work(
            coded.code_instructions + _PRODUCT * coded.nonzero,
            coded.table_instructions,
            _RESULT * channels,
            _CODE_BYTES,
        ),
        kernel="sparse_linear",
        reads=site.layer_operands(layouts),
        writes=layouts[1:],
        constants={"weights": coded.bytes, "bias": 4 * channels},
        pack=lambda: [coded.halfwords, folded_bias(site, weights)],
        tables=scale_tables(fixed),
        scratch="uint16_t",
        scratch_bytes=TABLES_BYTES,
        overwrites=site.overwritten_residual,
        headers=("arithmetic.h", "huffman.h"),
    )
    return replace(made, replaced_bytes=bits * weights.size // BYTE)
