"""Emitted modules of networks that share layers, weights and names: every form gives the results of the graph."""

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional

from fxpress.backends.torch_module import TorchOptions, emit
from fxpress.compiler import capture
from fxpress.ir import Graph, run
from fxpress.passes import Context, find_pass


class ConvCalledTwiceOneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).relu()
        return y + self.conv(y)


class ConvCalledTwiceNamesTaken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.bn2 = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.conv_2 = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return self.bn2(self.conv(self.bn(self.conv(y)))) + self.conv_2(y)


class TiedWithoutBias(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=bias)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class TiedOneBias(TiedWithoutBias):
    def __init__(self) -> None:
        super().__init__(bias=True)


class AliasedModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.list = nn.ModuleList([self.a, self.a, nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.list:
            x = torch.relu(layer(x))
        return self.a(x)


class OneLayerThreeNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        self.bn = nn.ModuleList([nn.BatchNorm1d(4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.bn:
            x = torch.relu(norm(self.fc(x)))
        return x


class ConvolutionBothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv_transpose1d(torch.relu(self.conv(x)), self.conv.weight, padding=1)


class ConvolutionInTwoStrides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(self.conv(x), self.conv.weight, self.conv.bias, stride=2)


class WeightInExpressions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x) * self.l.weight.sum(0) + self.l.bias


class WeightsWithoutModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.w = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(6, 4))
        self.b, self.w_2 = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(functional.linear(x, self.weight), self.w, self.b)
        return functional.linear(x, self.w_2)


class NamesOfTheCompiler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.bn, self.l_2 = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Parameter(torch.randn(4))
        self.l.register_parameter("weight_1", nn.Parameter(torch.randn(4, 4)))
        self.l.register_buffer("weight_scale", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.l(x))
        return self.l(torch.tanh(y)) @ self.l.weight_1 + self.l_2 * self.l.weight_scale


class _Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 4))


class _Uses(nn.Module):
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight)


class BufferOfAnotherModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.holder, self.u, self.v = _Holder(), _Uses(), _Uses()

    def forward(self, x: Tensor) -> Tensor:
        return self.v(torch.relu(self.u(x, self.holder.weight)), self.holder.weight)


class NormsCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.ln, self.conv = nn.BatchNorm1d(4), nn.LayerNorm(8), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(self.bn(self.ln(self.bn(self.conv(x))) + x))


class BlockCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(4, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.relu(self.bn(self.conv(x)))
        return x


class NormAloneCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.tanh(self.bn(torch.relu(x))))


class PairCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(torch.relu(self.b(self.a(x)))))


class NormByHandCalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.rand(8) + 0.5)

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-5) * self.g

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(torch.tanh(self._norm(x)))


class OneTensorFourRoles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.v, self.v, self.v, self.v)


class PartsOfOneStorage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(8, 4)
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.a.weight, self.b.weight = nn.Parameter(both[:4]), nn.Parameter(both[4:])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class LookedUpAndFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.a.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        rows = functional.embedding(torch.tensor([0, 1]), self.a.weight)
        return rows + self.b(torch.tanh(self.a(x)))


SIGNALS = (ConvCalledTwiceOneNorm, ConvCalledTwiceNamesTaken, ConvolutionBothWays, ConvolutionInTwoStrides)
CALLED_TWICE = (BlockCalledTwice, NormAloneCalledTwice, PairCalledTwice, NormByHandCalledTwice)
SHAPES = {net: (2, 4, 8) for net in (*SIGNALS, *CALLED_TWICE, NormsCalledTwice, OneTensorFourRoles)} | {
    net: (2, 4)
    for net in (
        TiedWithoutBias,
        TiedOneBias,
        AliasedModules,
        OneLayerThreeNorms,
        WeightInExpressions,
        WeightsWithoutModules,
        NamesOfTheCompiler,
        BufferOfAnotherModule,
        PartsOfOneStorage,
        LookedUpAndFrozen,
    )
}
FOLDED: list[tuple[str, dict[str, object]]] = [("clean", {}), ("fuse", {})]
PIPELINES: dict[str, tuple[str, list[tuple[str, dict[str, object]]]]] = {
    "float": ("float", FOLDED),
    "qdq": ("qdq", [*FOLDED, ("quantize", {"bias_correction": False})]),
    "qdq, a scale per tensor": ("qdq", [*FOLDED, ("quantize", {"per_channel": False})]),
    "eager": ("eager", [*FOLDED, ("quantize", {})]),
    "integer weights": ("float", [("clean", {}), ("weight_only", {"group_size": 2})]),
}


def compiled(
    graph: Graph, passes: list[tuple[str, dict[str, object]]], batches: list[tuple[Tensor]]
) -> Graph:
    context = Context(original=graph, calibration=batches)
    for name, options in passes:
        found = find_pass(name)
        graph = found(graph, found.options(**options), context).graph
    return graph


@pytest.mark.parametrize("net", SHAPES, ids=lambda net: net.__name__)
def test_every_form_computes_the_graph_and_is_loaded_from_its_files(net, tmp_path):
    torch.manual_seed(0)
    model = net().eval()
    for name, statistics in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(statistics)
    batches = [(torch.randn(SHAPES[net]),) for _ in range(4)]
    captured = capture(model, batches[0])
    for pipeline, (form, passes) in PIPELINES.items():
        if pipeline == "integer weights" and not any(isinstance(m, nn.Linear) for m in model.modules()):
            continue
        graph = compiled(captured.graph, passes, batches)
        buffers = graph.params.keys() - captured.trainable
        artifact = emit(graph, TorchOptions(form, buffers=frozenset(buffers)))
        artifact.save(tmp_path)
        namespace = {}
        exec((tmp_path / "model.py").read_text(), namespace)
        module = namespace["Model"]()
        load_model(module, tmp_path / "model.safetensors")
        with torch.no_grad():
            computed, (expected,) = module.eval()(*batches[0]), run(graph, batches[0])
        largest = float((computed - expected).abs().max() / expected.abs().max())
        assert largest <= (1e-5 if form == "float" else 0.05), pipeline  # integers may be a step apart


@pytest.mark.parametrize("net", CALLED_TWICE, ids=lambda net: net.__name__)
def test_calls_of_a_layer_share_what_is_computed_from_its_weights(net):
    torch.manual_seed(0)
    model = net().eval()
    batches = [(torch.randn(2, 4, 8),) for _ in range(4)]
    captured = capture(model, batches[0])
    folded = compiled(captured.graph, FOLDED, batches)
    graph = compiled(folded, [("quantize", {})], batches)
    stored = [v for v in graph.constants if v.type.dtype.bytes == 1 or v.type.dtype.is_floating]
    assert len(stored) == 1 and len(graph.users[stored[0].name]) == 2
    artifact = emit(graph, TorchOptions("qdq", buffers=frozenset(graph.params.keys() - captured.trainable)))
    weights = [t for t in artifact.tensors.values() if t.dtype is torch.int8]
    assert len(weights) == stored[0].type.is_quantized
