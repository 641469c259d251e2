"""Prices of kernels: cost of the same work on each core, cores with cycles, and predictions against counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fxpress.backends.c.kernels
from fxpress.backends.c import Machine, SimulatedNetwork, counted_core, emit, predict
from fxpress.backends.c.kernels.costs import DECODER, CoreCosts, counted_templates
from fxpress.ir import Value, parse
from fxpress.specs import COutput, list_targets, load_target
from fxpress.specs.target import Target

needs_simulator = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")
Fill = Callable[[Value], torch.Tensor]
NET = """
graph(%x: i8[1x8x16x16]<scale=0.05, zero=-3>) {
  const %w: i8[16x8x3x3]<scale=0.01, zero=0>
  const %d: i8[16x1x5x5]<scale=0.01, zero=0>
  const %p: i8[24x16x1x1]<scale=0.01, zero=0>
  const %l: i8[10x24]<scale=0.01, zero=0>
  %c: i8[1x16x8x8]<scale=0.5, zero=-128> = conv{stride=(2, 2), padding=(1, 0, 1, 0), clamp=(0.0, inf)}(%x, %w)
  %e: i8[1x16x8x8]<scale=0.5, zero=-128> = conv{padding=(2, 2, 2, 2), groups=16, clamp=(0.0, inf)}(%c, %d)
  %f: i8[1x24x8x8]<scale=0.5, zero=-1> = conv(%e, %p)
  %a: i8[1x24]<scale=0.5, zero=-1> = mean{axes=(2, 3)}(%f)
  %y: i8[1x10]<scale=0.5, zero=2> = linear(%a, %l)
  return y: %y
}"""
FLOAT = """
graph(%x: f32[1x8x8x8]) {
  const %w: f32[8x8x3x3]
  %y: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %w)
  return y: %y
}"""


def unlimited(name: str) -> Target:
    return load_target(name).model_copy(update={"ram": None, "flash": None, "stack": None})


def test_every_kernel_is_counted_on_some_core() -> None:
    (folder,) = fxpress.backends.c.kernels.__path__
    templates = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in Path(folder).rglob("*.c.j2")
    }
    kernels = {name for name, text in templates.items() if " {{ name }}({{ parameters }})" in text}
    on_cores = {
        name for name in kernels if not name.startswith("host/")
    }  # nothing is predicted for computers
    assert on_cores <= counted_templates(), "make calibrate-costs"


def test_floats_take_many_instructions_where_they_are_computed_in_software(fill: Fill) -> None:
    graph = parse(FLOAT, fill=fill)
    hard, soft = (predict(graph, unlimited(name)).instructions for name in ("cortex-m4f", "cortex-m0plus"))
    assert soft > 10 * hard


@pytest.mark.parametrize("name", ["cortex-m7", "cortex-m33", "cortex-m55", "riscv32", "esp32-c3", "host"])
def test_cores_without_published_timing_have_no_cycles(name: str, fill: Fill) -> None:
    found = predict(parse(NET, fill=fill), unlimited(name))
    assert found.cycles is None and all(node.cycles is None for node in found.nodes)
    assert found.unit == "instructions" and found.time == found.instructions > 0


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m4f"])
def test_cores_with_published_timing_have_cycles(name: str, fill: Fill) -> None:
    found = predict(parse(NET, fill=fill), unlimited(name))
    assert found.cycles is not None and found.cycles > found.instructions


@pytest.mark.parametrize(
    "name", [name for name in list_targets() if name not in ("host", "esp32-c3", "riscv32")]
)
def test_every_cortex_m_takes_its_own_prices(name: str) -> None:
    assert counted_core(load_target(name)) == name


def test_a_core_that_is_not_counted_takes_the_prices_of_the_nearest() -> None:
    other = load_target("cortex-m55").model_copy(update={"core": "cortex-m85", "measured": "cortex-m85"})
    assert counted_core(other) == "cortex-m33"
    assert counted_core(load_target("esp32-c3")) == "rv32imc"
    assert not CoreCosts.of(Machine.of(load_target("host"))).has_cycles


def test_every_counted_core_has_prices_of_the_decoder() -> None:
    for name in list_targets():
        assert CoreCosts.of(Machine.of(load_target(name))).instructions[DECODER]


def test_elements_of_functions_of_the_library_have_prices_of_their_own(fill: Fill) -> None:
    def instructions(op: str) -> int:
        text = f"graph(%x: f32[1x4000]) {{\n  %y: f32[1x4000] = {op}(%x)\n  return y: %y\n}}"
        return predict(parse(text, fill=fill), unlimited("cortex-m4f")).instructions

    assert 5 * instructions("relu") < instructions("exp") < instructions("tanh")


def test_a_causal_attention_takes_about_half(fill: Fill) -> None:
    def instructions(attributes: str) -> int:
        tensors = ", ".join(f"%{name}: f32[1x2x64x32]" for name in "qkv")
        text = f"graph({tensors}) {{\n  %y: f32[1x2x64x32] = attention{attributes}(%q, %k, %v)\n  return y: %y\n}}"
        return predict(parse(text, fill=fill), unlimited("cortex-m4f")).instructions

    assert 0.5 < instructions("{causal=True}") / instructions("") < 0.6


@needs_simulator
@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33"])
def test_predicted_instructions_are_near_the_counted_ones(name: str, fill: Fill, tmp_path: Path) -> None:
    pytest.importorskip("unicorn")
    artifact = emit(parse(NET, fill=fill), COutput(name="net", self_test=0), unlimited(name))
    network = SimulatedNetwork.of(artifact, tmp_path, unlimited(name))
    x = torch.randint(-128, 128, (1, 8, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    counted = network.profile([x]).instructions
    assert 0.9 < artifact.prediction.instructions / counted < 1.1
