"""The cost model of the pipeline: the costs that passes receive for a graph are those of the compiled result."""

from pathlib import Path

import pytest
import torch

from fxpress.compiler import compile_model, open_session
from fxpress.compiler.target_cost import TargetCost
from fxpress.ir import Node, Precision, parse
from fxpress.ir.testing import drawn_constant
from fxpress.passes import Context, PassError

FLOAT = "passes=[{pass: clean}, {pass: fuse}]"
LEARNED = "passes=[{pass: clean}, {pass: fuse}, {pass: quantize, rounding: {kind: adaround, iterations: 1000000000}}]"
TRAINED = "passes=[{pass: clean}, {pass: finetune, epochs: 1000000}, {pass: fuse}, {pass: quantize}]"


def cost_model(project: Path, *overrides: str) -> TargetCost:
    """The cost model for the first pass of the project's spec."""
    session = open_session(project / "net.yaml", overrides=overrides)
    assert session.calibration is not None
    context = Context([(x,) for x in session.calibration.first(4).inputs[0].split(1)])
    return TargetCost(session.target, session.spec.outputs.c, session.spec.passes, context)


def test_the_predicted_cost_is_that_of_the_compiled_network(project: Path) -> None:
    compiled = compile_model(project / "net.yaml")
    cost = cost_model(project).predict(compiled.session.captured)
    resources = {resource.name: resource.used for resource in compiled.report.resources}
    # other samples give other zero points, which the text of the code, and so its estimate, depends on
    assert cost.flash_bytes == pytest.approx(resources["flash"], rel=0.04)
    assert cost.arena_bytes == resources["arena"]
    assert cost.cycles == resources["cycles"]
    assert sum(node.flash_bytes for node in cost.nodes) <= cost.flash_bytes
    assert {node.module for node in cost.nodes} >= {"stem.0", "head"}
    assert "relu" in {block.value for block in cost.arena}


def test_a_network_that_is_not_quantized_is_predicted_in_float(project: Path) -> None:
    graph = open_session(project / "net.yaml").captured
    in_float, in_int8 = cost_model(project, FLOAT).predict(graph), cost_model(project).predict(graph)
    assert in_float.arena_bytes > 2 * in_int8.arena_bytes
    assert in_float.cycles > 2 * in_int8.cycles


def test_training_takes_no_part_in_a_prediction(project: Path) -> None:
    graph = open_session(project / "net.yaml").captured
    assert cost_model(project, TRAINED).predict(graph) == cost_model(project).predict(graph)


def test_no_rounding_is_learned_for_a_prediction(project: Path) -> None:
    graph = open_session(project / "net.yaml").captured
    assert cost_model(project, LEARNED).predict(graph) == cost_model(project).predict(graph)


class Chain(torch.nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        super().__init__(conv(1, 8, 5), relu(), conv(8, 8, 1), relu(), torch.nn.MaxPool2d(4), conv(8, 4, 1))


def test_layers_run_by_rows_before_channels_are_removed() -> None:
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    passes = ["clean", {"pass": "prune", "budget": "target"}, "fuse", "quantize"]
    pruned = compile_model(
        Chain().eval(),
        inputs=images[:1],
        calibration=images,
        passes=passes,
        target={"name": "cortex-m4f", "ram": "3 KiB"},
        outputs="c",
    )
    assert pruned.graph.macs == pruned.session.captured.macs
    assert pruned.c is not None and pruned.c.program.stages and pruned.c.plan.arena_bytes <= 3 * 1024


def test_the_same_graph_is_predicted_once(project: Path) -> None:
    graph, costs = open_session(project / "net.yaml").captured, cost_model(project)
    assert costs.predict(graph) is costs.predict(graph)
    layers = {"head": Precision(8)}
    assert costs.predict(graph, layers=layers) is not costs.predict(graph)


def test_bits_are_those_for_which_the_target_has_kernels(project: Path) -> None:
    graph, costs = open_session(project / "net.yaml").captured, cost_model(project)

    def node(op: str) -> Node:
        return next(node for node in graph.nodes if node.op.name == op)

    assert 8 in costs.weight_bits(node("conv")) and 8 in costs.activation_bits(node("linear"))
    assert costs.weight_bits(node("relu")) == () and 8 in costs.activation_bits(node("relu"))


class Digamma(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.digamma(image.flatten(1))[:, :5]


def test_what_the_target_cannot_carry_has_no_cost(project: Path) -> None:
    graph = open_session(project / "net.yaml", model=Digamma().eval()).captured
    with pytest.raises(
        PassError, match=r"no cost prediction on cortex-m4f:\n.*: no C kernel for aten.digamma.*\[C702\]"
    ):
        cost_model(project, FLOAT).predict(graph)


def test_doubles_have_no_cost_and_the_layers_are_named(project: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).double().eval()
    override = "model.inputs.image.dtype=float64"
    graph = open_session(project / "net.yaml", overrides=[override], model=model).captured
    with pytest.raises(PassError, match=r"\n  1: linear on elements of type f64.*`dtype: float32`.*\[C703\]"):
        cost_model(project, FLOAT).predict(graph)


def test_limits_are_those_of_the_target_with_the_changes_of_the_spec(project: Path) -> None:
    costs = cost_model(project, "target.ram=32 KiB")
    assert (costs.ram_limit, costs.flash_limit) == (32 * 1024, 1024 * 1024)


def test_a_layer_inside_the_network_may_have_several_rows(project: Path) -> None:
    graph = parse("""
graph(%x: f32[6x1x16]) {
  const %w: f32[4x16]
  %y: f32[6x1x4] = linear(%x, %w)
  return output: %y
}""", fill=drawn_constant)  # fmt: skip
    assert cost_model(project).weight_bits(graph.nodes[0]) == (2, 4, 8, 16)
