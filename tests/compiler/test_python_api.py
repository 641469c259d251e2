"""A module or a graph compiled from Python, run in each of its forms, written as a spec, and loaded again."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_python import run_python
from torch import Tensor, nn

from fxpress.compiler import ArgumentError, UserError, capture, compile_model, load_compiled
from fxpress.specs import COutput, Input, QuantizeOptions, SpecError, TargetChoice

SOURCE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, image):
        return self.head(self.features(image).flatten(1))
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.head(self.features(image).flatten(1))
        return result


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


PASSES = ["clean", "fuse", "quantize", "remove_dead_channels"]


def test_a_module_becomes_c_and_runs_in_every_form(net: nn.Module, images: Tensor) -> None:
    compiled = compile_model(
        net, inputs=images[:1], calibration=images, passes=PASSES, target="cortex-m4f", outputs=["c", "torch"]
    )
    assert compiled.c is not None and compiled.torch is not None
    with torch.no_grad():
        expected = net(images)
    (reference,) = compiled.run(images, on="reference").outputs
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)
    (integer,) = compiled.run(images, on="integer").outputs
    for place in ("host", "cortex-m4f"):
        run = compiled.run({"image": images.numpy()}, on=place)
        assert torch.equal(run.outputs[0], integer), place
    assert run.counts is not None and run.counts.instructions > 0
    step = float((expected.max() - expected.min()) / 255)
    for outputs in ((integer,), compiled.run(images, on="torch").outputs):
        assert (outputs[0] - expected).abs().max() < 8 * step


def test_passes_targets_and_outputs_are_names_sections_or_mappings(net: nn.Module, images: Tensor) -> None:
    by_name = compile_model(
        net,
        inputs=images[:1],
        calibration=images,
        passes=PASSES,
        target="cortex-m4f",
        outputs={"c": {"name": "a"}},
    )
    by_section = compile_model(
        net,
        inputs={"image": Input(shape=(1, 3, 8, 8))},
        calibration={"image": images},
        passes=["clean", {"pass": "fuse"}, QuantizeOptions(), "remove_dead_channels"],
        target=TargetChoice(name="cortex-m4f"),
        outputs={"c": COutput(name="a")},
    )
    assert by_section.files["c/a.c"] == by_name.files["c/a.c"]
    assert by_section.files["c/a_weights.c"] == by_name.files["c/a_weights.c"]


def test_a_graph_is_compiled_like_the_module_that_it_was_captured_from(
    net: nn.Module, images: Tensor
) -> None:
    graph = capture(net, (images[:1],), input_names=["image"]).graph
    settings: dict[str, Any] = {"calibration": images, "passes": PASSES, "outputs": "c"}
    from_graph = compile_model(graph, **settings)
    from_module = compile_model(net, inputs=images[:1], **settings)
    assert from_graph.files["c/model.c"] == from_module.files["c/model.c"]
    assert from_graph.files["c/model_weights.c"] == from_module.files["c/model_weights.c"]
    with pytest.raises(UserError, match="a spec describes a torch module, not a graph"):
        from_graph.write_spec("anywhere")


def test_labels_in_memory_measure_the_network(net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        labels = net(images).argmax(1)
    data = {"image": images, "labels": labels}
    compiled = compile_model(net, inputs=images[:1], calibration=images, evaluation=data, passes=PASSES)
    measured = {m.stage: m.text for m in compiled.report.measurements}
    assert measured["float model"] == "100.00 %", measured


def test_the_spec_that_is_written_compiles_to_the_same_code(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(SOURCE)
    (tmp_path / "program.py").write_text(
        "import torch, network\n"
        "from fxpress.compiler import compile_model\n"
        "torch.manual_seed(3)\n"
        "net, x = network.Net().eval(), torch.randn(8, 3, 8, 8)\n"
        "compiled = compile_model(net, inputs=x[:1], calibration=x, passes=['fuse', 'quantize'], outputs='c')\n"
        "compiled.write('from_python')\n"
        "print(compiled.write_spec('written'))\n"
        "assert compiled.spec.to_yaml().startswith('fxpress: 1')\n"
    )
    for command in (
        ["program.py"],
        ["-m", "fxpress.compiler", "compile", "written/spec.yaml", "-o", "from_spec"],
    ):
        done = run_python(*command, folder=tmp_path, environment=os.environ)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "written" / "spec.yaml").read_text() == (
        "fxpress: 1\n"
        "model:\n"
        "  source: ../network.py:Net\n"
        "  weights: weights.safetensors\n"
        "  inputs:\n"
        "    image: {shape: [1, 3, 8, 8]}\n"
        "data: {calibration: {file: calibration.npz}}\n"
        "target: {name: host}\n"
        "passes:\n"
        "  - pass: fuse\n"
        "  - pass: quantize\n"
        "outputs: {c: {}}\n"
    )
    for path in (tmp_path / "from_python" / "c").iterdir():
        assert path.read_bytes() == (tmp_path / "from_spec" / "c" / path.name).read_bytes(), path.name


def test_a_class_that_a_spec_cannot_find_is_named(tmp_path: Path, images: Tensor) -> None:
    class Inner(Net):
        pass

    compiled = compile_model(Inner().eval(), inputs=images[:1])
    with pytest.raises(UserError, match=r"no attribute 'Inner'|no attribute 'test_a_class"):
        compiled.write_spec(tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_an_output_directory_is_loaded_and_run(tmp_path: Path, net: nn.Module, images: Tensor) -> None:
    compiled = compile_model(
        net, inputs=images[:1], calibration=images, passes=PASSES, outputs=["c", "torch"]
    )
    compiled.write(tmp_path / "out")
    np.savez(tmp_path / "x.npz", image=images.numpy())
    network = load_compiled(tmp_path / "out")
    assert network.interface.input_names == ("image",)
    assert network.report.model == "Net" and len(network.graph.inputs) == 1
    assert isinstance(network.module, nn.Module)
    expected = compiled.run(images, on="integer").outputs[0]
    assert torch.equal(network.run(images).outputs[0], expected)
    assert torch.equal(network.run(tmp_path / "x.npz", on="integer").outputs[0], expected)
    with pytest.raises(UserError, match=r"is the captured float graph, which .* does not contain"):
        network.run(images, on="reference")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": ["fuze"]}, r'spec.yaml:8:11: passes\[0\].pass: unknown pass "fuze"; did you mean "fuse"'),
        ({"passes": ["quantize"]}, r"passes\[0\]: quantize needs data.calibration"),
        ({"target": "cortex-m5"}, r'target.name: unknown target "cortex-m5"'),
        ({"outputs": "d"}, r'outputs: unknown key "d"'),
        ({"passes": [{"pass": "fuse", "kepe": []}]}, r'passes\[0\]: unknown key "kepe"; did you mean "keep"'),
    ],
)
def test_what_no_spec_can_hold_is_refused_with_its_line(
    net: nn.Module, images: Tensor, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        compile_model(net, inputs=images[:1], **settings)


def test_arrays_that_do_not_fit_the_inputs_are_named(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(UserError, match=r"memory:calibration: has no array 'image'; it has img"):
        compile_model(net, inputs=images[:1], calibration={"img": images})
    with pytest.raises(UserError, match=r"memory:calibration: array 'image' has samples of shape \(8, 8\)"):
        compile_model(net, inputs=images[:1], calibration=images[0])
    with pytest.raises(ArgumentError, match=r"calibration=...\): 2 arrays for the inputs image; give one"):
        compile_model(net, inputs=images[:1], calibration=(images, images))


def test_what_describes_a_module_is_no_argument_beside_a_spec_file(net: nn.Module) -> None:
    with pytest.raises(
        ArgumentError, match=r"compile_model\(passes=...\): a spec file says this; use `overrides`"
    ):
        compile_model("net.yaml", passes=["fuse"])  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match=r"compile_model\(inputs=...\): is missing"):
        compile_model(net)


def test_a_script_that_its_own_spec_imports_is_not_run_without_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom fxpress.compiler import compile_model\n\n\n"
        "class Net(torch.nn.Linear):\n    def __init__(self, n=3):\n        super().__init__(n, 2)\n\n\n"
        "print('runs')\ncompile_model(Net().eval(), inputs=torch.zeros(1, 3), passes='clean').write_spec('out')\n"
    )
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1 and done.stdout == "runs\nruns\n"
    assert "importing the class runs this script again" in done.stderr
