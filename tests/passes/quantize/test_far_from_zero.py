"""Values far from zero: zero is on their grid only where something needs it there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import capture
from fxpress.compiler.data import snr_db
from fxpress.ir import Encoding, Graph, run, run_integer
from fxpress.passes import Context, find_pass
from fxpress.specs.options import QuantizeOptions


def quantized(model: nn.Module, samples: list[Tensor]) -> tuple[Graph, Graph]:
    """A captured module, and its integer graph."""
    graph = capture(model.eval(), (samples[0],)).graph
    context = Context(calibration=[(x,) for x in samples])
    return graph, find_pass("quantize")(graph, QuantizeOptions(), context).graph


def grid_of_input(graph: Graph) -> Encoding:
    """The grid on which a graph quantizes what comes from outside."""
    (node,) = (n for n in graph.nodes if n.op.name == "quantize")
    assert node.output.type.quantization is not None
    return node.output.type.quantization


def samples(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [1000 + 5 * torch.randn(1, *shape, generator=generator) for _ in range(32)]


class Split(nn.Module):
    """A layer that reads differences of its input as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4, bias=False)
        with torch.no_grad():
            self.layer.weight -= self.layer.weight.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_an_input_far_from_zero_keeps_its_precision() -> None:
    torch.manual_seed(0)
    far = samples(6)
    graph, integer = quantized(Split(), far)
    grid = grid_of_input(integer)
    assert not grid.holds_zero and grid.scale[0] < 0.2  # with zero on it, a step is 4
    assert (
        float(grid.dequantize(grid.quantize(torch.cat(far))).sub(torch.cat(far)).abs().max()) <= grid.scale[0]
    )
    results = [torch.cat([f(g, [x])[0] for x in far]) for f, g in ((run, graph), (run_integer, integer))]
    assert snr_db(*results) > 25


NEEDS_ZERO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "padding of a convolution": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 8)),
    "padding": (lambda: nn.Sequential(nn.ConstantPad1d(1, 0.0), nn.Conv1d(2, 3, 3)), (2, 8)),
    "padding of a pool": (lambda: nn.AvgPool1d(3, padding=1), (2, 8)),
}


@pytest.mark.parametrize("case", NEEDS_ZERO)
def test_what_pads_has_zero_on_its_grid(case: str) -> None:
    build, shape = NEEDS_ZERO[case]
    torch.manual_seed(0)
    _, integer = quantized(build(), samples(*shape))
    assert grid_of_input(integer).holds_zero


def test_a_layer_of_many_weights_stays_on_integers() -> None:
    """The zero point counts in every product: it is no larger than the accumulator allows."""
    torch.manual_seed(0)
    _, integer = quantized(nn.Linear(4096, 2), [x + 1e6 for x in samples(4096)])
    (layer,) = (n for n in integer.nodes if n.op.name == "linear")
    assert layer.output.type.is_quantized


def test_values_near_zero_keep_it() -> None:
    torch.manual_seed(0)
    _, integer = quantized(nn.Linear(6, 4), [x / 1000 + 0.01 for x in samples(6)] + [torch.full((1, 6), 0.1)])
    assert grid_of_input(integer).holds_zero


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - 1000) / 5)


def test_a_scaled_and_shifted_input_is_quantized_after_that() -> None:
    _, integer = quantized(Scaled(), samples(6))
    (node,) = (n for n in integer.nodes if n.op.name == "quantize")
    assert node.operands[0].name != "x"
    assert grid_of_input(integer).scale[0] == pytest.approx(6.2 / 255, rel=0.2)
