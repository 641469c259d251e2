"""A module on the meta device is captured with lazy parameters, which are not read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from fxpress.compiler import CaptureError, UserError, capture, compile_model
from fxpress.ir import LazyTensor, Params, open_tensors, run


class Tied(nn.Module):
    """An embedding whose table is also the last layer, a scaled buffer, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.mix = nn.GRU(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("gain", torch.full((8,), 1.5))

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.mix(self.embed(ids))
        result: Tensor = self.head(self.norm(x) * self.gain)
        return result


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(Tied(), str(tmp_path / "net.safetensors"))
    return tmp_path / "net.safetensors"


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Tied().eval()


IDS = torch.tensor([[1, 5, 11, 0]])


def test_the_graph_computes_what_the_module_with_its_weights_computes(file: Path) -> None:
    captured = capture(on_meta(), (IDS,), params=open_tensors(file))
    net = Tied().eval()
    torch.manual_seed(0)
    net.load_state_dict(Tied().state_dict())
    with torch.no_grad():
        torch.testing.assert_close(run(captured.graph, [IDS])[0], net(IDS))
    assert sum("embed.weight" in name or "head.weight" in name for name in captured.graph.params) == 1
    assert captured.deviation is None and "embed.weight" in captured.trainable | {"head.weight"}


def test_no_tensor_is_read_and_the_module_stays_on_the_meta_device(file: Path) -> None:
    def unread() -> Tensor:
        raise AssertionError("a tensor is read")

    entries = open_tensors(file).entries
    lazy = Params({name: LazyTensor(tuple(e.shape), e.dtype, unread) for name, e in entries.items()})
    net = on_meta()
    graph = capture(net, (IDS,), params=lazy).graph
    assert all(isinstance(entry, LazyTensor) for entry in graph.params.entries.values())
    assert all(t.is_meta for t in net.state_dict().values()) and net.get_parameter("head.weight").is_meta


def test_tensors_of_another_element_type_become_that_of_the_model(file: Path) -> None:
    half = {name: t.half() for name, t in open_tensors(file).items()}
    graph = capture(on_meta(), (IDS,), params=half).graph
    assert {graph.params.entry(v.name).dtype for v in graph.constants} == {torch.float32}


def test_what_is_missing_or_of_another_shape_is_named(file: Path) -> None:
    params = open_tensors(file)
    with pytest.raises(CaptureError, match=r"gain is on the meta device and has no values.*\[M212\]"):
        capture(on_meta(), (IDS,), params=params.only(params.keys() - {"gain"}))
    with pytest.raises(UserError, match=r"norm.bias is \(3,\); the model has \(8,\).*\[M114\]"):
        capture(on_meta(), (IDS,), params=params | {"norm.bias": torch.zeros(3)})


def test_such_a_graph_is_compiled_tensor_by_tensor(file: Path, tmp_path: Path) -> None:
    graph = capture(on_meta(), (IDS,), params=open_tensors(file), input_names=["ids"]).graph
    compiled = compile_model(graph, passes=[{"pass": "weight_only", "weights": "int8"}], outputs="torch")
    compiled.write(tmp_path / "out")
    scores = compiled.run({"ids": IDS.numpy()}, on="torch").outputs[0]
    assert scores.shape[-2:] == (4, 12)
