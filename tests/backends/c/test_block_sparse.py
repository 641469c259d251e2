"""Layers whose weights are zero in blocks of four: the other blocks are read, with the bytes of the interpreter."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends.c import CArtifact, SimulatedNetwork, emit, predict
from fxpress.backends.c.kernels.portable.block_sparse import BLOCK, Blocks
from fxpress.ir import Graph, Value, parse, run_integer
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

OPTIONS = COutput(name="net")
SANITIZED = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
PADDED = "padding=(1, 1, 1, 1)"


@dataclass(frozen=True)
class Layer:
    """A layer in text form: shapes of input, weight and result, types, and the share of blocks that are not zero."""

    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    density: float = 0.1
    residual: bool = False
    inputs: str = "i8"
    results: str = "i8"
    bits: int = 8

    def graph(self) -> Graph:
        """The layer as a network."""
        x, weight, y = ("x".join(map(str, shape)) for shape in (self.x, self.weight, self.y))
        residual = f", %r: {self.results}[{y}]<scale=0.125, zero=0>" if self.residual else ""
        read, result = ", %r" if self.residual else "", 6 if self.results == "i8" else 0
        return parse(
            f"""graph(%x: {self.inputs}[{x}]<scale=0.0625, zero={-3 if self.inputs == "i8" else 0}>{residual}) {{
              const %w: i8[{weight}]<bits={self.bits}, scale=0.0078125, zero=0>
              const %b: i32[{self.weight[0]}]<scale=0.00048828125, zero=0>
              %y: {self.results}[{y}]<scale=0.25, zero={result}> = {self.op}(%x, %w, %b{read})
              return y: %y
            }}""",
            fill=self.constant,
        )

    def constant(self, value: Value) -> torch.Tensor:
        """Random weights, most blocks of which are zero, and biases."""
        generator = torch.Generator().manual_seed(0)
        if value.name == "b":
            return torch.randint(-9000, 9000, value.type.shape, generator=generator, dtype=torch.int32)
        limit = 1 << (self.bits - 1)
        drawn = torch.randint(-limit, limit, value.type.shape, generator=generator).to(value.type.dtype.torch)
        return drawn * kept_blocks(value.type.shape, self.density, generator)


def kept_blocks(shape: tuple[int, ...], density: float, generator: torch.Generator) -> torch.Tensor:
    """A mask of blocks along the input channels, at least one of them kept."""
    blocks = torch.rand(shape[0], -(-shape[1] // BLOCK), *shape[2:], generator=generator) < density
    blocks.view(-1)[-1] = True
    return blocks.repeat_interleave(BLOCK, dim=1)[:, : shape[1]].to(torch.int8)


LAYERS = {
    "linear": Layer("linear", (1, 256), (32, 256), (1, 32)),
    "ragged linear": Layer("linear", (1, 255), (33, 255), (1, 33)),
    "long linear": Layer("linear", (1, 2000), (10, 2000), (1, 10)),
    "long ragged linear": Layer("linear", (1, 302), (10, 302), (1, 10)),
    "linear rows": Layer("linear", (1, 7, 64), (24, 64), (1, 7, 24)),
    "linear of int16 results": Layer("linear", (1, 64), (24, 64), (1, 24), results="i16"),
    "residual": Layer("linear", (1, 64), (64, 64), (1, 64), residual=True),
    "pointwise": Layer("conv", (1, 64, 5, 3), (48, 64, 1, 1), (1, 48, 5, 3)),
    "ragged pointwise": Layer("conv", (1, 30, 5, 4), (48, 30, 1, 1), (1, 48, 5, 4)),
    "batch": Layer("conv", (2, 32, 3, 3), (16, 32, 1, 1), (2, 16, 3, 3)),
    "conv": Layer(f"conv{{{PADDED}}}", (1, 16, 7, 7), (32, 16, 3, 3), (1, 32, 7, 7)),
    "ragged conv": Layer(f"conv{{{PADDED}}}", (1, 10, 6, 6), (12, 10, 3, 3), (1, 12, 6, 6)),
    "strided conv": Layer(
        "conv{stride=(2, 2), padding=(1, 0, 1, 0)}", (1, 16, 8, 8), (16, 16, 3, 3), (1, 16, 4, 4)
    ),
    "residual conv": Layer(f"conv{{{PADDED}}}", (1, 16, 6, 6), (16, 16, 3, 3), (1, 16, 6, 6), residual=True),
    "dilated conv": Layer("conv{dilation=(2, 2)}", (1, 16, 8, 8), (16, 16, 3, 3), (1, 16, 4, 4)),
    "conv of one dimension": Layer(
        "conv{stride=(1,), padding=(0, 0), dilation=(1,)}", (1, 16, 20), (32, 16, 5), (1, 32, 16)
    ),
}


def kernels(artifact: CArtifact) -> list[str]:
    return [node.kernel for node in artifact.prediction.nodes]


def unlimited(core: str) -> Target:
    return load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})


@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m0plus"])
@pytest.mark.parametrize("name", LAYERS)
def test_blocks_compute_the_bytes_of_the_interpreter(
    name: str, core: str, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    artifact = assert_equal_to_interpreter(LAYERS[name].graph(), target=unlimited(core), flags=SANITIZED)
    assert set(kernels(artifact)) - {"convert_layout"} == {"block_sparse"}


@pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None or importlib.util.find_spec("unicorn") is None,
    reason="arm-none-eabi-gcc or unicorn is not installed",
)
@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m0plus"])
@pytest.mark.parametrize("name", ["linear", "ragged pointwise", "residual conv"])
def test_a_core_computes_the_bytes_of_the_interpreter_at_the_predicted_cost(
    name: str, core: str, stated_stack: Callable[[CArtifact, str], int], tmp_path: Path
) -> None:
    artifact = emit(LAYERS[name].graph(), OPTIONS, unlimited(core))
    network = SimulatedNetwork.of(artifact, tmp_path, load_target(core))
    inputs = [
        torch.randint(-128, 128, value.type.shape, generator=torch.Generator().manual_seed(0)).to(torch.int8)
        for value in artifact.graph.inputs
    ]
    assert network.run(inputs)[0].equal(run_integer(artifact.graph, inputs)[0])
    assert network.model.stack_bytes <= stated_stack(artifact, core)
    assert artifact.prediction.instructions == pytest.approx(network.profile(inputs).instructions, rel=0.1)


@pytest.mark.parametrize("weights", ["plain", "huffman"])
def test_blocks_of_weights_that_two_layers_share_are_in_flash_once(
    weights: str, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    layer = LAYERS["residual"]
    text = """graph(%x: i8[1x64]<scale=0.0625, zero=-3>) {
      const %w: i8[64x64]<scale=0.0078125, zero=0>
      %a: i8[1x64]<scale=0.25, zero=6> = linear(%x, %w)
      %b: i8[1x64]<scale=0.25, zero=-6> = linear(%a, %w)
      return b: %b
    }"""
    graph = parse(text, fill=layer.constant)
    options = COutput(name="net", weights=weights)
    artifact = assert_equal_to_interpreter(graph, options=options, target=unlimited("cortex-m4f"))
    assert kernels(artifact) == ["block_sparse"] * 2 or weights == "huffman"
    header = artifact.files["net.c"].decode()
    assert all(
        len(re.findall(rf"extern const \w+ net_{role}", header)) <= 1 for role in ("weights", "block_places")
    )


def test_blocks_are_selected_where_flash_is_short_and_all_weights_where_that_is_faster() -> None:
    graph = replace(LAYERS["linear"], density=0.65).graph()
    roomy = unlimited("cortex-m4f")
    assert kernels(emit(graph, OPTIONS, roomy)) == ["linear_dsp"]
    short = roomy.model_copy(update={"flash": predict(graph, roomy).flash_bytes - 500})
    assert kernels(emit(graph, OPTIONS, short)) == ["block_sparse"]


def test_a_block_at_a_wrong_place_is_found(
    monkeypatch: pytest.MonkeyPatch, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    monkeypatch.setattr(Blocks, "places", property(lambda blocks: blocks.counts.repeat(blocks.counts) * 0))
    with pytest.raises(AssertionError, match="step 0"):
        assert_equal_to_interpreter(LAYERS["linear"].graph(), target=unlimited("cortex-m4f"))


shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 300)).filter(
    lambda shape: shape[1] * shape[2] >= BLOCK
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), shapes, st.floats(0, 1))
def test_blocks_are_all_weights_that_are_not_zero(
    seed: int, shape: tuple[int, int, int], density: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    weights = (weights * (torch.rand(shape, generator=generator) < density)).numpy()
    blocks = Blocks(weights)
    rows = np.zeros((shape[0], shape[1] * shape[2]), np.int64)
    channel = np.repeat(np.arange(shape[0]), blocks.counts)
    for tap in range(BLOCK):
        np.add.at(rows, (channel, blocks.step * blocks.places.astype(int) + tap), blocks.values[:, tap])
    assert np.array_equal(rows, weights.reshape(rows.shape))
    assert blocks.values.any(axis=1).all()
    assert len(blocks.values) == sum(
        bool(tap[start : start + BLOCK].any())
        for tap in weights.reshape(-1, shape[2])
        for start in range(0, shape[2], BLOCK)
    )


@pytest.mark.parametrize(
    "layer",
    [
        replace(LAYERS["linear"], density=1.0),
        replace(LAYERS["linear"], bits=4),
        replace(LAYERS["linear"], inputs="i16", results="i16"),
        Layer("linear", (1, 3), (16, 3), (1, 16)),
        Layer("linear", (1, 66_000), (2, 66_000), (1, 2), density=0.01),
        Layer(f"conv{{{PADDED}, groups=2}}", (1, 16, 6, 6), (16, 8, 3, 3), (1, 16, 6, 6)),
    ],
    ids=["dense", "4 bits", "16 bits", "3 inputs", "many inputs", "groups"],
)
def test_other_layers_have_other_kernels(
    layer: Layer, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    artifact = assert_equal_to_interpreter(layer.graph(), target=unlimited("cortex-m4f"), seeds=1)
    assert "block_sparse" not in kernels(artifact)


def test_computers_multiply_all_weights(host: Target) -> None:
    assert kernels(emit(LAYERS["linear"].graph(), OPTIONS, host)) == ["product_portable"]
