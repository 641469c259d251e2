"""Patterns and rules: matches, messages if nothing matches, and detection of wrong rules."""

from __future__ import annotations

import pytest
import torch

from fxpress.ir import Builder, Graph, Source, Value, parse
from fxpress.ir.ops.activation import Relu, Tanh
from fxpress.ir.ops.binary import Add, Mul
from fxpress.ir.ops.linear import Linear
from fxpress.ir.testing import RewriteError, check_rewrite, graphs
from fxpress.passes.pattern import OPTIONAL, Application, Match, Rule, Term, apply_rule, op


def always(match: Match) -> None:
    """No objection."""


def rule(pattern: object, name: str = "rule") -> Rule:
    """Replaces a match by the tanh of its first operand."""

    def rewrite(builder: Builder, match: Match) -> Value:
        return builder.add(Tanh(), match.value("x"), name=match.root.outputs[0].name)

    return Rule(name, pattern, always, rewrite)  # type: ignore[arg-type]  # tests also pass lambdas


def relu_of(x: Term) -> Application:
    return op(Relu)(x)


def text(body: str, outputs: str = "o: %y") -> Graph:
    return parse(f"graph(%x: f32[4], %z: f32[4]) {{\n{body}\nreturn {outputs}\n}}")


def operators(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def test_a_pattern_function_is_read_from_its_outermost_call_inwards() -> None:
    graph = text("%a: f32[4] = add(%x, %z)\n%y: f32[4] = relu(%a)")
    after, decisions = apply_rule(graph, rule(lambda x, z: op(Relu)(op(Add)(x, z))))
    assert operators(after) == ["tanh"]
    assert [(d.name, d.applied) for d in decisions] == [("y", True)]
    assert after.nodes[0].output.name == "y"


def test_operands_of_a_sum_match_in_both_orders() -> None:
    graph = text("%a: f32[4] = relu(%z)\n%y: f32[4] = add(%x, %a)")
    after, _ = apply_rule(graph, rule(lambda x, other: op(Add)(op(Relu)(x), other)))
    assert operators(after) == ["tanh"]


def test_a_parameter_that_stands_twice_binds_one_value() -> None:
    def square(x: Term) -> Application:
        return op(Mul)(x, x)

    same, other = text("%y: f32[4] = mul(%x, %x)"), text("%y: f32[4] = mul(%x, %z)")
    assert operators(apply_rule(same, rule(square))[0]) == ["tanh"]
    after, (decision,) = apply_rule(other, rule(square))
    assert (after, decision.reason) == (other, "the mul reads two different values")


LINEAR = "graph(%x: f32[1x4]) {{\n const %w: f32[4x4]\n const %b: f32[4]\n %y: f32[1x4] = linear({})\n return o: %y\n}}"


def test_an_operand_may_be_absent_only_where_the_pattern_says_so() -> None:
    def without(x: Term, w: Term) -> Application:
        return op(Linear)(x, w)

    def perhaps(x: Term, w: Term, *, b: Term = OPTIONAL) -> Application:
        return op(Linear)(x, w, b)

    def always_with(x: Term, w: Term, b: Term) -> Application:
        return op(Linear)(x, w, b)

    bare, biased = parse(LINEAR.format("%x, %w")), parse(LINEAR.format("%x, %w, %b"))
    fired = [
        [operators(apply_rule(graph, rule(pattern))[0]) == ["tanh"] for graph in (bare, biased)]
        for pattern in (without, perhaps, always_with)
    ]
    assert fired == [[True, False], [True, True], [False, True]]


def test_the_rest_of_the_operands_are_bound_together() -> None:
    seen = []

    def linear_of_all(x: Term, *rest: Term) -> Application:
        return op(Linear)(x, *rest)

    def remember(match: Match) -> str:
        seen.append([v and v.name for v in match.rest("rest")])
        return "looked at only"

    looking = Rule("look", linear_of_all, remember, rule(linear_of_all).rewrite)
    _, (decision,) = apply_rule(parse(LINEAR.format("%x, %w, %b")), looking)
    assert (seen, decision.reason) == ([["w", "b"]], "looked at only")


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("%y: f32[4] = relu(%x)", "o: %y", "its operand does not come from add"),
        (
            "%a: f32[4] = tanh(%x)\n%y: f32[4] = relu(%a)",
            "o: %y",
            "its operand comes from tanh, not from add",
        ),
        (
            "%a: f32[4] = add(%x, %z)\n%y: f32[4] = relu(%a)",
            "o: %y, p: %a",
            "the result of the add before it has another use",
        ),
        (
            "%a: f32[4] = add(%x, %z)\n%y: f32[4] = relu(%a)\n%w: f32[4] = tanh(%a)",
            "o: %y, p: %w",
            "the result of the add before it has another use",
        ),
    ],
)
def test_why_a_rule_does_not_fire_is_told(body: str, outputs: str, reason: str) -> None:
    graph = text(body, outputs)
    after, (decision,) = apply_rule(graph, rule(lambda x, z: op(Relu)(op(Add)(x, z))))
    assert (after, decision.applied, decision.reason) == (graph, False, reason)


def test_a_layer_that_is_kept_is_not_rewritten() -> None:
    graph = parse(
        'graph(%x: f32[4]) {\n%a: f32[4] = relu(%x)   # "stem", ""\n%y: f32[4] = relu(%a)\nreturn o: %y\n}'
    )
    kept, decisions = apply_rule(graph, rule(relu_of), is_kept=lambda source: source == Source("stem"))
    assert operators(kept) == ["relu", "tanh"]
    assert [d.reason for d in decisions] == ["the spec keeps this layer", "applied"]


def test_a_chain_collapses_in_one_walk() -> None:
    nodes = "\n".join(f"%a{i + 1}: f32[4] = relu(%a{i})" for i in range(50))
    graph = parse(f"graph(%a0: f32[4]) {{\n{nodes}\nreturn o: %a50\n}}")

    def keep_inner(builder: Builder, match: Match) -> Value:
        return builder.add(Relu(), match.value("x"))

    after, _ = apply_rule(graph, Rule("relus", lambda x: op(Relu)(op(Relu)(x)), always, keep_inner))
    assert operators(after) == ["relu"]


def test_a_wrong_rule_is_found_out_by_the_check_for_rewrites() -> None:
    def forget_the_shift(builder: Builder, match: Match) -> Value:
        return builder.add(Relu(), match.value("x"), name=match.root.outputs[0].name)

    wrong = Rule("wrong", lambda x, z: op(Relu)(op(Add)(x, z)), always, forget_the_shift)
    with pytest.raises(RewriteError):
        check_rewrite(
            lambda graph: apply_rule(graph, wrong)[0], graphs=graphs(ops=("add", "relu")), tolerance=1e-6
        )


def test_a_matched_constant_can_be_replaced_under_its_own_name() -> None:
    def double(builder: Builder, match: Match) -> Value:
        weight = match.tensor(match.value("w"))
        assert weight is not None
        doubled = match.replace_constant(match.value("w"), weight * 2)
        return builder.add(Linear(), match.value("x"), doubled)

    def linear(x: Term, w: Term) -> Application:
        return op(Linear)(x, w)

    pattern = Rule("double", linear, always, double)
    graph = parse(LINEAR.format("%x, %w"), params={"w": torch.ones(4, 4)})
    after, _ = apply_rule(graph, pattern)
    assert torch.equal(after.params["w"], torch.full((4, 4), 2.0))
    assert torch.equal(graph.params["w"], torch.ones(4, 4))
