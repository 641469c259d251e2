"""Inputs of integers and images with means: no float before the first layer, and nothing lost there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpress.backends.c.plan.edges import strip_edges
from fxpress.compiler import capture
from fxpress.compiler.data import snr_db
from fxpress.ir import Graph, run, run_integer
from fxpress.passes import Context, PassResult, find_pass
from fxpress.passes.quantize.first_layers import fold_into_first_layers
from fxpress.specs.options import QuantizeOptions

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
UNLIKE = torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1)


class Net(nn.Module):
    """A layer after a function of its input."""

    def __init__(self, before: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.before, self.layer = before, layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.before(x))
        return y


def conv(**options: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 6, 3, **options)


def pixels(*shape: int, highest: int = 255) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, highest + 1, shape, generator=generator).to(torch.uint8) for _ in range(8)]


def quantized(model: nn.Module, data: list[Tensor]) -> tuple[Graph, PassResult]:
    graph = capture(model.eval(), (data[0],)).graph
    context = Context(calibration=[(x,) for x in data])
    return graph, find_pass("quantize")(graph, QuantizeOptions(), context)


def snr_of(graph: Graph, integer: Graph, data: list[Tensor]) -> float:
    results = [torch.cat([f(g, [x])[0] for x in data]) for f, g in ((run, graph), (run_integer, integer))]
    return snr_db(*results)


def operators(graph: Graph) -> list[str]:
    return [node.op.name for node in strip_edges(graph).graph.nodes]


def by_channel(x: Tensor) -> Tensor:
    return (x - MEAN) / DEVIATION


BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "x / 255": lambda x: x / 255,
    "x - mean": lambda x: x.float() - 117,
    "(x - mean) / deviation": lambda x: (x.float() - 128) / 64,
    "-1 to 1": lambda x: x / 127.5 - 1,
    "half a step": lambda x: (x.float() - 127.5) / 128,
    "by channel": lambda x: by_channel(x / 255),
}


@pytest.mark.parametrize("layer", ["conv", "groups", "linear"])
@pytest.mark.parametrize("before", BEFORE)
def test_no_float_is_left_before_the_first_layer(before: str, layer: str) -> None:
    make = {"conv": conv, "groups": lambda: conv(groups=3), "linear": lambda: nn.Linear(5, 4)}[layer]
    data = pixels(1, 3, 5, 5, highest=180)
    graph, made = quantized(Net(BEFORE[before], make()), data)
    if before == "by channel" and layer == "linear":  # which mixes the last dimension, not the channels
        assert operators(made.graph)[0] == "offset_binary"
        return
    assert operators(made.graph) == ["offset_binary", layer.replace("groups", "conv")]
    assert snr_of(graph, made.graph, data) > 38


def test_half_a_step_stays_at_the_border_alone() -> None:
    data = pixels(1, 3, 8, 8)
    graph, made = quantized(Net(BEFORE["half a step"], conv(padding=1)), data)
    assert operators(made.graph) == ["offset_binary", "conv"]
    (said,) = (d.reason for d in made.report.decisions if d.rule == "fold_input")
    assert said.startswith("0.5 of a step of the input") and "at the border" in said
    errors = [(run(graph, [x])[0] - run_integer(made.graph, [x])[0]).abs() for x in data]
    error = torch.cat(errors)
    inside, all_of_it = float(error[..., 1:-1, 1:-1].mean()), float(error.mean())
    assert all_of_it > inside


def test_means_of_channels_before_a_layer_that_pads_stay_and_it_is_said() -> None:
    data = [x / 255 for x in pixels(1, 3, 8, 8)]
    _, made = quantized(Net(by_channel, conv(padding=1)), data)
    assert operators(made.graph) == ["sub", "mul", "conv"]
    (said,) = (d for d in made.report.decisions if d.rule == "fold_input")
    assert not said.applied and "the layer pads" in said.reason


def test_channels_of_very_different_scales_are_not_put_on_one_grid() -> None:
    graph = capture(Net(lambda x: x / UNLIKE, conv()).eval(), (torch.randn(1, 3, 5, 5),)).graph
    folded, (said,) = fold_into_first_layers(graph)
    assert folded is graph and "differ too much" in said.reason


@pytest.mark.parametrize("layer", [conv(), conv(groups=3), conv(bias=False), nn.Linear(5, 4)])
def test_the_fold_keeps_the_function(layer: nn.Module) -> None:
    shape = (5,) if isinstance(layer, nn.Linear) else (3, 1, 1)
    torch.manual_seed(1)
    scale, shift = torch.rand(shape) + 0.5, torch.randn(shape)
    graph = capture(Net(lambda x: 3 * (x - shift) / scale, layer).eval(), (torch.randn(1, 3, 5, 5),)).graph
    folded, (said,) = fold_into_first_layers(graph)
    assert said.applied and len(folded.nodes) == 1
    x = torch.randn(1, 3, 5, 5)
    assert torch.allclose(run(folded, [x])[0], run(graph, [x])[0], atol=1e-4)


def test_two_inputs_that_one_layer_reads_share_its_folded_weights() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = conv()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            a: Tensor = self.layer(by_channel(x / 255))
            return a - self.layer(by_channel(y / 255))

    data = [(x, 255 - x) for x in pixels(1, 3, 8, 8)]
    graph = capture(Siamese().eval(), data[0]).graph
    integer = find_pass("quantize")(graph, QuantizeOptions(), Context(calibration=data)).graph
    first, second = (node for node in integer.nodes if node.op.name == "conv")
    assert first.inputs[1] == second.inputs[1] and "div" not in operators(integer)
