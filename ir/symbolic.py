"""Conversion between sizes and symbolic integers of torch, which infers shapes that depend on dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from math import prod
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import GuardSource, Source
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from .errors import ShapeError
from .sizes import Dimension, Size, evaluated, largest, smallest

Symbols = Mapping[sympy.Symbol, int]
"""Sizes by the symbols of the tracer."""

NO_SYMBOLS: Symbols = MappingProxyType({})


@contextmanager
def symbolic_mode(dimensions: Mapping[str, Dimension]) -> Iterator[Symbolic]:
    """Fake tensor mode with symbolic sizes for these dimensions; yields the converter between the two."""
    env = ShapeEnv()
    symbols: dict[sympy.Symbol, int] = {}
    sizes: dict[str, torch.SymInt] = {}
    for dimension, hint in zip(dimensions.values(), traced_sizes(dimensions), strict=True):
        source = _Origin(f"dimension_{dimension.name}")
        symbol = env.create_symbol(hint, source, DimDynamic.DYNAMIC, None, do_not_specialize_zero_one=True)
        symbols[symbol] = dimension.size
        found = env.create_symintnode(symbol, hint=hint, source=source)
        assert isinstance(found, torch.SymInt)
        sizes[dimension.name] = found
    with FakeTensorMode(shape_env=env), enable_python_dispatcher():
        yield Symbolic(sizes, symbols)


class Symbolic:
    """Conversion of sizes to symbolic integers and back."""

    def __init__(self, sizes: Mapping[str, torch.SymInt], symbols: Symbols) -> None:
        self._sizes, self._symbols = sizes, symbols

    def given(self, size: int) -> Any:  # any: an integer, or a symbolic one
        """The symbolic integer of a size."""
        return evaluated(size, self._sizes) if isinstance(size, Size) else size

    def size(self, given: Any) -> int:  # any: an integer, or a symbolic one
        """The size of a symbolic integer."""
        return size_of(given, self._symbols)


def traced_sizes(
    dimensions: Mapping[str, Dimension], avoided: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """A size for each dimension to trace with; all different and none of `avoided`, if the ranges allow.

    Torch treats the sizes 0 and 1 as fixed, and two equal sizes as one. Primes below the example's size are rarely
    sizes of the model itself.
    """
    chosen: list[int] = []
    for dimension in dimensions.values():
        high = int(min(dimension.largest, 2 * dimension.example + 64))
        low = max(dimension.low, 2)
        below = [n for n in range(min(dimension.example, high), low - 1, -1)]
        allowed = [*below, *range(max(dimension.example + 1, low), high + 1)]
        free = [n for n in allowed if n not in avoided and n not in chosen]
        best = next((n for n in free if n > 2 and sympy.isprime(n)), None)
        chosen.append(best or next(iter([*free, *allowed]), dimension.example))
    return tuple(chosen)


def sizes_to_check(dimensions: Mapping[str, Dimension]) -> list[dict[str, int]]:
    """Two calls with sizes other than the example's: different sizes for all dimensions, and the least ones."""
    if not dimensions:
        return []
    examples = {name: d.example for name, d in dimensions.items()}
    others = traced_sizes(dimensions, frozenset(examples.values()))
    calls = [
        dict(zip(dimensions, others, strict=True)),
        {name: max(d.low, 1) for name, d in dimensions.items()},
    ]
    return [call for i, call in enumerate(calls) if call not in (examples, *calls[:i])]


def resized(tensor: torch.Tensor, axes: Mapping[int, int]) -> torch.Tensor:
    """A tensor with other sizes along some axes: elements are repeated, or the first ones kept."""
    for axis, size in axes.items():
        if size == tensor.shape[axis]:
            continue
        tensor = tensor.index_select(axis, torch.arange(size) % max(tensor.shape[axis], 1))
    return tensor


def size_of(given: Any, symbols: Symbols) -> int:  # any: an integer, or a symbolic one
    """Size of a symbolic integer of torch; ShapeError if no size expresses it."""
    return int(given) if isinstance(given, int) else _converted(given.node.expr, symbols)


@dataclass(frozen=True)
class _Origin(Source):
    """Origin of a symbol, as torch requires it: a dimension."""

    label: str

    @property
    def guard_source(self) -> GuardSource:
        return GuardSource.CONSTANT

    @property
    def _name_template(self) -> str:
        return self.label


def _converted(expression: Any, symbols: Symbols) -> int:  # any: sympy has no types
    if isinstance(expression, sympy.Symbol) and expression in symbols:
        return symbols[expression]
    if isinstance(expression, sympy.Integer):
        return int(expression)
    if isinstance(expression, sympy.Pow) and isinstance(expression.exp, sympy.Integer) and expression.exp > 0:
        return prod([_converted(expression.base, symbols)] * int(expression.exp))
    combine = _COMBINED.get(type(expression).__name__)
    if combine is None:
        raise ShapeError(
            f"the size {expression} is not a polynomial, quotient, minimum or maximum of dimensions"
        )
    return reduce(combine, (_converted(part, symbols) for part in expression.args))


_COMBINED: Mapping[str, Any] = {  # any: functions of two sizes
    "Add": lambda a, b: a + b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "Max": largest,
    "Min": smallest,
}
