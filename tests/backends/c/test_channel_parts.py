"""Convolutions before a mean in parts of their channels: the same bytes, in less memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxpress.backends.c import check, emit
from fxpress.backends.c.lower import pareto
from fxpress.backends.c.plan.channel_parts import in_channel_parts
from fxpress.compiler import capture
from fxpress.ir import Graph, parse, run, run_integer
from fxpress.passes import Context, find_pass
from fxpress.specs import COutput
from fxpress.specs.options import FuseOptions, QuantizeOptions

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.avg_pool3d}
needs_arm = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: torch.relu(x).mean(tuple(range(2, x.ndim))),
    "flat mean": lambda x: functional.hardswish(x).flatten(2).mean(2, keepdim=True),
    "maximum": lambda x: functional.gelu(x).flatten(2).amax(2),
    "window": lambda x: POOLS[x.ndim - 2](functional.silu(x), tuple(x.shape[2:])),
    "adaptive": lambda x: functional.adaptive_avg_pool3d(x, 1) if x.ndim == 5 else x.flatten(2).mean(2),
}


class Head(nn.Module):
    """A convolution to many channels, of which one number each remains."""

    def __init__(self, rank: int, channels: int, *, reduction: str = "mean", bias: bool = True) -> None:
        super().__init__()
        self.stem = CONVOLUTIONS[rank](3, 8, 3, padding=1)
        self.head = CONVOLUTIONS[rank](8, channels, 1, bias=bias)
        self.last = nn.Linear(channels, 5)
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        x = REDUCTIONS[self.reduction](self.head(torch.relu(self.stem(x))))
        scores: Tensor = self.last(x.flatten(1))
        return scores


def compiled(
    model: nn.Module, shape: tuple[int, ...], **options: object
) -> tuple[Graph, list[tuple[Tensor]]]:
    """The fused graph, on integers unless `weights` is float32, and samples."""
    torch.manual_seed(0)
    samples = [(torch.randn(1, *shape),) for _ in range(4)]
    context = Context(calibration=samples)
    graph = find_pass("fuse")(capture(model.eval(), samples[0]).graph, FuseOptions(), context).graph
    if options.get("weights") == "float32":
        return graph, samples
    chosen = QuantizeOptions.model_validate({"min_snr": None, **options})
    return find_pass("quantize")(graph, chosen, context).graph, samples


FORMS = ({"weights": "float32"}, {}, {"per_channel": False}, {"weights": "int4"}, {"activations": "int16"})


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("shape", [(3, 9), (3, 5, 4), (3, 3, 2, 4)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_parts_compute_the_same(options, shape, reduction):
    head = Head(len(shape) - 1, 22, reduction=reduction, bias=reduction != "mean")
    graph, samples = compiled(head, shape, **options)
    is_float = options == FORMS[0]
    for parts in (2, 4):
        split, names = in_channel_parts(graph, parts, 0)
        assert names == ("head",)
        assert [value.type for value in split.outputs] == [value.type for value in graph.outputs]
        for sample in samples:
            (wanted,), (found,) = ((run if is_float else run_integer)(one, sample) for one in (graph, split))
            torch.testing.assert_close(
                found, wanted, rtol=1e-5 if is_float else 0, atol=1e-5 if is_float else 0
            )


class Body(nn.Module):
    """A stem, then layers that end with one number or more for each channel."""

    def __init__(self, form: str, channels: int = 18) -> None:
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head, self.other = nn.Conv2d(8, channels, 1), nn.Conv2d(8, channels, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.prelu, self.last = nn.PReLU(channels), nn.Linear(channels, 5)
        self.squeeze, self.scale = (
            nn.Conv2d(channels, channels, 1),
            nn.Parameter(torch.rand(channels, 1, 1) + 0.5),
        )
        self.position = nn.Parameter(torch.rand(1, channels, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(BODIES[self.form](self, torch.relu(self.stem(x))).flatten(1))
        return scores


def squeezed(body: Body, x: Tensor) -> Tensor:
    y = body.head(x)
    return (y * torch.sigmoid(body.squeeze(y.mean((2, 3), keepdim=True)))).mean((2, 3))


BODIES: dict[str, Callable[[Body, Tensor], Tensor]] = {
    "depthwise": lambda body, x: torch.relu(body.depthwise(torch.relu(body.head(x)))).mean((2, 3)),
    "prelu": lambda body, x: body.prelu(body.depthwise(body.head(x))).amax((2, 3)),
    "two readers": lambda body, x: (y := body.head(x)).mean((2, 3)) + y.amax((2, 3)),
    "sum of two": lambda body, x: torch.relu(body.head(x) + body.other(x)).mean((2, 3)),
    "gate": lambda body, x: (torch.sigmoid(body.head(x)) * body.other(x)).mean((2, 3)),
    "twice": lambda body, x: ((y := body.head(x)) * torch.sigmoid(y)).mean((2, 3)),
    "constant": lambda body, x: torch.relu(body.head(x) * body.scale).mean((2, 3)),
    "position": lambda body, x: torch.relu(body.head(x) + body.position).mean((2, 3)),
    "pooled": lambda body, x: functional.max_pool2d(body.head(x), 3).mean((2, 3)),
}
WHOLE: dict[str, Callable[[Body, Tensor], Tensor]] = {
    "squeeze and excite": squeezed,
    "convolution of itself": lambda body, x: ((y := body.head(x)) + body.squeeze(y)).mean((2, 3)),
    "shuffled": lambda body, x: body.head(x).view(1, 2, 9, 36).transpose(1, 2).reshape(1, 18, 36).mean(2),
    "large result": lambda body, x: body.head(x)[:, :, :5, :5],
}


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("form", BODIES)
def test_all_that_computes_each_channel_runs_in_parts(form, options):
    graph, samples = compiled(Body(form), (3, 6, 6), **options)
    is_float = options == FORMS[0]
    split, names = in_channel_parts(graph, 4, 0)
    assert "head" in names
    largest = max(node.output.type.storage_bytes for node in graph.nodes if node.op.name == "conv")
    assert max(node.output.type.storage_bytes for node in split.nodes if node.op.name == "conv") < largest
    for sample in samples:
        (wanted,), (found,) = ((run if is_float else run_integer)(one, sample) for one in (graph, split))
        torch.testing.assert_close(found, wanted, rtol=1e-5 if is_float else 0, atol=1e-5 if is_float else 0)


CONSTANT_RESIDUAL = """graph(%x: i8[1x8x6x6]<scale=0.0625, zero=0>) {
  const %w: i8[16x8x1x1]<scale=0.0078125, zero=0>
  const %b: i32[16]<scale=0.00048828125, zero=0>
  const %r: i8[1x16x6x6]<scale=0.0625, zero=0>
  %a: i8[1x16x6x6]<scale=0.25, zero=0> = conv(%x, %w, %b, %r)
  %y: i8[1x16x1x1]<scale=0.25, zero=0> = max_pool{kernel=(6, 6), stride=(6, 6)}(%a)
  return y: %y
}"""


def test_a_constant_residual_is_cut_with_its_channels(fill):
    graph = parse(CONSTANT_RESIDUAL, fill=fill)
    split, names = in_channel_parts(graph, 2, 0)
    assert names == ("a",)
    x = torch.randint(-128, 128, (1, 8, 6, 6), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run_integer(split, [x])[0], run_integer(graph, [x])[0])


@pytest.mark.parametrize("form", WHOLE)
def test_what_needs_all_channels_is_left_whole(form, monkeypatch):
    monkeypatch.setitem(BODIES, form, WHOLE[form])
    model = Body(form)
    model.last = nn.Identity()
    graph, _ = compiled(model, (3, 6, 6))
    assert in_channel_parts(graph, 2, 0) == (graph, ())


def test_small_results_and_few_channels_are_left_alone():
    graph, _ = compiled(Head(2, 16), (3, 6, 6))
    assert in_channel_parts(graph, 2, 0)[1] == ("head",)
    assert in_channel_parts(graph, 8, 0) == (graph, ())
    assert in_channel_parts(graph, 2, 16 * 36 + 1) == (graph, ())


@needs_arm
def test_a_large_result_before_a_mean_runs_in_parts_where_ram_is_short(
    cortex_m4, assert_equal_to_interpreter
):
    graph, _ = compiled(Head(2, 256), (3, 12, 12))
    whole = emit(graph, COutput(), cortex_m4.with_ram(None))
    target = cortex_m4.with_ram(14_000)
    artifact = assert_equal_to_interpreter(graph, target=target)
    assert whole.plan.arena_bytes > 36_000 and artifact.plan.arena_bytes <= 14_000
    assert artifact.prediction.time < 1.1 * whole.prediction.time
    assert any("head in 4 parts of the channels" in note for note in artifact.lowered.notes)
    assert not check(graph, COutput(), target)


@needs_arm
@pytest.mark.parametrize("form", ["depthwise", "sum of two", "two readers"])
def test_parts_in_c(form, cortex_m4, assert_equal_to_interpreter):
    graph, _ = compiled(Body(form, 96), (3, 12, 12))
    whole = emit(graph, COutput(), cortex_m4.with_ram(None)).plan.arena_bytes
    artifact = assert_equal_to_interpreter(graph, target=cortex_m4.with_ram(9_000))
    assert any("parts of the channels" in note for note in artifact.lowered.notes)
    assert artifact.plan.arena_bytes <= 9_000 < whole / 1.5


def test_a_front_has_less_memory_for_more_time(cortex_m4):
    class Network(Head):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(functional.max_pool2d(x, 2))

    graph, _ = compiled(Network(2, 96), (3, 16, 16))
    front = pareto(graph, COutput(), cortex_m4)
    arenas, times = [one.plan.arena_bytes for one in front], [one.prediction.time for one in front]
    assert len(front) > 3
    assert arenas == sorted(set(arenas), reverse=True) and times == sorted(set(times))
