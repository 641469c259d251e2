"""Stored weights through the whole compiler: outputs read back, orders of passes, networks that amplify a step."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fxpress.compiler import UserError, compile_model, load_compiled
from fxpress.ir import CodedNumbers
from fxpress.specs import SpecError


def test_an_output_with_many_scales_in_several_layers_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).eval()
    x = torch.randn(1, 512)
    compiled = compile_model(net, inputs={"x": x}, passes=[{"pass": "weight_only"}], outputs="torch")
    compiled.write(tmp_path / "out")
    assert load_compiled(tmp_path / "out").graph.constants == compiled.graph.constants


@pytest.mark.parametrize("options", [{"weights": "nf4", "scales": "double"}, {"weights": "mxfp4"}])
def test_scales_in_codes_are_read_back_with_their_bytes(tmp_path: Path, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 96, bias=False)).eval()
    x, steps = torch.randn(3, 1024), [{"pass": "weight_only", **options}]
    compiled = compile_model(net, inputs={"x": x[:1]}, passes=steps, outputs="torch")
    compiled.write(tmp_path / "out")
    loaded = load_compiled(tmp_path / "out")
    assert loaded.graph == compiled.graph
    (scale, *_) = [v.type.quantization.scale for v in loaded.graph.constants if v.type.quantization]
    form, codes = scale.form, 512 * 1024 // 32
    assert isinstance(scale, CodedNumbers) and form == ("e8m0" if options["weights"] == "mxfp4" else "double")
    assert scale.bytes == codes + (0 if form == "e8m0" else codes // 256 * 4 + 4)
    (written,) = (tmp_path / "out/torch").glob("*.safetensors")
    report = json.loads((tmp_path / "out/report.json").read_text())
    (summary,) = (table for table in report["passes"][0]["tables"] if table["name"] == "summary")
    bytes_after = dict(summary["rows"])["constant_bytes_after"]
    assert 0 <= written.stat().st_size - bytes_after < 2000  # the header of the file
    compile_model(net, inputs={"x": x[:1]}, passes=steps, outputs="torch").write(tmp_path / "again")
    locks = (json.loads((tmp_path / name / "spec.lock").read_text()) for name in ("out", "again"))
    assert len({lock["outputs"]["torch/model.safetensors"] for lock in locks}) == 1
    y = loaded.run({"x": x.numpy()}, on="torch").outputs[0]
    torch.testing.assert_close(y, loaded.run({"x": x.numpy()}, on="integer").outputs[0], rtol=1e-4, atol=1e-4)


def test_the_users_module_stays_as_it_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    steps = [{"pass": "weight_only", "weights": "int2", "rounding": "gptq"}]
    data = {"x": torch.randn(64, 64).numpy()}
    compile_model(net, inputs={"x": torch.zeros(1, 64)}, passes=steps, outputs="torch", calibration=data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("order", [("weight_only", "quantize"), ("quantize", "weight_only")])
def test_weights_are_stored_in_one_way(order: tuple[str, str]) -> None:
    with pytest.raises((SpecError, UserError), match=r"weight_only|no linear layer"):
        compile_model(
            nn.Linear(8, 8),
            inputs={"x": torch.zeros(1, 8)},
            passes=list(order),
            outputs="torch",
            calibration={"x": torch.zeros(4, 8).numpy()},
        )


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(53, 40)
        self.layer = nn.TransformerEncoderLayer(40, 4, 72, batch_first=True)
        self.head = nn.Linear(40, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.table(tokens)))


@pytest.mark.parametrize("seed", range(8))
def test_a_small_transformer_passes_the_check_of_its_module(seed: int) -> None:
    torch.manual_seed(seed)
    tokens = torch.randint(0, 53, (1, 9))
    compile_model(
        Encoder().eval(), inputs={"tokens": tokens}, passes=[{"pass": "weight_only"}], outputs="torch"
    )


@pytest.mark.parametrize("factor", [0.0, 1e-12])
def test_weights_that_are_zero_or_tiny_pass_too(factor: float) -> None:
    net = nn.Linear(64, 8).eval()
    with torch.no_grad():
        net.weight.mul_(factor)
        net.bias.zero_()
    steps = [{"pass": "weight_only", "activations": "float32"}]
    compile_model(net, inputs={"x": torch.zeros(1, 64)}, passes=steps, outputs="torch")


@pytest.mark.parametrize("file", ["c", "binary"])
def test_a_network_with_stored_weights_runs_as_c_on_this_machine(tmp_path: Path, file: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 53, (1, 9))
    net = nn.Sequential(nn.Embedding(53, 40), nn.Linear(40, 96), nn.GELU(), nn.Linear(96, 24)).eval()
    outputs = {"c": {"weights_file": file}, "torch": {}}
    steps = [{"pass": "weight_only", "activations": "float32"}]
    compiled = compile_model(net, inputs={"tokens": tokens}, passes=steps, target="host", outputs=outputs)
    compiled.write(tmp_path / "out")
    data = {"tokens": torch.randint(0, 53, (6, 9)).numpy()}
    loaded = load_compiled(tmp_path / "out")
    in_c, in_torch = (loaded.run(data, on=place).outputs[0] for place in ("host", "torch"))
    torch.testing.assert_close(in_c, in_torch, rtol=1e-4, atol=1e-5)
