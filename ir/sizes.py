"""Sizes over named dimensions: integers for the example's shapes, with an expression over the dimensions of a call.

A `Size` is an `int`, and arithmetic on sizes gives sizes. Its expression is a polynomial with integer coefficients over
dimensions, floor divisions, maxima and minima, in a normal form:

    (k q + r) // k  =  q + r // k,     ((x // a) + c) // b  =  (x + c a) // (a b),     x % k  =  x - k (x // k)

Two sizes are equal if their expressions are, and none equals a plain number: a size that happens to be 1 in the example
does not broadcast. Order compares the example's sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from keyword import iskeyword
from math import gcd, inf, prod
from operator import floordiv
from typing import Any, TypeVar

import torch

from .errors import ShapeError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dynamic dimension: its size in the example, and its range of allowed sizes."""

    name: str
    example: int
    low: int = 1
    high: int | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or iskeyword(self.name):
            raise ShapeError(f"dimension {self.name!r}: the name must be a Python identifier")
        if self.low < 0 or not self.low <= self.example <= self.largest:
            raise ShapeError(
                f"dimension {self.name}: the example's size {self.example} is not in {self.span}"
            )

    @property
    def largest(self) -> float:
        """The largest allowed size; infinite without a limit."""
        return inf if self.high is None else self.high

    @property
    def span(self) -> str:
        """The allowed sizes as text, `2..512` or `1..`."""
        return f"{self.low}..{'' if self.high is None else self.high}"

    @property
    def size(self) -> Size:
        """The size of the dimension itself."""
        size = _made({(self,): 1})
        assert isinstance(size, Size)
        return size


@dataclass(frozen=True, slots=True)
class Operation:
    """A floor division (`//`), maximum (`max`) or minimum (`min`) that is not a polynomial."""

    kind: str
    left: int
    right: int

    def apply(self, left: Any, right: Any) -> Any:  # any: integers, sizes, or symbolic integers of torch
        """The operation on other operands."""
        return _APPLY[self.kind](left, right)


Atom = Dimension | Operation
Terms = Mapping[tuple[Atom, ...], int]
"""Coefficient of each product of atoms; the empty product has the constant."""


class Size(int):
    """An integer that is a function of dimensions; see the module docstring."""

    terms: Terms
    key: frozenset[tuple[tuple[Atom, ...], int]]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Size):
            return self.key == other.key
        return False if isinstance(other, int | float) else NotImplemented

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"${{{text_of(self)}}}"

    __str__ = __repr__

    def __neg__(self) -> int:
        return self * -1

    def __pos__(self) -> Size:
        return self

    def __abs__(self) -> int:
        return self if int(self) >= 0 else -self

    def __add__(self, other: int) -> int:
        return _sum(self, other) if isinstance(other, int) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: int) -> int:
        return _sum(self, _scaled(other, -1)) if isinstance(other, int) else NotImplemented

    def __rsub__(self, other: int) -> int:
        return _sum(other, _scaled(self, -1)) if isinstance(other, int) else NotImplemented

    def __mul__(self, other: int) -> int:
        return _product(self, other) if isinstance(other, int) else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        return _quotient(self, other) if isinstance(other, int) else NotImplemented

    def __rfloordiv__(self, other: int) -> int:
        return _quotient(other, self) if isinstance(other, int) else NotImplemented

    def __mod__(self, other: int) -> int:
        return self - other * _quotient(self, other) if isinstance(other, int) else NotImplemented

    def __rmod__(self, other: int) -> int:
        return other - self * _quotient(other, self) if isinstance(other, int) else NotImplemented

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other

    def __pow__(  # type: ignore[override]  # int has an overload for each small exponent
        self, other: Any, modulo: None = None
    ) -> Any:  # any: as int's
        is_count = isinstance(other, int) and not isinstance(other, Size) and other >= 0
        return prod([self] * other) if is_count else int(self) ** other


def largest(a: int, b: int) -> int:
    """The larger of two sizes, for every call."""
    return _chosen("max", a, b) if isinstance(a, Size) or isinstance(b, Size) else max(a, b)


def smallest(a: int, b: int) -> int:
    """The smaller of two sizes, for every call."""
    return _chosen("min", a, b) if isinstance(a, Size) or isinstance(b, Size) else min(a, b)


