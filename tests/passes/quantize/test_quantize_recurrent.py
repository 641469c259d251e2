"""Recurrent layers are quantized to integers: every kind, its states between calls, and layers that stay in float."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import Builder, Graph, Params, TensorType, parse, run, run_integer, verify
from fxpress.ir.graph import Source
from fxpress.ir.ops.base import OPERATORS
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.recurrent import Recurrent
from fxpress.ir.ops.recurrent_form import TANH_STEP
from fxpress.ir.testing import assert_equivalent, drawn_constant
from fxpress.passes import Context, PassResult, find_pass
from fxpress.passes.quantize.recurrent_layers import split_recurrent
from fxpress.specs.options import QuantizeOptions

few = settings(max_examples=max(8, settings.default.max_examples // 4))
STATES = {"h": "h_out", "c": "c_out"}


@dataclass(frozen=True)
class Network:
    """A recurrent layer between inputs and a linear layer, with torch's initial weights times a factor."""

    kind: str
    inputs: int = 3
    hidden: int = 8
    steps: int = 6
    batch: int = 1
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = True
    projects: bool = False
    relu: bool = False
    given: bool = False
    factor: float = 1.0

    def graph(self) -> Graph:
        """The network; with states given, these are inputs and outputs, too."""
        generator = torch.Generator().manual_seed(1)
        options = {"bias": self.bias, "batch_first": self.batch_first, "bidirectional": self.bidirectional}
        options |= {"nonlinearity": "relu"} if self.relu else {}
        options |= {"projection": True} if self.projects else {}
        op = OPERATORS[self.kind](layers=self.layers, **options)
        assert isinstance(op, Recurrent)
        builder, width = Builder(), 3 if self.projects else self.hidden
        shape = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        x = builder.input("x", TensorType((*shape, self.inputs)))
        cells = self.layers * op.directions
        sizes = {"h": width, "c": self.hidden}
        names = list(sizes)[: op.states]
        states = [
            builder.input(n, TensorType((cells, self.batch, sizes[n]))) if self.given else None for n in names
        ]

        def weight(*shape: int) -> Tensor:
            bound = self.factor * self.hidden**-0.5
            return (torch.rand(shape, generator=generator) * 2 - 1) * bound

        rows, weights = op.gates * self.hidden, []
        for cell in range(cells):
            read = self.inputs if cell < op.directions else width * op.directions
            shapes = [(rows, read), (rows, width), *[(rows,)] * (2 * self.bias)]
            shapes += [(width, self.hidden)] * self.projects
            weights += [builder.constant(f"w{len(weights) + i}", weight(*s)) for i, s in enumerate(shapes)]
        operands = [x, *states, *weights]
        types = op.infer(*(v and v.type for v in operands))
        y, *last = builder.append(op, operands, types, source=Source("net.rnn"))
        head = builder.constant("head", weight(2, width * op.directions))
        out = builder.add(Linear(), y, head, source=Source("net.head"))
        outputs = [out, *last] if self.given else [out]
        return verify(
            builder.build(outputs, output_names=["y", *(f"{n}_out" for n in names)][: len(outputs)])
        )

    def samples(self, count: int, *, largest: float = 0.9) -> list[tuple[Tensor, ...]]:
        """Inputs of the network."""
        generator = torch.Generator().manual_seed(0)
        inputs = self.graph().inputs

        def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
            x = torch.randn(shape, generator=generator)
            return x if name == "x" else x.clamp(-largest, largest)

        return [tuple(drawn(v.name, v.type.shape) for v in inputs) for _ in range(count)]

    def quantized(self, *, states: bool = False, largest: float = 0.9, **options: object) -> PassResult:
        """The network on integers."""
        context = Context(
            calibration=self.samples(12, largest=largest),
            selects=lambda pattern, module: pattern in ("*", module),
            state={k: v for k, v in STATES.items() if k in {i.name for i in self.graph().inputs}}
            if states
            else {},
        )
        return find_pass("quantize")(self.graph(), QuantizeOptions.model_validate(options), context)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    kind = draw(st.sampled_from(["rnn", "gru", "lstm"]))
    return Network(
        kind,
        inputs=draw(st.integers(1, 5)),
        hidden=draw(st.integers(4, 9)),
        steps=draw(st.integers(1, 6)),
        batch=draw(st.integers(1, 3)),
        layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bias=draw(st.booleans()),
        projects=kind == "lstm" and draw(st.booleans()),
        relu=kind == "rnn" and draw(st.booleans()),
        given=draw(st.booleans()),
    )


