"""The C of random streamed networks, with its states in place, computes the bytes of the integer graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from window_networks import Network, integers, networks

from fxpress.backends.c import SimulatedNetwork, emit
from fxpress.ir import run_integer
from fxpress.passes import stream
from fxpress.specs import COutput, load_target


@pytest.mark.parametrize("order", ["channels last", "model"])
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(network=networks())
def test_calls_on_a_core_give_the_bytes_of_the_integer_graph(
    network: Network, order: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network = integers(network)
    streamed = stream(network.graph, axis=network.axis, hop=network.hop)
    word = {3: "ntc", 4: "nhwc"} if order == "channels last" else {}
    named = {v.name: v for v in streamed.graph.inputs}
    layouts = {
        end: word[named[state].type.rank]
        for state, after in streamed.state.items()
        for end in (state, after)
        if named[state].type.rank in word
    }
    options = COutput(name="net", states="in_place", layouts=layouts, self_test=0)
    target = load_target("cortex-m4")
    artifact = emit(streamed.graph, options, target, states=streamed.state)
    core = SimulatedNetwork.of(artifact, folder_of(tmp_path_factory), target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        given_ = [codes(v.type.shape, v.type.dtype.torch, generator) for v in artifact.graph.inputs]
        for found, expected in zip(core.run(given_), run_integer(artifact.graph, given_), strict=True):
            assert torch.equal(found, expected)


def codes(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator)
    return torch.randint(-128, 128, shape, generator=generator).to(dtype)


def folder_of(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("net")