def bounds(size: int) -> tuple[float, float]:
    """Lower and upper bound of a size over all calls."""
    low = high = 0.0
    for atoms, coefficient in _terms(size).items():
        ends = reduce(_interval_product, map(_atom_bounds, atoms), (1.0, 1.0))
        ends = _interval_product(ends, (coefficient, coefficient))
        low, high = low + ends[0], high + ends[1]
    return low, high


def evaluated(size: int, sizes: Mapping[str, Any]) -> Any:  # any: as the argument
    """A size for these sizes of its dimensions, by name: integers, sizes, or symbolic integers of torch."""
    if not isinstance(size, Size):
        return size
    return sum(c * prod(_atom_at(atom, sizes) for atom in atoms) for atoms, c in size.terms.items())


def dimensions_of(item: object) -> dict[str, Dimension]:
    """The dimensions that sizes in a number, tuple, list or operator depend on, by name."""
    return {d.name: d for size in sizes_in(item) for atoms in size.terms for a in atoms for d in _leaves(a)}


def sizes_in(item: object) -> Iterable[Size]:
    """The sizes in a number, in tuples or lists of them, or in the attributes of an operator."""
    if isinstance(item, Size):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from sizes_in(part)
    elif is_dataclass(item):
        for field in fields(item):
            yield from sizes_in(getattr(item, field.name))


def with_sizes(item: Item, change: Callable[[Size], int]) -> Item:
    """A number, tuple or operator with `change(size)` in place of each of its sizes."""
    changed: Any = item  # any: an item of the same kind
    if isinstance(item, Size):
        changed = change(item)
    elif isinstance(item, tuple | list):
        changed = type(item)(with_sizes(part, change) for part in item)
    elif is_dataclass(item) and not isinstance(item, type) and any(True for _ in sizes_in(item)):
        own = {field.name: getattr(item, field.name) for field in fields(item)}
        changed = replace(item, **{name: with_sizes(value, change) for name, value in own.items()})
    result: Item = changed
    return result


def text_of(size: int, names: Mapping[str, str] = {}) -> str:
    """A size as a Python expression of its dimensions, which `names` may rename."""
    if not isinstance(size, Size):
        return repr(int(size))
    parts = [_term_text(atoms, c, names) for atoms, c in sorted(size.terms.items(), key=_order)]
    text = " + ".join(parts)
    return text.replace("+ -", "- ")


def _made(terms: Terms) -> int:
    """The number of these terms; a plain integer if it depends on no dimension."""
    kept = {atoms: c for atoms, c in terms.items() if c}
    value = sum(c * prod(map(_example, atoms)) for atoms, c in kept.items())
    if not any(kept):
        return value
    size = Size(value)
    size.terms, size.key = kept, frozenset(kept.items())
    return size


def _terms(size: int) -> Terms:
    return size.terms if isinstance(size, Size) else {(): int(size)}


def _sum(a: int, b: int) -> int:
    total = Counter(_terms(a))
    for atoms, c in _terms(b).items():
        total[atoms] += c
    return _made(total)


def _scaled(a: int, factor: int) -> int:
    return _made({atoms: c * factor for atoms, c in _terms(a).items()})


def _product(a: int, b: int) -> int:
    total = Counter[tuple[Atom, ...]]()
    for left, c in _terms(a).items():
        for right, d in _terms(b).items():
            total[tuple(sorted((*left, *right), key=_atom_text))] += c * d
    return _made(total)