def error(graph: Graph, integers: Graph, samples: list[tuple[Tensor, ...]]) -> float:
    """Largest error of the first output of a graph on integers."""
    pairs = ((run(graph, sample)[0], run_integer(integers, sample)[0]) for sample in samples)
    return max(float((exact - found).abs().max()) for exact, found in pairs)


def snr(graph: Graph, integers: Graph, samples: list[tuple[Tensor, ...]]) -> float:
    """Signal to noise ratio of the first output of a graph on integers, in decibels."""
    exact = torch.cat([run(graph, sample)[0] for sample in samples])
    found = torch.cat([run_integer(integers, sample)[0] for sample in samples])
    return float(10 * torch.log10(exact.square().mean() / (exact - found).square().mean()))


@few
@given(networks())
def test_a_node_for_each_layer_and_direction_computes_the_same(network: Network) -> None:
    graph = network.graph()
    split = verify(split_recurrent(graph, lambda module: False))
    assert sum(isinstance(n.op, Recurrent) for n in split.nodes) == network.layers * (
        1 + network.bidirectional
    )
    (sample,) = network.samples(1)
    assert_equivalent(run(split, sample), run(graph, sample), atol=1e-6, rtol=1e-5)


@few
@given(networks(), st.sampled_from(["int8", "int16"]), st.booleans())
def test_every_recurrent_network_computes_on_integers(
    network: Network, activations: str, states: bool
) -> None:
    graph = network.graph()
    result = network.quantized(states=states, activations=activations)
    verify(result.graph)
    real = {n.op.name for n in result.graph.nodes if not any(v.type.is_quantized for v in n.outputs)}
    assert real <= {"dequantize"}
    samples = network.samples(6)
    few_steps = 4 * TANH_STEP  # of the gates: below, a signal that decays from layer to layer is lost
    assert snr(graph, result.graph, samples) > 20 or error(graph, result.graph, samples) < few_steps
    layers = next(t for t in result.report.tables if t.name == "layers")
    rows = [row for row in layers.rows if row[1] == network.kind]
    assert len(rows) == network.layers * (1 + network.bidirectional)
    assert all(row[2] == "net.rnn" and row[3] == 8 and row[5] > 0 for row in rows)


@pytest.mark.parametrize(("kind", "least"), [("gru", 23), ("lstm", 34), ("rnn", 23)])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_sixty_four_units_keep_their_precision(kind: str, least: float, factor: float) -> None:
    network = Network(kind, inputs=16, hidden=64, steps=49, factor=factor)
    graph, result = network.graph(), network.quantized(activations="int16").graph
    samples = network.samples(4)
    assert snr(graph, result, samples) > least


def of_length(graph: Graph, x: Tensor) -> Graph:
    """The graph for another length of its sequence."""
    builder = Builder(params=graph.params)
    current = {v.name: v for v in graph.constants}
    for value in graph.inputs:
        shape = tuple(x.shape) if value.name == "x" else value.type.shape
        current[value.name] = builder.input(value.name, value.type.with_shape(shape))
    for node in graph.nodes:
        results = builder.keep(node, [v and current[v.name] for v in node.inputs])
        current |= {old.name: new for old, new in zip(node.outputs, results, strict=True)}
    return verify(builder.build([current[v.name] for v in graph.outputs], output_names=graph.output_names))


@few
@given(networks(), st.integers(1, 5))
def test_states_that_calls_hand_on_continue_the_sequence_exactly(network: Network, cut: int) -> None:
    network = replace(network, given=True, steps=6, bidirectional=False)
    graph, (whole,) = network.quantized(states=True).graph, network.samples(1)
    time = 1 if network.batch_first else 0
    expected, found, states = run_integer(graph, whole), [], whole[1:]
    for part in whole[0].split([cut, 6 - cut], time):
        y, *states = run_integer(of_length(graph, part), [part, *states])
        found.append(y)
    assert torch.equal(torch.cat(found, time), expected[0])
    assert all(torch.equal(a, b) for a, b in zip(states, expected[1:], strict=True))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_first_and_last_states_of_all_layers_have_one_encoding(kind: str) -> None:
    graph = Network(kind, layers=3, given=True).quantized(states=True).graph
    entered = {n.operands[0].name: n.output.type.quantization for n in graph.nodes if n.op.name == "quantize"}
    left = {
        name: graph.producers[v.name].operands[0].type.quantization
        for name, v in zip(graph.output_names, graph.outputs, strict=True)
    }
    for before, after in STATES.items():
        assert entered.get(before) == left.get(after)
    assert "requantize" not in {node.op.name for node in graph.nodes}


