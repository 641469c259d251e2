"""Operators: loading of those of packages, and `fxpress ops`, which lists all with where they can run."""

from __future__ import annotations

from functools import cache

from ..backends.c.kernels import kernels_of
from ..ir import OPERATORS
from ..ir.ops import LOWERINGS, Quantized
from ..specs import plugins
from ..specs.plugins import PluginError
from .table import text_table

_INTEGER = {Quantized.NEVER: "-", Quantized.COMPUTE: "computes", Quantized.MOVE: "moves"}


@cache
def load_operators() -> tuple[str, ...]:
    """Loads the operators of packages, once; returns the reasons why some cannot be used."""
    failures = []
    for name in plugins.OPERATORS.names():
        try:
            plugins.OPERATORS.load(name)
        except PluginError as err:
            failures.append(err.message)
    return tuple(failures)


def operator_table() -> str:
    """Operators by name: integer form, C kernels, meaning."""
    failures = load_operators()
    rows = [
        (
            name,
            _INTEGER[op.quantized],
            "yes" if kernels_of(name) else "-",
            (op.__doc__ or "").splitlines()[0],
        )
        for name, op in sorted(OPERATORS.items())
    ]
    footer = f"{len(OPERATORS)} operators; {len(LOWERINGS)} aten overloads become them, all others torch_call"
    table = text_table(("operator", "on integers", "in C", "meaning"), rows)
    return "\n\n".join([table, footer, *failures])
