"""Recurrent layers on integers in C: the bytes of the interpreter for every kind, size and form, without floats."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxpress.backends.c import CArtifact, SimulatedNetwork, check, emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.ir import Builder, Encoding, Graph, Params, TensorType, Value, run_integer, verify
from fxpress.ir.ops import recurrent_form
from fxpress.ir.ops.accumulate import bias_quantization
from fxpress.ir.ops.base import OPERATORS
from fxpress.ir.ops.recurrent import Recurrent
from fxpress.ir.ops.recurrent_form import UNIT
from fxpress.specs import COutput, load_target
from fxpress.specs.target import Target

SLOW_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
needs_simulator = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")
Draw = Callable[[Value, int], torch.Tensor]
Check = Callable[..., CArtifact]


@dataclass(frozen=True)
class Layer:
    """One layer in one direction, with random integers for weights and inputs."""

    kind: str = "gru"
    inputs: int = 3
    hidden: int = 4
    steps: int = 2
    batch: int = 1
    bits: int = 8
    zero: int = 0
    batch_first: bool = False
    bias: bool = True
    projected: int = 0
    relu: bool = False
    given: bool = True
    cell_bits: int = 9
    scale: float = 2.0**-7
    by_row: bool = True
    weight_bits: int = 8
    seed: int = 0

    def add(self, builder: Builder, name: str) -> tuple[Value, ...]:
        """Inputs and node in a graph that grows; its results."""
        generator = torch.Generator().manual_seed(self.seed)
        options = {"bias": self.bias, "batch_first": self.batch_first}
        options |= {"nonlinearity": "relu"} if self.relu else {}
        options |= {"projection": True} if self.projected else {}
        op = OPERATORS[self.kind](**options)
        assert isinstance(op, Recurrent)
        width = self.projected or self.hidden
        x = Encoding((2.0 ** (3 - self.bits),), (self.zero if self.bits == 8 else 0,), self.bits)
        state = UNIT if op.is_bounded else Encoding((2.0**-9,), bits=16)
        cell = Encoding((2.0**-self.cell_bits,), bits=16)
        shape = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        kept = [(state, width), (cell, self.hidden)][: op.states]
        read = builder.input(name, TensorType((*shape, self.inputs)).quantized(x))
        first = [
            builder.input(f"{name}_{n}", TensorType((1, self.batch, size)).quantized(q))
            if self.given
            else None
            for n, (q, size) in zip("hc", kept, strict=False)
        ]

        def constant(q: Encoding, *shape: int) -> Value:
            largest = min(q.qmax, 30000 // shape[1] if q.bits == 16 else 4000)  # sums fit int32
            least = q.qmin if q.bits <= 8 else -largest
            tensor = torch.randint(least, largest + 1, shape, generator=generator)
            return builder.constant(f"{name}_w", tensor, quantization=q)

        rows = op.gates * self.hidden
        scales = [self.scale * 2.0 ** -(row % 3) for row in range(rows)] if self.by_row else [self.scale]
        weight = Encoding(tuple(scales), bits=self.weight_bits, axis=0 if self.by_row else None)
        operands = [read, *first, constant(weight, rows, self.inputs), constant(weight, rows, width)]
        operands += [constant(bias_quantization(q, weight), rows) for q in (x, state)] if self.bias else []
        operands += (
            [constant(Encoding((self.scale,), bits=self.weight_bits), width, self.hidden)]
            if self.projected
            else []
        )
        inferred = op.infer(*(v and v.type for v in operands))
        types = [t.quantized(q) for t, q in zip(inferred, [state, *(q for q, _ in kept)], strict=True)]
        return builder.append(op, operands, types)


def network(*layers: Layer) -> Graph:
    """Layers beside each other in one graph."""
    builder = Builder()
    outputs = [v for index, layer in enumerate(layers) for v in layer.add(builder, f"x{index}")]
    return verify(builder.build(outputs, output_names=[f"y{i}" for i in range(len(outputs))]))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    kind = draw(st.sampled_from(["rnn", "gru", "lstm"]))
    hidden = draw(st.integers(1, 9))
    return Layer(
        kind,
        inputs=draw(st.integers(1, 9)),
        hidden=hidden,
        steps=draw(st.integers(1, 4)),
        batch=draw(st.integers(1, 3)),
        bits=draw(st.sampled_from([8, 16])),
        zero=draw(st.integers(-128, 127)),
        batch_first=draw(st.booleans()),
        bias=draw(st.booleans()),
        projected=draw(st.integers(1, hidden - 1))
        if kind == "lstm" and hidden > 1 and draw(st.booleans())
        else 0,
        relu=kind == "rnn" and draw(st.booleans()),
        given=draw(st.booleans()),
        cell_bits=draw(st.integers(0, 12)),
        scale=draw(st.sampled_from([2.0**-3, 2.0**-7, 2.0**-10])),
        by_row=draw(st.booleans()),
        weight_bits=draw(st.sampled_from([8, 8, 16])),
        seed=draw(st.integers(0, 99)),
    )


many = st.lists(layers(), min_size=10, max_size=10)


@pytest.mark.parametrize("target", ["host", "cortex_m4"])
@settings(max_examples=3, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(several=many)
def test_recurrent_layers_give_the_bytes_of_the_interpreter(
    several: list[Layer], target: str, request: pytest.FixtureRequest, assert_equal_to_interpreter: Check
) -> None:
    flags = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    machine = request.getfixturevalue(target)
    made = assert_equal_to_interpreter(network(*several), target=machine, flags=flags, seeds=2)
    kernels = {node.kernel for node in made.prediction.nodes}
    assert all(name.endswith("_dsp" if target == "cortex_m4" else "_portable") for name in kernels)


@needs_simulator
@settings(max_examples=2, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(several=many)
def test_the_dsp_instructions_give_the_bytes_of_the_interpreter(
    several: list[Layer], tmp_path: Path, draw: Draw
) -> None:
    large = (Layer("lstm", 70, 67, bits=16, projected=66), Layer("gru", 64, 68), Layer("rnn", 140, 5))
    wide = (Layer("lstm", 70, 67, bits=16, weight_bits=16), Layer("gru", 9, 130, weight_bits=16))
    graph, target = network(*several, *large, *wide), load_target("cortex-m4f")
    simulated = SimulatedNetwork.of(emit(graph, COutput(name="net", io="auto"), target), tmp_path, target)
    inputs = [draw(v, seed) for seed, v in enumerate(graph.inputs)]
    for found, expected in zip(simulated.run(inputs), run_integer(graph, inputs), strict=True):
        assert torch.equal(found, expected)


def test_words_of_coded_weights_are_those_of_single_rows(
    cortex_m4: Target, assert_equal_to_interpreter: Check
) -> None:
    graph = network(Layer("gru", 64, 68))
    matrices = {v.name for v in graph.constants if v.type.rank == 2}
    few = {name: t.clamp(-3, 3) if name in matrices else t for name, t in graph.params.items()}
    graph = replace(graph, params=Params(few))
    plain, coded = (
        assert_equal_to_interpreter(graph, options=COutput(name="net", weights=weights), target=cortex_m4)
        for weights in ("plain", "huffman")
    )
    assert [made.program.steps[0].offer.variant for made in (plain, coded)] == ["paired", ""]
    (constant,) = (c for c in coded.program.steps[0].offer.coded if c.role == "constants")
    assert constant.flash_bytes < 0.5 * constant.bytes


@needs_simulator
@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m0plus"])
def test_a_network_of_recurrent_layers_has_no_float_instruction(core: str, tmp_path: Path) -> None:
    graph, target = (
        network(Layer("lstm"), Layer("gru"), Layer("rnn"), Layer("rnn", relu=True)),
        load_target(core),
    )
    artifact = emit(graph, COutput(name="net", io="auto"), target)
    assert check(graph, COutput(name="net", io="auto", allow_float=False), target) == []
    SimulatedNetwork.of(artifact, tmp_path, target)
    names = {function.name for function in read_elf(tmp_path / "net.elf").functions}
    assert "net_run" in names
    assert not [n for n in names if re.match(r"__aeabi_\w*[fd]|expf|tanhf|__\w*[sd]f\w*$", n)]
    assert b"float" not in artifact.files["net.c"]


def test_a_wrong_rounding_is_found(
    monkeypatch: pytest.MonkeyPatch, assert_equal_to_interpreter: Check
) -> None:
    monkeypatch.setattr(recurrent_form, "_half", lambda x: (x + (1 << 13)) >> 15)
    with pytest.raises(AssertionError, match="step"):
        assert_equal_to_interpreter(network(Layer("gru"), Layer("lstm")))


@pytest.mark.parametrize("core", ["host", "cortex_m4"])
def test_accumulators_that_could_leave_int32_are_refused(core: str, request: pytest.FixtureRequest) -> None:
    graph = network(Layer("rnn", 3, 1200))
    target: Target = request.getfixturevalue(core)
    (problem,) = check(graph, COutput(name="net"), target)
    assert problem.code == "C702" and "can reach an accumulator of" in problem.message
