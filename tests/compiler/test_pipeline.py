"""Running a spec, from loading to the written files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.data import Samples
from fxpress.compiler.execution import execute
from fxpress.ir import parse, run_integer, verify

OutputsOn = Callable[..., list[torch.Tensor]]
HEAD = "passes[2].layers={head: float32}"


def test_a_compilation_writes_code_report_graph_and_lock(project: Path) -> None:
    compile_model(project / "net.yaml").write(project / "out")
    written = sorted(str(p.relative_to(project / "out")) for p in (project / "out").rglob("*") if p.is_file())
    assert {"c/net.c", "c/net.h", "c/net_weights.c", "c/net_test.c", "c/CMakeLists.txt"} <= set(written)
    assert {
        "report.html",
        "report.json",
        "spec.lock",
        "graph.txt",
        "graph.safetensors",
        "interface.json",
    } <= set(written)


def test_nothing_is_written_before_write_is_called(project: Path) -> None:
    before = sorted(project.iterdir())
    compile_model(project / "net.yaml")
    assert [p for p in sorted(project.iterdir()) if p.name != "__pycache__"] == before


def test_the_emitted_c_on_the_host_gives_the_bytes_of_the_integer_graph(
    project: Path, outputs_on: OutputsOn
) -> None:
    compiled = compile_model(project / "net.yaml")
    host, integer = outputs_on(compiled, "host", "integer")
    assert torch.equal(host, integer)


def test_the_emitted_c_on_a_simulated_core_gives_the_same_and_is_counted(project: Path) -> None:
    compiled = compile_model(project / "net.yaml")
    compiled.write(project / "out")
    assert compiled.session.evaluation is not None
    few = compiled.session.evaluation.first(3)
    simulated = execute(project / "out", few, on="cortex-m4")
    assert torch.equal(simulated.outputs[0], execute(project / "out", few, on="integer").outputs[0])
    assert simulated.counts is not None and simulated.counts.instructions > 1000


def test_the_written_graph_reads_back_as_the_compiled_one(project: Path) -> None:
    compiled = compile_model(project / "net.yaml")
    read = parse(compiled.files["graph.txt"].decode(), params=compiled.graph.params)
    assert read == compiled.graph
    verify(read)


def test_a_layer_that_stays_float_is_float_in_the_c_too(project: Path, outputs_on: OutputsOn) -> None:
    compiled = compile_model(project / "net.yaml", overrides=[HEAD])
    (host,) = outputs_on(compiled, "host")
    assert compiled.session.evaluation is not None
    inputs = compiled.session.evaluation.inputs[0].split(1)
    expected = [run_integer(compiled.graph, [x])[0] for x in inputs]
    assert torch.allclose(host, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_a_float_network_compiles_to_c_as_well(project: Path, outputs_on: OutputsOn) -> None:
    compiled = compile_model(project / "net.yaml", overrides=["passes=[{pass: fuse}]"])
    emitted, graph = outputs_on(compiled, "host", "integer")
    assert torch.allclose(emitted, graph, rtol=1e-5, atol=1e-5)


def test_the_torch_output_computes_what_the_graph_computes(project: Path, outputs_on: OutputsOn) -> None:
    overrides = ["passes=[{pass: fuse}]", "outputs={torch: {}}"]
    compiled = compile_model(project / "net.yaml", overrides=overrides)
    emitted, graph = outputs_on(compiled, "torch", "integer")
    assert torch.allclose(emitted, graph, rtol=1e-6, atol=1e-6)


def test_the_report_names_layers_resources_and_accuracy(project: Path) -> None:
    report = compile_model(project / "net.yaml").report
    assert {r.name for r in report.resources} == {"flash", "arena", "stack", "instructions", "cycles"}
    assert [m.stage for m in report.measurements] == ["float model", "integer"]
    conv = next(layer for layer in report.layers if layer.op == "conv")
    assert conv.module == "stem.0" and conv.location.startswith("net.py:")
    assert conv.weight_bits == 8 and conv.kernel and conv.snr_db is not None and conv.snr_db > 20


def test_another_hash_seed_gives_the_same_bytes(project: Path) -> None:
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "fxpress.compiler.cli", "compile", "net.yaml", "-o", f"out{seed}"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
    one, two = (
        {p.relative_to(project / d): p.read_bytes() for p in (project / d).rglob("*") if p.is_file()}
        for d in ("out1", "out2")
    )
    assert one == two


def test_a_lock_accepts_the_same_inputs_and_names_what_changed(project: Path) -> None:
    compile_model(project / "net.yaml").write(project / "out")
    lock = project / "out" / "spec.lock"
    compile_model(project / "net.yaml", locked=lock)
    with pytest.raises(UserError, match=r"the spec has changed[\s\S]*output c/net_weights.c differs"):
        compile_model(project / "net.yaml", overrides=["passes[2].per_channel=false"], locked=lock)


def test_the_users_own_module_stands_in_for_the_source(project: Path) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 5)).eval()
    compiled = compile_model(project / "net.yaml", model=model)
    assert compiled.report.macs_before == 36 * 2 * 27 + 72 * 5
    for name in ("net.py", "net.safetensors"):
        (project / name).unlink()  # nothing of them is read
    assert compile_model(project / "net.yaml", model=model).files == compiled.files


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_passes_that_train_do_so_in_a_caller_without_gradients(
    project: Path, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    overrides = ["passes[2].rounding={kind: adaround, iterations: 3}"]
    expected = compile_model(project / "net.yaml", overrides=overrides).files
    with mode():
        assert compile_model(project / "net.yaml", overrides=overrides).files == expected


def test_report_json_follows_its_schema_and_holds_no_time(project: Path) -> None:
    compiled = compile_model(project / "net.yaml")
    data = json.loads(compiled.files["report.json"])
    assert data["schema_version"] == 1 and not [key for key in data if "time" in key or "date" in key]
    page = compiled.files["report.html"].decode()
    assert "<svg" in page and "src=" not in page and "http" not in page


def test_samples_of_one_batch_or_many_give_the_same_outputs(project: Path) -> None:
    compiled = compile_model(project / "net.yaml")
    compiled.write(project / "out")
    samples = compiled.session.evaluation
    assert samples is not None
    whole = execute(project / "out", samples, on="integer").outputs[0]
    single = execute(project / "out", Samples(tuple(x[5:6] for x in samples.inputs)), on="integer")
    assert torch.equal(whole[5:6], single.outputs[0])


class Turned(torch.nn.Module):
    """Puts time before the batch, as attention layers do: another batch size fits, and means another thing."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(8, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        n, c, h, w = image.shape
        turned = self.mix(image.reshape(n, c * h, w).transpose(0, 1)).reshape(c * h, n * 2, 4).transpose(0, 1)
        return turned.reshape(n, -1)


