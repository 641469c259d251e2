"""`fxpress ops`: every operator, what becomes it, and where it can run."""

from __future__ import annotations

from ..backends.c.kernels import kernels
from ..ir import OPERATORS
from ..ir.ops import LOWERINGS, Quantized
from .table import text_table

_INTEGER = {Quantized.NEVER: "-", Quantized.COMPUTE: "computes", Quantized.MOVE: "moves"}


def operator_table() -> str:
    """Operators by name: integer form, C kernels, meaning."""
    in_c = kernels()
    rows = [
        (name, _INTEGER[op.quantized], "yes" if name in in_c else "-", (op.__doc__ or "").splitlines()[0])
        for name, op in sorted(OPERATORS.items())
    ]
    footer = f"{len(OPERATORS)} operators; {len(LOWERINGS)} aten overloads become them, all others torch_call"
    return f"{text_table(('operator', 'on integers', 'in C', 'meaning'), rows)}\n\n{footer}"
