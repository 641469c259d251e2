"""Recognition of magnitudes: sqrt(a^2 + b^2) becomes one operator, which has an integer form and propagates factors.

Its float form gives the same bits. Separate squares have neither property: they span twice the orders of magnitude of
a and b.
"""

from __future__ import annotations

from ...ir import Builder, Value
from ...ir.ops.binary import Add, Mul
from ...ir.ops.elementary import Pow, Sqrt
from ...ir.ops.magnitude import Magnitude
from ..pattern import Application, Match, Rule, Term, op
from ..weighted_layers import clamp_of


def _of_powers(a: Term, b: Term) -> Application:
    return op(Sqrt)(op(Add)(op(Pow)(a), op(Pow)(b)))


def _of_products(a: Term, b: Term) -> Application:
    return op(Sqrt)(op(Add)(op(Mul)(a, a), op(Mul)(b, b)))


def _why_not(match: Match) -> str | None:
    if any(isinstance(node.op, Pow) and node.op.exponent != 2.0 for node in match.nodes):
        return "the exponent is not 2"
    if any(isinstance(node.op, Add | Mul) and clamp_of(node.op) is not None for node in match.nodes):
        return "a square or the sum is clamped"
    return None


def _joined(builder: Builder, match: Match) -> Value:
    a, b = match.value("a"), match.value("b")
    return builder.add(Magnitude(), a, b, name=match.root.output.name, source=match.root.source)


MAGNITUDE_OF_POWERS = Rule("magnitude", _of_powers, _why_not, _joined, "is a magnitude")
MAGNITUDE_OF_PRODUCTS = Rule("magnitude", _of_products, _why_not, _joined, "is a magnitude")
MAGNITUDES = (MAGNITUDE_OF_POWERS, MAGNITUDE_OF_PRODUCTS)
