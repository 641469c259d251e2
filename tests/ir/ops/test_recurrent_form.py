"""Recurrent layers on integers: near the reals, exactly as defined, and refused outside their definition."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import Encoding, Graph, OverflowBoundError, VerifyError, dump, parse, run_integer, verify
from fxpress.ir.interpolation import interpolate
from fxpress.ir.ops.recurrent import Gru, Lstm
from fxpress.ir.ops.recurrent_form import (
    SIGMOID_STEP,
    TANH_STEP,
    UNIT,
    Product,
    RecurrentForm,
    cell_encoding,
    sigmoid_table,
    tanh_table,
)
from fxpress.ir.testing import examples, to_integers

KINDS = ("rnn", "gru", "lstm")
UNIT_TEXT = "<scale=3.0517578125e-05, zero=0>"
CELL = "i16[1x1x2]<scale=0.001953125, zero=0>"
LSTM = f"""graph(%x: i8[3x1x2]<scale=0.03125, zero=5>, %c: {CELL}) {{
  const %wi: i8[8x2]<scale=0.0078125, zero=0>
  const %wh: i8[8x2]<scale=0.0078125, zero=0>
  %y: i16[3x1x2]{UNIT_TEXT}, %s: i16[1x1x2]{UNIT_TEXT}, %m: {CELL} = lstm{{bias=False}}(%x, none, %c, %wi, %wh)
  return y: %y, s: %s, m: %m
}}"""


def drawn(seed: int, *shape: int, bits: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(1 << (bits - 1)) + 1, 1 << (bits - 1), shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_integers_are_near_the_reals(kind: str, data: st.DataObject) -> None:
    """Weights and input are those that the integers represent, so that only gates and state are rounded."""
    example = data.draw(examples(kind))
    graph = verify(to_integers(example.graph, example.inputs))
    node = next(node for node in graph.nodes if node.op.name == kind)
    assert node.outputs[0].type.is_quantized == node.op.is_single or node.op.states_of(node.inputs)[0]
    if not node.outputs[0].type.is_quantized:
        return
    seen = {v.name: graph.params[v.name] for v in graph.constants}
    seen |= {v.name: t for v, t in zip(graph.inputs, example.inputs, strict=True)}
    run_integer(graph, example.inputs, observe=lambda value, tensor: seen.update({value.name: tensor}))
    reals = [v and v.type.quantization.dequantize(seen[v.name], dtype=torch.float64) for v in node.inputs]
    for value, exact in zip(node.outputs, node.op.reference(*reals), strict=True):
        found = value.type.quantization.dequantize(seen[value.name], dtype=torch.float64)
        assert (found - exact).abs().max() <= 3e-3 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize(
    ("table", "function", "step", "most"),
    [(sigmoid_table, torch.sigmoid, SIGMOID_STEP, 2.3), (tanh_table, torch.tanh, TANH_STEP, 4.0)],
)
def test_functions_are_within_a_few_steps_everywhere(table, function, step, most) -> None:
    places = torch.arange(-(1 << 15), 1 << 15)
    exact = function(places.double() * step) * 2**15
    assert (interpolate(table(), places) - exact).abs().max() <= most
    assert len(table()) == 513 and table().abs().max() == 32767


def saturated(v: int) -> int:
    return max(-(1 << 15), min((1 << 15) - 1, v))


def halved(v: int) -> int:
    return (v + (1 << 14)) >> 15


def function(table: Tensor, x: int) -> int:
    index, part = (x + (1 << 15)) >> 7, x & 127
    return (int(table[index]) * (128 - part) + int(table[index + 1]) * part + 64) >> 7


def parts(product: Product, x: Tensor, weight: Tensor, bias: Tensor) -> list[int]:
    """Requantized products of each row, by Python's integers."""
    found = []
    for row, multiplier in enumerate(product.multipliers):
        acc = int(bias[row])
        for w, v in zip(weight[row].tolist(), x.tolist(), strict=True):
            acc += w * (v - product.zero_point)
        found.append((((acc << product.shift) * multiplier) + (1 << 31)) >> 32)
    return found


@given(st.integers(0, 999), st.integers(0, 12), st.sampled_from([0.01, 1.0]))
def test_a_step_of_an_lstm_is_what_its_definition_says(seed: int, bits: int, scale: float) -> None:
    hidden = 3
    form = lstm_form(bits, scale, hidden)
    x, state, cell = drawn(seed, 2), drawn(seed + 1, hidden, bits=16), drawn(seed + 2, hidden, bits=16)
    weights = [drawn(seed + 3, 4 * hidden, 2), drawn(seed + 4, 4 * hidden, hidden)]
    biases = [drawn(seed + 5 + i, 4 * hidden, bits=16) for i in range(2)]
    y, last, memory = form.apply(x[None, None], [state[None], cell[None]], weights, biases)
    p = parts(form.products[0], x, weights[0], biases[0])
    q = parts(form.products[1], state, weights[1], biases[1])
    gates = [saturated(a + b) for a, b in zip(p, q, strict=True)]
    for j in range(hidden):
        enter, keep, leave = (function(sigmoid_table(), gates[at * hidden + j]) for at in (0, 1, 3))
        fresh = function(tanh_table(), gates[2 * hidden + j])
        expected = saturated(halved(keep * int(cell[j]) + ((enter * fresh) >> (15 - bits))))
        shown = function(tanh_table(), saturated(expected << (12 - bits)))
        assert memory[0, j] == expected
        assert y[0, 0, j] == last[0, j] == halved(leave * shown)


