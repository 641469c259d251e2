"""The fusion rule `double_negation`: -(-x) = x."""

from fxpress.ir import Builder, Value
from fxpress.ir.ops import Neg
from fxpress.passes import Application, Match, Rule, Term, op


def _negated_twice(x: Term) -> Application:
    return op(Neg)(op(Neg)(x))


def _why_not(match: Match) -> str | None:
    types = [value.type for node in match.nodes for value in node.outputs]
    return "it is quantized" if any(type.is_quantized for type in types) else None


def _operand(builder: Builder, match: Match) -> Value:
    return match.value("x")


DOUBLE_NEGATION = Rule("double_negation", _negated_twice, _why_not, _operand, "both negations go")
