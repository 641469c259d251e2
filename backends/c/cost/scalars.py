"""Scalars of C code in an optimizer's view: type, identity, number, and the range of numbers.

Equal computations have equal identities. The numbers of an int32_t have a range, because its overflow is undefined;
comparisons of ranges that do not overlap are decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

SIZES = {
    "int8_t": 1,
    "uint8_t": 1,
    "char": 1,
    "int16_t": 2,
    "uint16_t": 2,
    "int64_t": 8,
    "uint64_t": 8,
    "double": 8,
}


OPPOSITES = {"<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True, slots=True)
class CType:
    """A scalar type by name, after `depth` pointers or arrays."""

    name: str = "int32_t"
    depth: int = 0

    @property
    def prefix(self) -> str:
        """Prefix of the kind of a construct: `real `, `wide ` or nothing."""
        if self.depth:
            return ""
        if self.name in ("float", "double"):
            return "real "
        return "wide " if self.name in ("int64_t", "uint64_t") else ""

    @property
    def access(self) -> str:
        """Width and kind of an access to memory: `u8`, `16`, `real`."""
        if self.depth:
            return "32"
        if self.name == "float":
            return "real"
        signed = "u" if self.name in ("uint8_t", "uint16_t") else ""
        return f"{signed}{8 * SIZES.get(self.name, 4)}"


INT, REAL, WIDE = CType(), CType("float"), CType("int64_t")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number, or an identity that equal computations share; `target` is the local to which a pointer points."""

    id: object
    type: CType = INT
    number: float | int | None = None
    target: str | None = None
    range: tuple[float, float] = (-inf, inf)  # least and largest number

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest number of an int32_t, whose overflow is undefined."""
        if self.number is not None:
            return self.number, self.number
        return self.range if self.type == INT else (-inf, inf)


def scalar_of(number: int) -> Scalar:
    """A number as an int32_t."""
    return Scalar(("k", number), INT, number)


def common_type(a: CType, b: CType) -> CType:
    """The type in which C computes with two others."""
    for type in (a, b):
        if type.depth:
            return type
    for prefix in ("real ", "wide "):
        for type in (a, b):
            if type.prefix == prefix:
                return type
    return CType("uint32_t") if "uint32_t" in (a.name, b.name) else INT


def folded_number(op: str, a: float, b: float) -> float | int | None:
    """The result of an operator on two numbers; None if it is not computed."""
    if op in ("<", ">", "<=", ">=", "==", "!="):
        return int(is_true(op, a, b))
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    if isinstance(a, float) or isinstance(b, float):
        return None if op != "/" or b == 0 else a / b
    if op in ("/", "%"):
        if b == 0:
            return None
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return quotient if op == "/" else a - quotient * b
    if op == "<<":
        return (a << b) & 0xFFFFFFFFFFFFFFFF if 0 <= b < 64 else None
    if op == ">>":
        return a >> b if 0 <= b < 64 else None
    return {"&": a & b, "|": a | b, "^": a ^ b}.get(op)


def plus_number(value: Scalar, number: int) -> Scalar:
    """A value plus a number, before any cost is counted for it."""
    if value.number is not None:
        return scalar_of(int(value.number) + number)
    base, extra = base_and_number(value.id)
    low, high = value.bounds
    id = ("plus", base, extra + number) if extra + number else base
    return Scalar(id, value.type, range=(low + number, high + number))


def number_between(a: Scalar, b: Scalar) -> int | None:
    """b - a, if it is a number."""
    if a.number is not None and b.number is not None:
        return int(b.number) - int(a.number)
    (base, number), (other, end) = base_and_number(a.id), base_and_number(b.id)
    same = base is not None and base == other and a.type == b.type == INT
    return end - number if same else None


def decided_comparison(op: str, a: Scalar, b: Scalar) -> int | None:
    """The result of a comparison that the ranges of its operands decide."""
    if op not in OPPOSITES or a.type.prefix or b.type.prefix:
        return None
    if _within(a.bounds, op, b.bounds):
        return 1
    return 0 if _within(a.bounds, OPPOSITES[op], b.bounds) else None


def limited_range(a: tuple[float, float], op: str, b: tuple[float, float]) -> tuple[float, float]:
    """The numbers of a range for which a comparison with some number of another range holds."""
    low, high = a
    if op in ("<", "<="):
        return low, min(high, b[1] - (op == "<"))
    if op in (">", ">="):
        return max(low, b[0] + (op == ">")), high
    return a


def range_of_result(op: str, a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """The range of a result."""
    if op == "+":
        return a[0] + b[0], a[1] + b[1]
    if op == "-":
        return a[0] - b[1], a[1] - b[0]
    if inf in map(abs, (*a, *b)):
        return -inf, inf
    if op == "*":
        products = [x * y for x in a for y in b]
        return min(products), max(products)
    if op == "/" and b[0] == b[1] and b[0] > 0:
        return int(a[0] / b[0]), int(a[1] / b[0])
    if op == "%" and a[0] >= 0 and b[0] > 0:
        return 0, min(a[1], b[1] - 1)
    return -inf, inf


def _within(a: tuple[float, float], op: str, b: tuple[float, float]) -> bool:
    """True if a comparison holds for every number of a range with every number of another."""
    closest = (a[1], b[0]) if op in ("<", "<=") else (a[0], b[1])
    return inf not in map(abs, closest) and is_true(op, *closest)


def is_true(op: str, a: float, b: float) -> bool:
    """True if a comparison of two numbers holds."""
    return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b, "==": a == b, "!=": a != b}[op]


def split_place(id: object) -> tuple[object, tuple[object, ...], int]:
    """Base, terms and number of the identity of an address."""
    if isinstance(id, tuple) and id and id[0] == "at":
        return id[1], id[2], id[3]
    return id, (), 0


def base_and_number(id: object) -> tuple[object, int]:
    """An identity as another plus a number."""
    if isinstance(id, tuple) and id and id[0] == "plus":
        return id[1], id[2]
    return id, 0