def lstm_form(bits: int, scale: float, hidden: int) -> RecurrentForm:
    weight = Encoding(tuple(0.001 * (row + 1) for row in range(4 * hidden)), axis=0)
    steps = [step for step in Lstm().gate_steps for _ in range(hidden)]
    x = Encoding((scale,), (-7,))
    return RecurrentForm("lstm", (Product.of(x, weight, steps), Product.of(UNIT, weight, steps)), bits)


@given(st.integers(0, 999))
def test_a_step_of_a_gru_is_what_its_definition_says(seed: int) -> None:
    hidden = 3
    weight = Encoding((0.01,))
    steps = [step for step in Gru().gate_steps for _ in range(hidden)]
    products = Product.of(Encoding((0.5,), (3,)), weight, steps), Product.of(UNIT, weight, steps)
    x, state = drawn(seed, 2), drawn(seed + 1, hidden, bits=16)
    weights = [drawn(seed + 2, 3 * hidden, 2), drawn(seed + 3, 3 * hidden, hidden)]
    biases = [drawn(seed + 4 + i, 3 * hidden, bits=16) for i in range(2)]
    y, _ = RecurrentForm("gru", products).apply(x[None, None], [state[None]], weights, biases)
    p, q = (
        parts(product, v, w, b)
        for product, v, w, b in zip(products, (x, state), weights, biases, strict=True)
    )
    for j in range(hidden):
        reset, keep = (function(sigmoid_table(), saturated(p[at] + q[at])) for at in (j, hidden + j))
        inner = halved(reset * saturated(q[2 * hidden + j]))
        fresh = function(tanh_table(), saturated(saturated(p[2 * hidden + j]) + inner))
        assert y[0, 0, j] == fresh + halved(keep * (int(state[j]) - fresh))


def lstm(text: str = LSTM) -> Graph:
    return verify(parse(text, fill=lambda value: drawn(len(value.name), *value.type.shape).to(torch.int8)))


def test_the_text_form_reads_back() -> None:
    assert parse(dump(lstm()), params=lstm().params) == lstm()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.001953125", "0.003", "power of two"),
        ("%s: i16[1x1x2]<scale=3.0517578125e-05", "%s: i16[1x1x2]<scale=0.001", "the same encoding"),
        ("%c: i16[1x1x2]<scale=0.001953125", "%c: i16[1x1x2]<scale=0.00390625", "the same encoding"),
        ("%m: i16[1x1x2]", "%m: i8[1x1x2]", "results of 16 bits"),
        ("i8[8x2]<scale=0.0078125, zero=0>", "i8[8x2]<scale=0.0078125, zero=1>", "symmetric"),
        ("3.0517578125e-05", "0.001", "from -1 to 1"),
    ],
)
def test_types_without_an_integer_form_are_refused(old: str, new: str, message: str) -> None:
    assert old in LSTM
    with pytest.raises(VerifyError, match=message):
        lstm(LSTM.replace(old, new))


def test_several_layers_are_refused_on_integers() -> None:
    constants = "".join(f"const %{n}: i8[2x2]<scale=0.0078125, zero=0>\n" for n in "abcd")
    unit = f"<scale={UNIT.scale[0]!r}, zero=0>"
    text = f"""graph(%x: i8[3x1x2]<scale=0.03, zero=5>) {{ {constants}
      %y: i16[3x1x2]{unit}, %s: i16[2x1x2]{unit} = rnn{{layers=2, bias=False}}(%x, none, %a, %b, %c, %d)
      return y: %y }}"""
    with pytest.raises(VerifyError, match=re.escape("rnn on integers supports one layer and one direction")):
        lstm(text)


def test_accumulators_that_could_leave_int32_are_refused() -> None:
    product = Product.of(UNIT, Encoding((0.01,)), [TANH_STEP])
    assert product.prove(UNIT, torch.full((1, 515), 127), None) == 515 * 127 * 32768
    with pytest.raises(OverflowBoundError, match="can reach an accumulator of 2,151,"):
        product.prove(UNIT, torch.full((1, 517), 127), None)


def test_left_shifts_that_could_leave_int32_are_refused() -> None:
    x = Encoding((1000.0,))
    product = Product.of(x, Encoding((1.0,)), [TANH_STEP])
    assert product.shift == 23 and product.prove(x, torch.ones(1, 1), None) == 128
    with pytest.raises(OverflowBoundError, match="can reach an accumulator of 256"):
        product.prove(x, torch.ones(1, 2), None)


def test_the_encoding_of_a_cell_is_the_finest_that_represents_it() -> None:
    fractions = {0.0: 12, 7.99: 12, 8.0: 11, 37.0: 9, 32767.0: 0, 1e9: 0}
    assert {x: cell_encoding(x).scale[0] for x in fractions} == {x: 2.0**-n for x, n in fractions.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_a_sequence_in_parts_gives_the_same_integers(kind: str, data: st.DataObject) -> None:
    example = data.draw(examples(kind).filter(lambda e: e.node.op.is_single and not e.node.op.batch_first))
    graph = to_integers(example.graph, example.inputs)
    node = next(node for node in graph.nodes if node.op.name == kind)
    if not node.outputs[0].type.is_quantized:
        return
    op, types = node.op, node.operand_types
    x = drawn(0, *node.operand("x").type.shape)
    read = [None if v is None else graph.params.get(v.name) for v in node.inputs]
    read = [t if t is None else t.to(torch.int64) for t in read]
    form = op.form(types, node.output_types)
    zeros = [torch.zeros(t.shape, dtype=torch.int64)[0] for t in node.output_types[1:]]
    matrices, biases = op.matrices_of(read), op.biases_of(read)
    whole = form.apply(x, zeros, matrices, biases)
    first = form.apply(x[:1], zeros, matrices, biases)
    rest = form.apply(x[1:], first[1:], matrices, biases) if len(x) > 1 else first
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest[1:], strict=True))
