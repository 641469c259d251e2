"""Learned rounding in the pass `quantize`: layer errors, unchanged layers, and trained networks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxpress.compiler import open_session, run_passes
from fxpress.compiler.data import run_samples
from fxpress.ir import Graph, Value, parse, run, run_integer
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import Context, PassResult, find_pass
from fxpress.specs.options import QuantizeOptions

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))

NETWORK = """
graph(%x: f32[1x3x8x8]) {
  const %w1: f32[8x3x3x3]
  const %b1: f32[8]
  const %w2: f32[8x1x3x3]
  const %w3: f32[8x8x1x1]
  const %w4: f32[5x512]
  %a: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1, %b1)   # "stem", ""
  %b: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1), groups=8, clamp=(0.0, 6.0)}(%a, %w2)   # "depthwise", ""
  %c: f32[1x8x8x8] = conv{clamp=(0.0, inf)}(%b, %w3, none, %a)   # "pointwise", ""
  %f: f32[1x512] = reshape{shape=(-1, 512)}(%c)
  %y: f32[1x5] = linear(%f, %w4)   # "head", ""
  return output: %y
}"""
QUICK = {"kind": "adaround", "iterations": 150}


def fill(value: Value) -> Tensor:
    return drawn_constant(value) / 3


def samples(graph: Graph, count: int, *, seed: int = 1) -> list[tuple[Tensor, ...]]:
    """Smooth inputs: neighbours are alike, as in images."""
    return [(x.cumsum(-1) / 3,) for (x,) in drawn_samples(graph, count, seed=seed)]


def quantize(before: Graph, **options: object) -> PassResult:
    context = Context(
        calibration=samples(before, 64), selects=lambda pattern, module: pattern in ("*", module)
    )
    return find_pass("quantize")(before, QuantizeOptions.model_validate(options), context)


def squared_error(before: Graph, after: Graph) -> float:
    errors = [run(before, x)[0] - run_integer(after, x)[0] for x in samples(before, 40, seed=2)]
    return float(torch.cat(errors).square().mean())


@pytest.mark.parametrize("bits", ["int2", "int4"])
def test_the_error_on_other_data_falls(bits: str) -> None:
    before = parse(NETWORK, fill=fill)
    nearest = quantize(before, weights=bits).graph
    learned = quantize(before, weights=bits, rounding=QUICK).graph
    assert squared_error(before, learned) < 0.9 * squared_error(before, nearest)


@pytest.mark.parametrize("corrects", [True, False])
def test_the_error_of_no_layer_rises(corrects: bool) -> None:
    before = parse(NETWORK, fill=fill)
    result = quantize(before, weights="int4", rounding=QUICK, bias_correction=corrects)
    rows = result.report.table("rounding").rows
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("a", "stem", 4),
        ("b", "depthwise", 4),
        ("c", "pointwise", 4),
        ("y", "head", 4),
    ]
    assert all(after <= before for _, _, _, before, after, _ in rows)
    assert sum(after < before for _, _, _, before, after, _ in rows) >= 3


def test_scales_and_types_are_those_of_rounding_to_nearest() -> None:
    before = parse(NETWORK, fill=fill)
    nearest, learned = (quantize(before, weights="int4", **o).graph for o in ({}, {"rounding": QUICK}))
    assert learned.nodes == nearest.nodes
    difference = (learned.params["w1"].int() - nearest.params["w1"].int()).abs()
    assert difference.max() == 1


def test_the_same_seed_gives_the_same_graph() -> None:
    before = parse(NETWORK, fill=fill)
    options = {"kind": "adaround", "iterations": 20, "seed": 3}
    assert quantize(before, rounding=options).graph == quantize(before, rounding=options).graph


def test_layers_in_float_and_of_other_bits_stand_beside_learned_ones() -> None:
    before = parse(NETWORK, fill=fill)
    result = quantize(before, rounding=QUICK, layers={"stem": "float32", "head": "int2"})
    assert [(row[0], row[2]) for row in result.report.table("rounding").rows] == [
        ("b", 8),
        ("c", 8),
        ("y", 2),
    ]


def test_shared_weights_are_rounded_to_nearest() -> None:
    before = parse(
        """
        graph(%x: f32[1x4x4x4]) {
          const %w: f32[4x4x1x1]
          const %v: f32[4x2x2x2]
          %a: f32[1x4x4x4] = conv(%x, %w)
          %b: f32[1x4x4x4] = conv(%a, %w)
          %c: f32[1x2x5x5] = conv_transpose(%b, %v)
          return output: %b
        }""",
        fill=fill,
    )
    report = quantize(before, rounding=QUICK).report
    assert report.declined["adaround"] == {
        "its weights are shared with another layer": 2,
    }


def test_samples_that_do_not_pass_together_are_learned_from_one_by_one() -> None:
    before = parse(
        """
        graph(%x: f32[2x3]) {
          const %w: f32[6x3]
          %s: f32[2x3] = softmax{axis=0}(%x)
          %y: f32[2x6] = linear(%s, %w)
          return output: %y
        }""",
        fill=fill,
    )
    rows = quantize(before, weights="int2", rounding=QUICK).report.table("rounding").rows
    assert rows[0][4] < rows[0][3]


def right(name: str, **options: object) -> int:
    """Right answers of a trained network of the examples, its fused graph quantized with these options."""
    session = open_session(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml")
    evaluation, calibration = session.evaluation, session.calibration
    assert evaluation is not None and evaluation.labels is not None and calibration is not None
    fused = {stage.name: stage.graph for stage in run_passes(session)}["fuse"]
    batches = [tuple(x[i : i + 1] for x in calibration.inputs) for i in range(len(calibration))]
    context = Context(calibration=batches)
    graph = find_pass("quantize")(fused, QuantizeOptions.model_validate(options), context).graph
    with torch.no_grad():
        (scores,) = run_samples(graph, evaluation, interpreter=run_integer)
    return int((scores.argmax(1) == evaluation.labels).sum())


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason=f"the samples behind the documented figures are not in {SHARED}",
)
def test_learned_rounding_brings_keyword_spotting_with_four_bits_back() -> None:
    assert right("kws", weights="int4", rounding="adaround") >= max(right("kws", weights="int4") + 5, 442)


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason=f"the samples behind the documented figures are not in {SHARED}",
)
def test_learned_rounding_makes_two_bits_usable_for_image_classification() -> None:
    assert right("ic", weights="int2") < 30
    assert right("ic", weights="int2", rounding="adaround") > 60
