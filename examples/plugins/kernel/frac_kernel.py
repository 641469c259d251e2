"""A kernel in portable C for the operator `frac`: elements one by one, for any memory layout."""

import numpy as np

from fxpress.backends.c.kernels import (
    Call,
    Constant,
    Function,
    Offer,
    Offers,
    Site,
    Work,
    contiguous,
)
from fxpress.ir.ops import Elementwise

_FLOAT = """\
/* frac of {count} elements. */
FXP_NOINLINE void {name}(const float *x, float *y)
{{
    for (int32_t i = 0; i < {count}; i++) {{
        y[i] = x[i] - truncf(x[i]);
    }}
}}
"""
_TABLE = """\
/* Table of frac over {count} elements. */
FXP_NOINLINE void {name}(const int8_t *x, int8_t *y, const int8_t *table)
{{
    for (int32_t i = 0; i < {count}; i++) {{
        y[i] = table[x[i] + 128];
    }}
}}
"""


def portable(site: Site) -> Offers:
    """An expression on floats, a table on int8."""
    op, layout = site.node.op, site.at_hand("x") or contiguous(site.output.shape)
    assert isinstance(op, Elementwise)
    count = layout.elements(site.output.shape)
    text, instructions, constants = _FLOAT, 12.0, {}
    if site.is_integer:
        if {site.quantization("x").bits, site.output_quantization.bits} != {8}:
            return "the table is one of int8"
        text, instructions, constants = _TABLE, 5.0, {"table": 256}
    function = Function(
        "frac",
        ("frac", text, count),
        lambda name: text.format(name=name, count=count),
        headers=("arithmetic.h",) if site.is_integer else ("real.h",),
        uses_math=not site.is_integer,
    )

    def build() -> tuple[Call, ...]:
        if not constants:
            return (Call(function, reads=(0,)),)
        table = op.table(site.type("x"), site.output).numpy().astype(np.int8)
        return (Call(function, reads=(0,), constants=(Constant("table", table),)),)

    work = Work(results=instructions * count, code_bytes=60)
    return Offer("frac_portable", (layout,), (layout,), work, (function.template,), build, constants)
