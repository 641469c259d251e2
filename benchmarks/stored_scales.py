"""Bits and relative errors of a weight for each form in which its scales are stored.

    python benchmarks/stored_scales.py

The weight is [4096, 4096], normally distributed with a standard deviation of its own for each row, from 0.5 to 2. Bits
are those of codes, scales and levels, for each weight; errors are the root of squared error over squared size.
"""

from __future__ import annotations

import torch

from fxpress.compiler import text_table
from fxpress.ir import Builder, Graph, TensorType
from fxpress.ir.ops import Linear
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions

SIZE = 4096
FORMS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("nf4", 64, ("float32", "float16", "double")),
    ("int4", 64, ("float32", "float16", "double")),
    ("int8", 32, ("float32", "float16", "double")),
    ("mxfp4", 32, ("float16", "e8m0")),
    ("fp8_e4m3", 32, ("float16", "e8m0")),
)


def graph() -> Graph:
    """A linear layer."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator)
    weight *= 2 ** (2 * torch.rand(SIZE, 1, generator=generator) - 1)
    builder = Builder()
    x = builder.input("x", TensorType((1, SIZE)))
    return builder.build([builder.add(Linear(), x, builder.constant("weight", weight))])


def main() -> None:
    """Prints the table."""
    layer, rows = graph(), []
    for weights, group, forms in FORMS:
        for scales in forms:
            options = WeightOnlyOptions(weights=weights, group_size=group, scales=scales)
            (row,) = weight_only(layer, options).report.table("weights").rows
            bits, error = 8 * float(row[4] or 0) / SIZE**2, float(row[5] or 0)
            rows.append((weights, str(group), scales, f"{bits:.3f}", f"{error:.5f}"))
    print(text_table(("weights", "group", "scales", "bits", "relative_error"), rows))


if __name__ == "__main__":
    main()