def test_the_encoding_of_a_cell_represents_those_of_all_steps() -> None:
    """The input fills the cell in the first half of the sequence, and empties it in the second."""
    wi = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    builder = Builder()
    x = builder.input("x", TensorType((40, 1, 1)))
    weights = [builder.constant("wi", wi), builder.constant("wh", torch.zeros(4, 1))]
    weights += [
        builder.constant("bi", torch.tensor([20.0, 5.0, 0.0, 0.0])),
        builder.constant("bh", torch.zeros(4)),
    ]
    op = OPERATORS["lstm"]()
    operands = [x, None, None, *weights]
    y, _, cell = builder.append(op, operands, op.infer(*(v and v.type for v in operands)))
    graph = builder.build([y, cell], output_names=["y", "c"])
    sample = (torch.cat([torch.full((20, 1, 1), 2.0), torch.full((20, 1, 1), -2.0)]),)
    assert run(graph, sample)[1].abs().max() < 8
    result = find_pass("quantize")(graph, QuantizeOptions(), Context(calibration=[sample])).graph
    (node,) = (node for node in result.nodes if node.op.name == "lstm")
    assert (
        node.outputs[2].type.quantization.scale[0] == 2.0**-10
    )  # up to 32, the next power of two beyond 16.2


def test_first_states_beyond_one_keep_a_layer_in_float() -> None:
    result = Network("gru", given=True).quantized(largest=3.0)
    (decision,) = (d for d in result.report.decisions if d.name == "gru")
    assert not decision.applied and "states from -1 to 1, initial ones, too" in decision.reason
    assert Network("gru", given=True).quantized().report.decisions[0].applied


def test_a_layer_whose_accumulator_could_overflow_stays_in_float() -> None:
    result = Network("rnn", hidden=1400, steps=2).quantized()
    (decision,) = (d for d in result.report.decisions if d.name == "rnn")
    assert not decision.applied and "a recurrent layer can reach an accumulator of" in decision.reason


def test_layers_that_the_spec_keeps_in_float_stay_whole() -> None:
    result = Network("lstm", layers=2, bidirectional=True).quantized(layers={"net.rnn": "float32"})
    (node,) = (node for node in result.graph.nodes if node.op.name == "lstm")
    assert node.op.layers == 2 and not node.outputs[0].type.is_quantized


def test_weights_of_fewer_bits_and_one_scale_for_a_matrix() -> None:
    result = Network("gru", hidden=8).quantized(weights="int4", per_channel=False).graph
    (node,) = (node for node in result.nodes if node.op.name == "gru")
    encodings = [v.type.quantization for v in node.op.matrices_of(node.inputs)]
    assert [(q.bits, len(q.scale)) for q in encodings] == [(4, 1)] * 2


def test_state_and_cell_in_one_tensor_keep_the_range_of_the_cell() -> None:
    text = """graph(%x: f32[1x1x3], %s: f32[1x1x4]) {
      const %wi: f32[8x3]
      const %wh: f32[8x2]
      const %bi: f32[8]
      const %bh: f32[8]
      %h: f32[1x1x2], %c: f32[1x1x2] = split{axis=2, sizes=(2, 2)}(%s)
      %y: f32[1x1x2], %l: f32[1x1x2], %m: f32[1x1x2] = lstm(%x, %h, %c, %wi, %wh, %bi, %bh)
      %n: f32[1x1x4] = concat{axis=2}(%l, %m)
      return y: %y, n: %n
    }"""
    graph, generator = parse(text, fill=drawn_constant), torch.Generator().manual_seed(0)
    graph = replace(graph, params=Params({**graph.params, "bi": torch.full((8,), 3.0)}))
    samples, exact, state = [], [], torch.zeros(1, 1, 4)
    for _ in range(40):
        samples.append((torch.randn(1, 1, 3, generator=generator), state))
        y, state = run(graph, samples[-1])
        exact.append(y)
    assert state.abs().max() > 1.5
    context = Context(calibration=samples, state={"s": "n"})
    result = find_pass("quantize")(graph, QuantizeOptions(), context).graph
    assert next(n for n in result.nodes if n.op.name == "lstm").outputs[0].type.is_quantized
    found, state = [], torch.zeros(1, 1, 4)
    for x, _ in samples:
        y, state = run_integer(result, [x, state])
        found.append(y)
    wanted, got = torch.cat(exact), torch.cat(found)
    assert 10 * torch.log10(wanted.square().mean() / (wanted - got).square().mean()) > 30
