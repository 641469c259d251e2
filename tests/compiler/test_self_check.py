"""The run of an emitted module against its graph: planted faults are found, legitimate rounding passes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxpress.backends.torch_module import TorchOptions, emit
from fxpress.compiler import capture, compile_model, emission
from fxpress.compiler.self_check import InconsistencyError, check_module
from fxpress.ir import Graph
from fxpress.passes import Context, find_pass

FORMS = {
    "float": ("float", [("clean", {}), ("fuse", {})]),
    "qdq": ("qdq", [("clean", {}), ("fuse", {}), ("quantize", {})]),
    "eager": ("eager", [("clean", {}), ("fuse", {}), ("quantize", {})]),
    "native": ("native", [("clean", {}), ("fuse", {}), ("quantize", {})]),
    "integer weights": ("float", [("clean", {}), ("weight_only", {"group_size": 8})]),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(y)) + y)


def graph_of(passes) -> tuple[Graph, list[tuple[torch.Tensor]]]:
    torch.manual_seed(0)
    batches = [(torch.randn(1, 16),) for _ in range(8)]
    graph = capture(Net().eval(), batches[0]).graph
    context = Context(original=graph, calibration=batches)
    for name, options in passes:
        found = find_pass(name)
        graph = found(graph, found.options(**options), context).graph
    return graph, batches


@pytest.mark.parametrize("name", FORMS)
def test_two_layers_that_take_each_others_weights_are_found(name):
    form, passes = FORMS[name]
    graph, batches = graph_of(passes)
    artifact = emit(graph, TorchOptions(form))
    check_module(artifact, graph, batches[0])
    (first, *_) = [key for key in artifact.tensors if key.startswith("a.weight")]
    second = first.replace("a.", "b.", 1)
    tensors = {**artifact.tensors, first: artifact.tensors[second], second: artifact.tensors[first]}
    with pytest.raises(
        InconsistencyError, match=r"output output of the emitted torch module differs from the graph by"
    ):
        check_module(replace(artifact, tensors=tensors), graph, batches[0])


def test_a_choice_that_rounding_turns_is_no_fault():
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.low, self.high = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(64, 32)

        def forward(self, x):
            return torch.where(self.score(x) > self.low(x), self.high(x), -self.high(x))

    torch.manual_seed(0)
    model = Chooses().eval()
    model.low.load_state_dict(model.score.state_dict())
    model.low.weight.data += 1e-7 * torch.randn_like(model.low.weight)  # nearer than float32 can tell
    x = torch.randn(4, 64)
    graph = capture(model, (x,)).graph
    found = find_pass("weight_only")
    graph = found(graph, found.options(weights="int8", group_size=None), Context()).graph
    check_module(emit(graph), graph, (x,))


def test_a_type_that_differs_is_found():
    graph, batches = graph_of([])
    artifact = emit(graph)
    source = f"{artifact.source.rstrip()}.double()\n"  # its last line is the return of `forward`
    with pytest.raises(InconsistencyError, match=r"has shape and type .*float64"):
        check_module(replace(artifact, source=source), graph, batches[0])


def test_compile_refuses_to_write_a_module_that_differs(project, monkeypatch):
    def planted(graph, options):
        artifact = emit(graph, options)
        return replace(artifact, tensors={k: t.flip(0) if t.ndim else t for k, t in artifact.tensors.items()})

    monkeypatch.setattr(emission, "emit_torch", planted)
    with pytest.raises(InconsistencyError):
        compile_model(project / "net.yaml", overrides=["outputs.torch={}"])