def _quotient(a: int, b: int) -> int:
    exact = _exact_quotient(a, b)
    if exact is not None:
        return exact
    if isinstance(b, Size) or b < 1:
        return _made({(Operation("//", a, b),): 1})
    whole = _made({atoms: c // b for atoms, c in _terms(a).items()})
    return whole + _small_quotient(a - _scaled(whole, b), b)


def _exact_quotient(a: int, b: int) -> int | None:
    """a / b if b is a single product that divides each term of a; None otherwise."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return 1 if _terms(a) == divisor else None
    ((atoms, factor),) = divisor.items()
    terms = {}
    for product, c in _terms(a).items():
        rest = Counter(product)
        rest.subtract(atoms)
        if factor == 0 or c % factor or any(n < 0 for n in rest.values()):
            return None
        terms[tuple(sorted(rest.elements(), key=_atom_text))] = c // factor
    return _made(terms)


def _small_quotient(a: int, k: int) -> int:
    """a // k if the coefficients of a are from 0 to k - 1; None otherwise."""
    if not isinstance(a, Size):
        return a // k
    constant = a.terms.get((), 0)
    shared = reduce(gcd, (c for atoms, c in a.terms.items() if atoms), k)
    if shared > 1:
        rest = {atoms: c // shared for atoms, c in a.terms.items()}
        return _quotient(_made(rest), k // shared)
    ((atoms, c), *more) = ((atoms, c) for atoms, c in a.terms.items() if atoms)
    inner = atoms[0]
    is_single = not more and c == 1 and len(atoms) == 1
    if (
        is_single
        and isinstance(inner, Operation)
        and inner.kind == "//"
        and not isinstance(inner.right, Size)
    ):
        return _quotient(inner.left + constant * inner.right, inner.right * k)
    return _made({(Operation("//", a, k),): 1})


def _chosen(kind: str, a: int, b: int) -> int:
    low, high = bounds(a - b)
    if low >= 0 or high <= 0:
        return a if (low >= 0) == (kind == "max") else b
    left, right = sorted((a, b), key=text_of)
    return _made({(Operation(kind, left, right),): 1})


def _max(a: Any, b: Any) -> Any:  # any: integers, sizes, or symbolic integers of torch
    return largest(a, b) if isinstance(a, Size) or isinstance(b, Size) else torch.sym_max(a, b)


def _min(a: Any, b: Any) -> Any:  # any: as above
    return smallest(a, b) if isinstance(a, Size) or isinstance(b, Size) else torch.sym_min(a, b)


_APPLY: Mapping[str, Callable[[Any, Any], Any]] = {"//": floordiv, "max": _max, "min": _min}  # any: as above


def _atom_at(atom: Atom, sizes: Mapping[str, Any]) -> Any:  # any: as above
    if isinstance(atom, Dimension):
        return sizes[atom.name]
    return atom.apply(evaluated(atom.left, sizes), evaluated(atom.right, sizes))


def _example(atom: Atom) -> int:
    return atom.example if isinstance(atom, Dimension) else atom.apply(int(atom.left), int(atom.right))


def _atom_bounds(atom: Atom) -> tuple[float, float]:
    if isinstance(atom, Dimension):
        return atom.low, atom.largest
    (low, high), (least, most) = bounds(atom.left), bounds(atom.right)
    if atom.kind == "max":
        return max(low, least), max(high, most)
    if atom.kind == "min":
        return min(low, least), min(high, most)
    if low < 0 or least < 1:
        return -inf, inf
    return (low // most if most != inf else 0.0), (high // least if high != inf else inf)


def _interval_product(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def _leaves(atom: Atom) -> Iterable[Dimension]:
    if isinstance(atom, Dimension):
        yield atom
    else:
        yield from dimensions_of((atom.left, atom.right)).values()


def _atom_text(atom: Atom, names: Mapping[str, str] = {}) -> str:
    if isinstance(atom, Dimension):
        return names.get(atom.name, atom.name)
    left, right = text_of(atom.left, names), text_of(atom.right, names)
    if atom.kind == "//":
        return f"{_operand(left)} // {_operand(right)}"
    return f"{atom.kind}({left}, {right})"


def _operand(text: str) -> str:
    return text if text.isidentifier() or text.isdigit() else f"({text})"


def _term_text(atoms: tuple[Atom, ...], coefficient: int, names: Mapping[str, str]) -> str:
    texts = [_atom_text(atom, names) for atom in atoms]
    if len(atoms) == 1 and coefficient == 1:
        return texts[0]
    factors = [_factor(text) for text in texts]
    if not atoms or coefficient not in (1, -1):
        factors.insert(0, str(coefficient))
    text = "*".join(factors)
    return f"-{text}" if atoms and coefficient == -1 else text


def _factor(text: str) -> str:
    return f"({text})" if "//" in text and not text.startswith(("max", "min")) else text


def _order(term: tuple[tuple[Atom, ...], int]) -> tuple[bool, int, list[str]]:
    atoms, _ = term
    return not atoms, -len(atoms), [_atom_text(atom) for atom in atoms]
