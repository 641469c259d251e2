"""Layers with stored weights in C: results, the weights file, and refusals."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fxpress.backends.c import check, emit
from fxpress.backends.c.emit import CArtifact
from fxpress.compiler import capture
from fxpress.ir import Graph, parse
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

Inspect = Callable[..., CArtifact]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(72, 40), torch.nn.ReLU(), torch.nn.Linear(40, 21, bias=False)
    ).eval()


def stored(module: torch.nn.Module, x: torch.Tensor, **options: object) -> Graph:
    return weight_only(capture(module, (x,)).graph, WeightOnlyOptions.model_validate(options)).graph


@pytest.mark.parametrize(
    ("bits", "group", "activations"),
    [
        (8, None, "int8"),
        (8, 24, "float32"),
        (5, 24, "int8"),
        (4, 32, "float32"),
        (3, 8, "int8"),
        (2, 24, "int8"),
    ],
)
def test_linear_layers_compute_what_the_interpreter_does(
    assert_equal_to_interpreter: Inspect, bits: int, group: int | None, activations: str
) -> None:
    graph = stored(
        network(), torch.zeros(1, 72), weights=f"int{bits}", group_size=group, activations=activations
    )
    options = COutput(name="net", weights_file="binary" if bits < 6 else "c")
    # an activation between two integers may be rounded to either: a step of 1/127 in one of 40 inputs
    tolerance = 1e-5 if activations == "float32" else 1e-2
    artifact = assert_equal_to_interpreter(
        graph, options=options, tolerance=tolerance, seeds=2, flags=("-O1",)
    )
    assert [step.operator for step in artifact.program.steps] == ["packed_linear", "relu", "packed_linear"]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_tokens_residuals_bounds_and_lookups_are_taken(
    assert_equal_to_interpreter: Inspect, fill: Callable[..., torch.Tensor], dtype: str
) -> None:
    torch_dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    numbers = ", ".join(map(str, torch.linspace(-0.1, 0.1, 9 * 4).to(torch_dtype).tolist()))
    graph = parse(
        f"""
graph(%i: i64[2x3], %r: f32[2x3x9], %z: f32[3x24x2]) {{
  const %t: i8[9x24]<bits=4, scale={dtype}({numbers}), zero=0, axis=0, group=6>
  const %b: f32[9]
  %w: f32[9x24] = dequantize(%t)
  %e: f32[2x3x24] = embedding(%i, %w)
  %q: f32[2x3x24] = fake_quantize_per_token(%e)
  %y: f32[2x3x9] = linear{{clamp=(0.0, 6.0)}}(%q, %w, %b, %r)
  %p: f32[2x3x24] = permute{{order=(2, 0, 1)}}(%z)
  %u: f32[2x3x9] = linear(%p, %w, none, %y)
  return y: %y, u: %u, e: %e
}}""",
        fill=fill,
    )
    indices = torch.tensor([[0, 8, 3], [7, 1, 2]])
    inputs = [[indices, torch.randn(2, 3, 9), torch.randn(3, 24, 2)]]
    artifact = assert_equal_to_interpreter(graph, inputs=inputs, tolerance=2e-2, flags=("-O1",))
    assert not any(step.operator == "dequantize" for step in artifact.program.steps)


def test_the_self_test_reads_the_weights_file(host: Target, tmp_path: Path) -> None:
    graph = stored(network(), torch.zeros(1, 72), weights="int4", group_size=8)
    artifact = emit(graph, COutput(name="net", weights_file="binary"), host, vectors=[[torch.randn(1, 72)]])
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    program = tmp_path / "test"
    subprocess.run(["gcc", "-std=c99", "-DNET_TEST_MAIN", *sources, "-o", program, "-lm"], check=True)
    assert (
        b"0 of 1 outputs differ"
        in subprocess.run([program], cwd=tmp_path, capture_output=True, check=True).stdout
    )
    (tmp_path / "net_weights.bin").write_bytes(bytes(len(artifact.files["net_weights.bin"])))
    assert subprocess.run([program], cwd=tmp_path, capture_output=True, check=False).returncode == 2


def test_scales_in_codes_are_refused_by_name(host: Target) -> None:
    graph = stored(network(), torch.zeros(1, 72), weights="int4", group_size=8, scales="double")
    found = [(p.code, p.message) for p in check(graph, COutput(name="net"), host)]
    assert [code for code, _ in found] == ["C702", "C702"]
    assert all("scales stored as codes have no kernel in C; write `scales: float16`" in m for _, m in found)
    table = stored(network(), torch.zeros(1, 72), weights="mxfp4", group_size=8)
    assert check(table, COutput(name="net"), host)


def test_what_cannot_be_stored_is_refused_by_name(host: Target, cortex_m4: Target) -> None:
    graph = stored(network(), torch.zeros(1, 72), weights="int4", group_size=8)
    codes = [(p.code, p.message) for p in check(graph, COutput(name="net", weights_file="binary"), cortex_m4)]
    assert [code for code, _ in codes] == ["C702", "C702"]
    assert "only on a computer" in codes[0][1]
    large = parse(
        """
graph(%x: i64[1]) {
  const %w: f32[1048576x20]
  %y: f32[1x20] = embedding(%x, %w)
  return y: %y
}""",
        fill=lambda value: torch.zeros(()).expand(value.type.shape),
    )
    (problem,) = check(large, COutput(name="net"), host)
    assert problem.code == "C711" and "weights_file: binary" in problem.hint
    assert not check(large, COutput(name="net", weights_file="binary"), host)
