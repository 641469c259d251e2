"""Properties of all operators, checked over the registry: no test here names an operator except the conversions."""

from dataclasses import replace
from inspect import signature

import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import (
    OPERATORS,
    DType,
    Graph,
    Node,
    OverflowBoundError,
    ShapeError,
    TensorType,
    dump,
    parse,
    run_integer,
)
from fxpress.ir.ops.base import Quantized
from fxpress.ir.ops.recurrent import Recurrent
from fxpress.ir.testing import GROWS, assert_exact, examples, to_integers

few = settings(max_examples=max(10, settings.default.max_examples // 4))
NAMES = sorted(OPERATORS)
CONVERSIONS = {"quantize", "dequantize", "requantize", "offset_binary"}
PLAIN = sorted(set(NAMES) - CONVERSIONS)
COMPUTING = [
    name
    for name in PLAIN
    if OPERATORS[name].quantized is Quantized.COMPUTE and not issubclass(OPERATORS[name], Recurrent)
]  # what is rounded once: steps of a recurrent layer add up their errors, see test_recurrent_form.py
MOVING = [name for name in PLAIN if OPERATORS[name].quantized is Quantized.MOVE]
STRATEGIES = {name: examples(name) for name in NAMES}

STEP_BOUND = (
    0.75  # half a step for the one rounding, the rest for multipliers of 16 bits and tables of exponentials
)


def test_every_operator_says_how_a_graph_grows_by_it() -> None:
    assert sorted(GROWS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_operator_is_documented_in_its_own_words(name: str) -> None:
    op = OPERATORS[name]
    assert op.__doc__ is not None and not op.__doc__.startswith(f"{op.__name__}(")
    assert op.name == name


@pytest.mark.parametrize("name", NAMES)
def test_operands_have_names_of_their_own_which_infer_and_reference_share(name: str) -> None:
    op = OPERATORS[name]
    _, *inferred = signature(op.infer).parameters.values()
    _, *computed = signature(op.reference).parameters.values()
    assert [(p.name, p.kind, p.default) for p in inferred] == [(p.name, p.kind, p.default) for p in computed]
    assert {*op.real_operands, *op.learned_operands} <= set(op.operand_names)
    assert len(set(op.operand_names)) == len(op.operand_names)


@pytest.mark.parametrize("name", NAMES)
@few
@given(st.data())
def test_operands_are_read_by_name(name: str, data: st.DataObject) -> None:
    node = data.draw(STRATEGIES[name]).node
    named = [node.optional(operand) for operand in node.op.operand_names]
    assert named[: len(node.inputs)] == list(node.inputs[: len(named)])
    assert all(value is None for value in named[len(node.inputs) :])
    assert node.with_operands(**dict(zip(node.op.operand_names, named, strict=True))) == node


@pytest.mark.parametrize("name", NAMES)
@few
@given(st.data())
def test_text_form_reads_back(name: str, data: st.DataObject) -> None:
    graph = data.draw(STRATEGIES[name]).graph
    assert parse(dump(graph), params=graph.params) == graph


@pytest.mark.parametrize("name", PLAIN)
@few
@given(st.data())
def test_inferred_types_are_those_of_the_reference(name: str, data: st.DataObject) -> None:
    node = data.draw(STRATEGIES[name]).node
    assert reference_types(node, node.operand_types) == node.output_types
    assert node.macs >= 0


@pytest.mark.parametrize("name", PLAIN)
@few
@given(st.data())
def test_operands_that_do_not_fit_are_refused_and_never_given_a_wrong_type(
    name: str, data: st.DataObject
) -> None:
    node = data.draw(STRATEGIES[name]).node
    types = list(node.operand_types)
    index = data.draw(st.sampled_from([i for i, t in enumerate(types) if t is not None]))
    types[index] = data.draw(neighbours(types[index]))
    try:
        inferred = node.op.infer(*types)
    except ShapeError:
        return
    assert inferred == reference_types(node, types)


def neighbours(type: TensorType) -> st.SearchStrategy[TensorType]:
    """Types that differ in a size, the rank or the element type."""
    shape = type.shape
    other = [replace(type, dtype=dtype) for dtype in (DType.F64, DType.I64, DType.BOOL, DType.C64)]
    other += [type.with_shape((2, *shape)), type.with_shape((*shape, 1)), type.with_shape(shape[1:])]
    other += [type.with_shape((*shape[:i], n + 1, *shape[i + 1 :])) for i, n in enumerate(shape)]
    other += [type.with_shape((*shape[:i], 0, *shape[i + 1 :])) for i in range(len(shape))]
    return st.sampled_from(other)


def reference_types(
    node: Node, types: list[TensorType | None] | tuple[TensorType | None, ...]
) -> tuple[TensorType, ...]:
    zeros = [None if t is None else torch.zeros(t.shape, dtype=t.dtype.torch) for t in types]
    results = node.op.reference(*zeros)
    return tuple(TensorType.of(t) for t in (results if isinstance(results, tuple) else (results,)))


@pytest.mark.parametrize("name", COMPUTING)
@few
@given(st.data())
def test_integer_form_is_within_a_step_of_the_exact_result(name: str, data: st.DataObject) -> None:
    example = data.draw(STRATEGIES[name])
    node, seen = on_integers(example.graph, example.inputs)
    grid = node.output.type.quantization
    assert grid is not None
    reals = [None if v is None else real(v.type, seen[v.name]) for v in node.inputs]
    exact = node.op.reference(*reals) / grid.scale[0] + grid.zero_point[0]
    exact = exact.nan_to_num(grid.zero_point[0], 1e9, -1e9).clamp(grid.qmin, grid.qmax)
    actual = seen[node.output.name]
    assert actual.min() >= grid.qmin and actual.max() <= grid.qmax
    assert (actual - exact).abs().max() <= STEP_BOUND


@pytest.mark.parametrize("name", MOVING)
@few
@given(st.data())
def test_data_movement_moves_integers_as_it_moves_reals(name: str, data: st.DataObject) -> None:
    example = data.draw(STRATEGIES[name])
    node, seen = on_integers(example.graph, example.inputs)
    grids = {
        t.quantization for t in (*node.operand_types, *node.output_types) if t is not None and t.is_quantized
    }
    assert len(grids) == 1
    moved = node.op.reference(*(None if v is None else real(v.type, seen[v.name]) for v in node.inputs))
    for value, expected in zip(node.outputs, moved if isinstance(moved, tuple) else (moved,), strict=True):
        assert_exact(seen[value.name].to(torch.int64), grids.copy().pop().quantize(expected))


def on_integers(graph: Graph, inputs: list[Tensor]) -> tuple[Node, dict[str, Tensor]]:
    """The node of a graph of one, in a graph of integers, and all tensors there."""
    quantized = to_integers(graph, inputs)
    seen = {v.name: quantized.params[v.name] for v in quantized.constants}
    seen.update({v.name: t for v, t in zip(quantized.inputs, inputs, strict=True)})
    try:
        run_integer(quantized, inputs, observe=lambda value, tensor: seen.update({value.name: tensor}))
    except (
        OverflowBoundError
    ):  # grids that the operator's integers cannot carry, which `quantize` leaves in float
        reject()
    (node,) = (n for n in quantized.nodes if n.op == graph.nodes[0].op)
    assume(node.outputs[0].type.is_quantized)
    return node, seen


def real(type: TensorType, tensor: Tensor) -> Tensor:
    if type.quantization is None:
        return tensor.double() if tensor.is_floating_point() else tensor
    return type.quantization.dequantize(tensor, dtype=torch.float64)
