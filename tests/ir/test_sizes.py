"""Sizes over dimensions: exact arithmetic, one normal form, text, and bounds."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import Builder, DType, ShapeError, TensorType, dump, ops, parse, run, verify
from fxpress.ir.sizes import (
    Dimension,
    Size,
    bounds,
    dimensions_of,
    evaluated,
    largest,
    smallest,
    text_of,
    with_sizes,
)
from fxpress.ir.symbolic import sizes_to_check, traced_sizes

TOKENS, BATCH = Dimension("tokens", 16, 2, 512), Dimension("batch", 1)
t, b = TOKENS.size, BATCH.size
CALLS = ({"tokens": 16, "batch": 1}, {"tokens": 5, "batch": 3}, {"tokens": 512, "batch": 2})
Both = tuple[int, list[int]]  # a size, and its value in each call


def dimension(name: str, size: Size) -> Both:
    return size, [call[name] for call in CALLS]


LEAVES = st.one_of(
    st.just(dimension("tokens", t)),
    st.just(dimension("batch", b)),
    st.integers(-5, 9).map(lambda n: (n, [n] * len(CALLS))),
)
FUNCTIONS = (
    (operator.add, operator.add),
    (operator.sub, operator.sub),
    (operator.mul, operator.mul),
    (operator.floordiv, operator.floordiv),
    (operator.mod, operator.mod),
    (largest, max),
    (smallest, min),
)


def combined(children: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
    def apply(functions, x: Both, y: Both) -> Both:
        on_sizes, on_numbers = functions
        if on_sizes in (operator.floordiv, operator.mod) and not all(y[1]):
            return x
        return on_sizes(x[0], y[0]), [on_numbers(m, n) for m, n in zip(x[1], y[1], strict=True)]

    return st.builds(apply, st.sampled_from(FUNCTIONS), children, children)


SIZES = st.recursive(LEAVES, combined, max_leaves=5)


@given(SIZES)
def test_a_size_has_the_value_of_its_expression_in_every_call(both: Both) -> None:
    size, values = both
    low, high = bounds(size)
    for call, value in zip(CALLS, values, strict=True):
        assert evaluated(size, call) == value
        assert low <= value <= high
    assert int(size) == values[0]
    assert isinstance(size, Size) == bool(dimensions_of(size))


@given(SIZES)
def test_the_text_of_a_size_is_a_python_expression_of_the_same_size(both: Both) -> None:
    names = {"tokens": t, "batch": b, "max": largest, "min": smallest}
    assert eval(text_of(both[0]), names) == both[0]


@given(SIZES, SIZES)
def test_equal_differences_mean_equal_sizes(x: Both, y: Both) -> None:
    assert (x[0] + y[0]) - y[0] == x[0]
    assert x[0] * y[0] == y[0] * x[0]


def test_the_normal_form_joins_what_is_equal_in_every_call() -> None:
    assert t * b * 64 // (64 * b) == t
    assert ((t - 1) // 2 + 1 - 1) // 2 + 1 == (t + 3) // 4
    assert (2 * t + 3) // 4 == (t + 1) // 2
    assert (4 * t) % 4 == 0
    assert t - t == 0 and type(t - t) is int
    assert smallest(t, 600) == t and largest(t, 1) == t
    assert str(smallest(t, 8)) == "${min(8, tokens)}"


def test_a_size_equals_no_number_even_if_the_example_has_it() -> None:
    assert t != 16 and b != 1 and t != 16
    assert (1, t) == (1, t) and (1, t) != (1, 16)
    assert b not in (1, 2)
    assert sorted([t, 3]) == [3, t]


def test_names_of_dimensions_can_be_replaced_in_the_text() -> None:
    assert text_of(2 * t + 1, {"tokens": "tokens_2"}) == "2*tokens_2 + 1"


@pytest.mark.parametrize("name", ("two words", "1st", "class", ""))
def test_a_dimension_has_an_identifier_as_name(name: str) -> None:
    with pytest.raises(ShapeError, match="Python identifier"):
        Dimension(name, 4)


def test_the_example_is_within_the_range() -> None:
    with pytest.raises(ShapeError, match=r"the example's size 1 is not in 2\.\."):
        Dimension("tokens", 1, 2)


def test_attributes_of_operators_follow_the_sizes() -> None:
    moved = with_sizes(ops.Reshape((b, t, -1)), lambda size: evaluated(size, CALLS[1]))
    assert moved == ops.Reshape((3, 5, -1))


def test_dimensions_are_traced_at_sizes_that_differ_from_each_other_and_from_one() -> None:
    dimensions = {"batch": BATCH, "tokens": TOKENS, "rows": Dimension("rows", 16)}
    assert traced_sizes(dimensions) == (3, 13, 11)
    assert traced_sizes(dimensions, frozenset((13, 3)))[0] not in (1, 3)


def test_checks_use_other_sizes_and_the_least_ones() -> None:
    assert sizes_to_check({"tokens": TOKENS}) == [{"tokens": 13}, {"tokens": 2}]
    assert sizes_to_check({"one": Dimension("one", 4, 4, 4)}) == []


def graph():
    builder = Builder()
    x = builder.input("x", TensorType((b, t, 3)))
    y = builder.add(ops.Relu(), x)
    z = builder.add(ops.Reshape((b, 3 * t)), y)
    ones = builder.add(ops.TorchCall("aten.ones.default([n0])", (3 * t,)))
    part = builder.add(ops.Slice(1, 0, smallest(8, 3 * t)), z)
    return verify(builder.build([builder.add(ops.Add(), z, ones), part]))


def test_the_text_of_a_graph_declares_dimensions_and_is_read_back() -> None:
    text = dump(graph())
    assert text.splitlines()[:3] == [
        "dim batch = 1 in 1..",
        "dim tokens = 16 in 2..512",
        "graph(%x: f32[${batch}x${tokens}x3]) {",
    ]
    assert "reshape{shape=(${batch}, ${3*tokens})}" in text
    assert parse(text) == graph()


def test_a_graph_runs_at_every_allowed_size_and_refuses_others() -> None:
    whole, part = run(graph(), [torch.ones(4, 5, 3)])
    assert torch.equal(whole, torch.full((4, 15), 2.0)) and part.shape == (4, 8)
    for shape in ((4, 1, 3), (4, 5, 4), (4, 15)):
        with pytest.raises(ShapeError, match=r"the graph takes .*tokens 2\.\.512"):
            run(graph(), [torch.ones(shape)])


def test_a_graph_at_fixed_sizes_has_plain_numbers() -> None:
    fixed = graph().at_sizes({"tokens": 5})
    assert not fixed.dimensions
    assert fixed.inputs[0].type == TensorType((1, 5, 3), DType.F32)
    assert verify(fixed) is fixed


def test_inputs_have_dimensions_of_their_own() -> None:
    builder = Builder()
    x = builder.input("x", TensorType((2 * t,)))
    with pytest.raises(Exception, match=r"the size \$\{2\*tokens\}, which is not a plain dimension"):
        verify(builder.build([x]))


def test_a_plain_number_does_not_stand_for_a_dimension() -> None:
    builder = Builder()
    x = builder.input("x", TensorType((b, t)))
    with pytest.raises(ShapeError):
        builder.add(ops.Add(), x, builder.constant("table", torch.zeros(16)))


@pytest.mark.parametrize(
    "text", ("f32[${rows}]", "f32[${tokens **2}]", "f32[${tokens / 2}]", "f32[${tokens +}]")
)
def test_a_text_with_an_unknown_size_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is not a size over the dimensions, which are tokens"):
        parse(f"dim tokens = 4 in 1..\ngraph(%x: {text}) {{ return y: %x }}")
