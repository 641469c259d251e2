"""Attention on integers in C: the bytes of the interpreter for every shape, mask and width, without floats."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxpress.backends.c import CArtifact, SimulatedNetwork, check, emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.ir import Builder, DType, Encoding, Graph, TensorType, Value, run_integer, verify
from fxpress.ir.ops import attention_form
from fxpress.ir.ops.attention import Attention
from fxpress.ir.ops.attention_form import SCORES
from fxpress.ir.ops.shape import Permute
from fxpress.specs import COutput, load_target

SLOW_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
needs_simulator = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")
Draw = Callable[[Value, int], torch.Tensor]
Check = Callable[..., CArtifact]
MASKS = ("none", "causal", "keys", "keys of all", "positions", "constant")


@dataclass(frozen=True)
class Layer:
    """One attention; `wide` says which of queries, keys, values and result have 16 bits."""

    queries: int = 5
    keys: int = 5
    features: int = 8
    values: int = 8
    heads: int = 2
    served: int = 1
    batch: int = 1
    mask: str = "none"
    empty: str = "zero"
    biased: bool = False
    zeros: tuple[int, int, int] = (0, 0, 0)
    wide: tuple[bool, bool, bool, bool] = (False, False, False, False)
    scale: float = 0.03
    interleaved: bool = True
    seed: int = 0

    def add(self, builder: Builder, name: str) -> Value:
        """Inputs and node in a graph that grows; its result."""
        generator = torch.Generator().manual_seed(self.seed)
        heads = (self.heads * self.served, self.heads, self.heads)
        sizes = ((self.queries, self.features), (self.keys, self.features), (self.keys, self.values))
        operands: list[Value | None] = [
            self._input(builder, f"{name}_{role}", count, *size, self._encoding(index, self.scale))
            for index, (role, count, size) in enumerate(zip("qkv", heads, sizes, strict=True))
        ]
        shapes = {
            "keys": (self.batch, 1, 1, self.keys),
            "keys of all": (self.keys,),
            "positions": (heads[0], self.queries, self.keys),
        }
        if self.mask in shapes:
            shape = shapes[self.mask] if len(shapes[self.mask]) > 1 else (1, self.keys)
            operands.append(builder.input(f"{name}_m", TensorType(shape, DType.BOOL)))
        elif self.mask == "constant":
            kept = torch.rand(self.queries, self.keys, generator=generator) < 0.7
            operands.append(builder.constant(f"{name}_m", kept))
        else:
            operands.append(None)
        if self.biased:
            added = torch.randint(-32768, 32768, (heads[0], 1, self.keys), generator=generator)
            operands.append(builder.constant(f"{name}_b", added, quantization=SCORES))
        op = Attention(self.mask == "causal", grouped=self.served > 1, empty=self.empty)
        result = self._encoding(3, self.scale / 2)
        return builder.add(op, *operands, quantization=result, name=f"{name}_y")

    def _encoding(self, index: int, scale: float) -> Encoding:
        zero = (*self.zeros, 0)[index]
        return Encoding((scale / 256,), bits=16) if self.wide[index] else Encoding((scale,), (zero,))

    def _input(
        self, builder: Builder, name: str, heads: int, length: int, width: int, encoding: Encoding
    ) -> Value:
        """[n, h, l, e], in memory as it is or with the heads of a position side by side."""
        if not self.interleaved:
            return builder.input(name, TensorType((self.batch, heads, length, width)).quantized(encoding))
        read = builder.input(name, TensorType((self.batch, length, heads, width)).quantized(encoding))
        return builder.add(Permute((0, 2, 1, 3)), read, quantization=encoding)


def network(*layers: Layer) -> Graph:
    """Layers beside each other in one graph."""
    builder = Builder()
    outputs = [layer.add(builder, f"x{index}") for index, layer in enumerate(layers)]
    return verify(builder.build(outputs, output_names=[f"y{i}" for i in range(len(outputs))]))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    mask = draw(st.sampled_from(MASKS))
    return Layer(
        queries=draw(st.integers(1, 9)),
        keys=draw(st.integers(1, 19)),
        features=draw(st.integers(1, 19)),
        values=draw(st.integers(1, 9)),
        heads=draw(st.integers(1, 3)),
        served=draw(st.integers(1, 2)),
        batch=draw(st.integers(1, 2)),
        mask=mask,
        empty=draw(st.sampled_from(["zero", "uniform", "all"])) if mask != "causal" else "zero",
        biased=draw(st.booleans()),
        zeros=draw(st.tuples(*[st.integers(-128, 127)] * 3)) if draw(st.booleans()) else (0, 0, 0),
        wide=draw(st.tuples(*[st.booleans()] * 4))
        if draw(st.booleans())
        else (False, False, False, draw(st.booleans())),
        scale=draw(st.sampled_from([0.003, 0.03, 0.3])),
        interleaved=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


many = st.lists(layers(), min_size=10, max_size=10)


@pytest.mark.parametrize("target", ["host", "cortex_m4"])
@settings(max_examples=3, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(several=many)
def test_attention_gives_the_bytes_of_the_interpreter(
    several: list[Layer], target: str, request: pytest.FixtureRequest, assert_equal_to_interpreter: Check
) -> None:
    flags = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    assert_equal_to_interpreter(
        network(*several), target=request.getfixturevalue(target), flags=flags, seeds=2
    )


@needs_simulator
@settings(max_examples=2, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(several=many)
def test_the_dsp_instructions_give_the_bytes_of_the_interpreter(
    several: list[Layer], tmp_path: Path, draw: Draw
) -> None:
    large = (
        Layer(20, 70, 64, 6),
        Layer(4, 33, 32, 32, mask="keys", biased=True),
        Layer(30, 30, mask="causal"),
    )
    graph, target = network(*several, *large), load_target("cortex-m4f")
    simulated = SimulatedNetwork.of(emit(graph, COutput(name="net", io="auto"), target), tmp_path, target)
    inputs = [draw(v, seed) for seed, v in enumerate(graph.inputs)]
    for found, expected in zip(simulated.run(inputs), run_integer(graph, inputs), strict=True):
        assert torch.equal(found, expected)


def test_dsp_kernels_take_int8_of_any_shape() -> None:
    taken = [Layer(24, 24, width, mask=mask, biased=True) for mask in MASKS for width in (3, 16, 40)]
    artifact = emit(network(*taken), COutput(name="net", io="auto"), load_target("cortex-m4f"))
    kernels = [n.kernel for n in artifact.prediction.nodes if "attention" in n.kernel]
    assert kernels == ["attention_dsp"] * len(taken)


@needs_simulator
@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m0plus"])
def test_a_network_of_attention_has_no_float_instruction(core: str, tmp_path: Path) -> None:
    graph, target = network(Layer(mask="causal"), Layer(mask="keys", biased=True)), load_target(core)
    artifact = emit(graph, COutput(name="net", io="auto"), target)
    assert check(graph, COutput(name="net", io="auto", allow_float=False), target) == []
    SimulatedNetwork.of(artifact, tmp_path, target)
    names = {function.name for function in read_elf(tmp_path / "net.elf").functions}
    assert "net_run" in names
    assert not [n for n in names if re.match(r"__aeabi_[fd]|expf|__\w*[sd]f\w*$", n)]
    assert b"float" not in artifact.files["net.c"]


def test_a_hidden_key_that_counts_is_found(
    monkeypatch: pytest.MonkeyPatch, assert_equal_to_interpreter: Check
) -> None:
    monkeypatch.setattr(attention_form, "HIDDEN", 1 << 11)
    with pytest.raises(AssertionError, match="step"):
        assert_equal_to_interpreter(network(Layer(mask="causal"), Layer(mask="keys")))


def test_alike_layers_share_their_functions() -> None:
    several = [
        Layer(scale=scale, zeros=(1, 2, 3), seed=seed) for seed, scale in enumerate((0.02, 0.025, 0.03))
    ]
    source = emit(network(*several), COutput(name="net", io="auto"), load_target("cortex-m4f")).files["net.c"]
    assert len(re.findall(rb"^FXP_NO\w+ void net_attention_\d+\(", source, re.MULTILINE)) == 1
