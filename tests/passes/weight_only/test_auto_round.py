"""Rounding that is trained block by block."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Graph, parse, run, verify
from fxpress.passes import PassResult
from fxpress.passes.base import Context
from fxpress.passes.network_blocks import split_blocks
from fxpress.passes.weight_only import weight_only
from fxpress.specs.options import WeightOnlyOptions

TEXT = """
graph(%x: f32[1x4x16]) {
  const %g: f32[16]
  const %up: f32[32x16]
  const %down: f32[16x32]
  const %shared: f32[16x16]
  const %head: f32[8x16]
  %n: f32[1x4x16] = rms_norm{shape=(16,), eps=1e-05}(%x, %g)
  %u: f32[1x4x32] = linear{clamp=(0.0, inf)}(%n, %up)   # "up", "net.py:1"
  %d: f32[1x4x16] = linear(%u, %down)   # "down", "net.py:2"
  %s: f32[1x4x16] = linear(%d, %shared)   # "first", "net.py:3"
  %r: f32[1x4x16] = add(%d, %s)
  %t: f32[1x4x16] = linear(%r, %shared)   # "second", "net.py:4"
  %y: f32[1x4x8] = linear(%t, %head)   # "head", "net.py:5"
  return output: %y
}"""


def network() -> Graph:
    generator = torch.Generator().manual_seed(0)
    return parse(
        TEXT, fill=lambda v: torch.randn(v.type.shape, generator=generator) / v.type.shape[-1] ** 0.5
    )


def samples(count: int, seed: int = 0) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 4, 16, generator=generator),) for _ in range(count)]


def compress(**rounding: object) -> PassResult:
    settings = {"weights": "int3", "activations": "float32", "rounding": rounding}
    return weight_only(
        network(), WeightOnlyOptions.model_validate(settings), Context(calibration=samples(48))
    )


def test_blocks_are_joined_by_one_value_and_compute_what_the_graph_does() -> None:
    graph = network()
    blocks = split_blocks(graph, {"up", "down", "shared", "head"})
    assert [[v.name for v in block.outputs] for block in blocks] == [[name] for name in "nudrty"]
    (value,) = samples(1)[0]
    for block in blocks:
        verify(block)
        (value,) = run(block, [value])
    assert torch.equal(value, run(graph, samples(1)[0])[0])


@pytest.mark.parametrize("optimizer", ["sign_sgd", "adamw"])
def test_blocks_lose_less_than_to_nearest(optimizer: str) -> None:
    result = compress(kind="auto_round", steps=36, optimizer=optimizer)
    verify(result.graph)
    rows = result.report.table("auto_round").rows
    assert rows and all(after <= before for *_, before, after in rows)
    assert sum(after for *_, after in rows) < 0.95 * sum(before for *_, before, _ in rows)
    held_out = samples(16, seed=5)

    def error(graph: Graph) -> float:
        return sum(float((run(graph, x)[0] - run(network(), x)[0]).square().sum()) for x in held_out)

    assert error(result.graph) < error(compress(kind="nearest").graph)


def test_norms_and_weights_that_several_blocks_read_stay_and_are_named() -> None:
    result, nearest = compress(kind="auto_round", steps=12), compress(kind="nearest")
    for name in ("g", "shared"):
        assert torch.equal(result.graph.params[name], nearest.graph.params[name])
    assert result.report.declined["auto_round"]["not trained: several blocks read it"] == 2


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert compress(kind="auto_round", steps=12).graph == compress(kind="auto_round", steps=12).graph


def test_a_block_may_read_what_is_the_same_for_all_samples() -> None:
    text = TEXT.replace("(%x: f32[1x4x16])", "(%x: f32[1x4x16], %mask: f32[4x16])").replace(
        "add(%d, %s)", "add(%d, %mask)"
    )
    graph = parse(text, fill=lambda v: torch.full(v.type.shape, 0.3) if v.name != "g" else torch.ones(16))
    mask = torch.linspace(0, 1, 64).view(4, 16)
    settings = WeightOnlyOptions.model_validate(
        {"weights": "int3", "activations": "float32", "rounding": {"kind": "auto_round", "steps": 4}}
    )
    data = [(x, mask) for (x,) in samples(6)]
    result = weight_only(graph, settings, Context(calibration=data))
    (table,) = (table for table in result.report.tables if table.name == "auto_round")
    assert [row[0] for row in table.rows] == ["up", "down", "head"]