def test_a_network_that_mixes_batch_and_time_is_run_sample_by_sample(project: Path) -> None:
    torch.manual_seed(0)
    model = Turned().eval()
    compiled = compile_model(
        project / "net.yaml",
        model=model,
        overrides=["passes=[]", "data.evaluation.labels=null", "data.evaluation.metric=snr"],
    )
    compiled.write(project / "out")
    samples = compiled.session.calibration
    assert samples is not None
    outputs = execute(project / "out", samples, on="integer").outputs[0]
    with torch.no_grad():
        alone = torch.cat([model(x) for x in samples.inputs[0].split(1)])
    assert torch.equal(outputs, alone)


class Normalised(torch.nn.Module):
    """Subtracts a buffer, which training must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.head = torch.nn.Linear(192, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head((image - self.mean).flatten(1))


def test_a_buffer_of_the_user_stays_a_buffer_of_the_torch_output(project: Path) -> None:
    overrides = ["passes=[]", "outputs={torch: {}}"]
    emitted = compile_model(project / "net.yaml", model=Normalised().eval(), overrides=overrides).torch
    assert emitted is not None
    module = emitted.build()
    assert "mean" in dict(module.named_buffers()) and "head.weight" in dict(module.named_parameters())


def test_a_conversion_of_dtype_leaves_the_users_module_as_it_was(project: Path) -> None:
    model = Normalised().eval().double()
    compile_model(project / "net.yaml", model=model, overrides=["model.dtype=float32", "passes=[]"])
    assert model.head.weight.dtype == torch.float64
