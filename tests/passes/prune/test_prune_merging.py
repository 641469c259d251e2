"""Merging of similar neurons, and biases that absorb removed ones: on networks with a known answer."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fxpress.ir import Graph, Value, parse, run
from fxpress.ir.coupling import couple
from fxpress.passes import Context, PassResult, find_pass
from fxpress.passes.prune.merging import neurons_of, order_of_merging
from fxpress.specs.options import PruneOptions

NET = """
graph(%x: f32[4x2x5x5]) {
  const %a: f32[6x2x3x3]
  const %ab: f32[6]
  const %g: f32[6]
  const %be: f32[6]
  const %m: f32[6]
  const %v: f32[6]
  const %w: f32[3x54]
  %h: f32[4x6x3x3] = conv(%x, %a, %ab)
  %n: f32[4x6x3x3] = batch_norm(%h, %g, %be, %m, %v)
  %r: f32[4x6x3x3] = relu(%n)
  %f: f32[4x54] = reshape{shape=(-1, 54)}(%r)
  %y: f32[4x3] = linear(%f, %w)
  return output: %y
}"""


def net() -> Graph:
    """Channel 4 equals channel 1 up to a scale that the batch norm cancels."""
    generator = torch.Generator().manual_seed(0)

    def fill(value: Value) -> Tensor:
        tensor = torch.randn(value.type.shape, generator=generator)
        return tensor.abs() + 0.5 if value.name in ("g", "v") else tensor

    params = dict(parse(NET, fill=fill).params)
    for name in params.keys() - {"w"}:
        params[name][4] = params[name][1]
    for name in ("a", "ab", "m"):
        params[name][4] *= 2
    params["g"][4] *= ((4 * params["v"][4] + 1e-5) / (params["v"][1] + 1e-5)).sqrt() / 2
    params["v"][4] *= 4
    return parse(NET, params=params)


def prune(graph: Graph, *, data: bool = False, **options: object) -> PassResult:
    calibration = [(torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(s)),) for s in range(4)]
    return find_pass("prune")(
        graph, PruneOptions.model_validate(options), Context(calibration if data else ())
    )


def test_a_copy_of_a_neuron_is_merged_for_nothing() -> None:
    graph = net()
    result = prune(
        graph, score="merging", compensation=("merge",), budget={"channels": "84 %"}, allocation="uniform"
    )
    assert result.graph.params["w"].shape == (3, 45)
    x = [torch.randn(4, 2, 5, 5)]
    assert torch.allclose(run(result.graph, x)[0], run(graph, x)[0], atol=1e-5)
    figures = dict(result.report.table("summary").rows)
    assert figures["error_after_merge"] < 1e-5 < figures["error_before_repair"]


def test_of_two_equal_neurons_only_one_is_cheap() -> None:
    coupling = couple(net())
    (neurons,) = neurons_of(coupling)
    scores = order_of_merging(neurons)
    assert sorted(scores[[1, 4]])[0] < 1e-9 < np.sort(scores)[1]


def test_the_saliency_is_that_of_the_paper() -> None:
    graph = parse("""
graph(%x: f32[1x2]) {
  const %a: f32[3x2]
  const %w: f32[2x3]
  %h: f32[1x3] = linear(%x, %a)
  %r: f32[1x3] = relu(%h)
  %y: f32[1x2] = linear(%r, %w)
  return output: %y
}""")
    graph = graph.with_params(
        {"a": torch.tensor([[0.0, 0], [1, 0], [4, 0]]), "w": torch.tensor([[3.0, 1, 1], [1, 1, 1]])}
    )
    (neurons,) = neurons_of(couple(graph))
    scores = order_of_merging(neurons)
    assert scores[1] == pytest.approx(1.0)  # <1, 1> times |1 - 0|^2: goes first, into neuron 0
    assert scores[2] == pytest.approx(16.0)  # |4 - 0|^2, since neuron 1 has gone


def test_a_bias_takes_the_mean_of_what_goes() -> None:
    graph = net()
    options: dict[str, object] = {"budget": {"channels": "50 %"}, "allocation": "uniform"}
    result = prune(graph, data=True, compensation=("bias",), **options)
    figures = dict(result.report.table("summary").rows)
    assert figures["error_after_bias"] < figures["error_before_repair"]
    added = result.graph.params["w_bias"]
    seen: dict[str, Tensor] = {}
    total = torch.zeros(54)
    for seed in range(4):
        x = torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
        run(graph, [x], observe=lambda value, tensor: seen.update({value.name: tensor}))
        total += seen["f"].mean(0) / 4
    kept = {tuple(column.tolist()) for column in result.graph.params["w"].T}
    gone = [i for i, column in enumerate(graph.params["w"].T) if tuple(column.tolist()) not in kept]
    assert torch.allclose(added, graph.params["w"][:, gone] @ total[gone], atol=1e-5)


def test_repairs_of_the_same_channels_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="compensate for the same channels"):
        PruneOptions.model_validate({"budget": {"macs": "50 %"}, "compensation": ("merge", "bias")})
