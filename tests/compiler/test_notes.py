"""Losses for a user are in the notes of the report and in the summary of `compile`."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxpress.backends.c import emit
from fxpress.compiler.cli import main
from fxpress.compiler.data import Samples, unseen_notes
from fxpress.compiler.frontend.capture import capture
from fxpress.compiler.frontend.decompose import for_c
from fxpress.compiler.frontend.widths import width_notes
from fxpress.compiler.packages import package_notes
from fxpress.compiler.summary import kernel_notes, rounding_notes
from fxpress.ir import DType, TensorType, Value, parse, verify
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Feature, Target, Toolchain

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        mean = x.double().mean(1, keepdim=True)
        return self.fc(x - mean.float())
"""
SPEC = """\
fxpress: 1
model:
  source: net.py:Net
  inputs: {x: {shape: [1, 4]}}
target: {name: cortex-m4f}
passes: [{pass: clean}]
outputs: {c: {name: net}}
"""


@torch.library.custom_op("fxpress_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operator of a package."""
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class OfPackage(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.fxpress_tests.twice(x) + torch.ops.fxpress_tests.twice(x)
        return y.cumsum(1)


class Widths(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.double() + 1).float() + (x.half() * 2).float()


def test_an_operator_of_a_package_is_named_once_with_what_it_costs() -> None:
    graph = capture(OfPackage(), (torch.ones(1, 4),)).graph
    (note,) = package_notes(graph, has_module=True)
    assert note.startswith("fxpress_tests.twice.default (") and "test_notes.py:" in note
    assert "needs the package that defines torch.ops.fxpress_tests" in note
    (note,) = package_notes(graph, has_module=False)
    assert "emitted torch module" not in note and "write it with functions of torch" in note


def test_operators_in_other_widths_are_counted_for_each_width() -> None:
    graph = capture(Widths(), (torch.ones(1, 4),)).graph
    half, double = width_notes(graph, for_c(graph))
    assert half.startswith(
        "torch.float16 is computed in float32 and rounded after each operator: 2 operators"
    )
    assert double.startswith("float64 is computed as float32: 2 operators, first cast (")
    assert list(width_notes(graph, graph)) == []


@pytest.mark.parametrize(
    ("features", "inputs", "notes"), [(("dsp",), 517, 1), (("dsp",), 516, 0), ((), 517, 0)]
)
def test_a_layer_whose_sums_leave_int32_is_named_where_others_take_the_dsp(
    features: tuple[Feature, ...], inputs: int, notes: int
) -> None:
    text = f"""graph(%x: i16[1x{inputs}]<scale=0.1, zero=0>) {{
      const %w: i8[2x{inputs}]<scale=0.1, zero=0>
      %y: i16[1x2]<scale=9.0, zero=0> = linear(%x, %w)
      return y: %y
    }}"""
    graph = verify(parse(text, fill=lambda v: torch.full(v.type.shape, 127, dtype=torch.int8)))
    target = Target(
        name="core",
        description="a core",
        isa="armv7e-m",
        features=features,
        toolchain=Toolchain(commands=("gcc",), flags=()),
    )
    found = list(kernel_notes(emit(graph, COutput(name="net"), target), target))
    assert len(found) == notes
    assert all(note.startswith("y (linear) takes the kernel product_portable, ") for note in found)


FLOATS = """graph(%x: i8[1x4]<scale=0.1, zero=0>, %y: f32[1x4]) {{
  %a: f32[1x4] = dequantize(%x)
  %b: f32[1x4] = {op}
  %c: f32[1x4] = mul(%b, %y)
  %q: i8[1x4]<scale=0.1, zero=0> = quantize(%c)
  %e: f32[1x4] = exp(%b)
  return q: %q, e: %e
}}"""


def test_floats_that_become_integers_are_named_with_the_agreement_to_expect() -> None:
    (note,) = rounding_notes(parse(FLOATS.format(op="layer_norm{shape=(4,), root_eps=0.1}(%a)")))
    assert note.startswith("steps in float between integers: 1 layer_norm. ")
    assert note.endswith("the C agrees with the integer graph closely, not byte for byte")


@pytest.mark.parametrize("op", ["add(%a, %y)", "reshape{shape=(1, 4)}(%a)"])
def test_floats_that_are_rounded_in_one_way_or_become_no_integers_need_no_note(op: str) -> None:
    assert list(rounding_notes(parse(FLOATS.format(op=op)))) == []


@pytest.mark.parametrize(
    ("factor", "shift", "expected"),
    [
        (1.0, 0.0, None),
        (1.04, 0.0, None),
        (
            4.0,
            0.0,
            "input x: 72.5% of the evaluation data are outside the range of the calibration data (-1 to 1)",
        ),
        (255.0, 255.0, "input x: 99."),
    ],
)
def test_evaluation_data_outside_the_calibration_data_are_noted(
    factor: float, shift: float, expected: str | None
) -> None:
    seen = torch.linspace(-1, 1, 4000).reshape(1000, 4)
    mask = torch.where(seen > 0, 0.0, -torch.inf)
    inputs = [Value(name, TensorType((1, 4), DType.of(torch.float32))) for name in ("x", "mask")]
    notes = unseen_notes(inputs, Samples((seen, mask)), Samples((seen * factor + shift, mask)))
    assert len(notes) == (expected is not None)
    assert all(note.startswith(expected or "") for note in notes)


def test_the_summary_of_a_compilation_has_the_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "net.yaml").write_text(SPEC)
    assert main(["compile", str(tmp_path / "net.yaml"), "-o", str(tmp_path / "out")]) == 0
    assert (
        "note: float64 is computed as float32: 2 operators, first cast (net.py:12)" in capsys.readouterr().out
    )
