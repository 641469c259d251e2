"""Post-training quantization: the integer graph, its encodings, and nodes that stay in float with their reasons."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fxpress.compiler.data import snr_db
from fxpress.ir import Encoding, Graph, Value, parse, run, run_integer
from fxpress.ir.ops.softmax import Softmax
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import CalibrationError, Context, MissingNeedError, PassError, PassResult, find_pass
from fxpress.passes.errors import OrderError
from fxpress.specs.options import FuseOptions, QuantizeOptions

Sample = tuple[Tensor, ...]


def fill(value: Value) -> Tensor:
    tensor = drawn_constant(value) / 3
    return tensor.abs() + 0.1 if "var" in value.name else tensor


def graph(text: str, **params: Tensor) -> Graph:
    return parse(text, params=params, fill=fill)


def quantize(before: Graph, calibration: Sequence[Sample] | None = None, **options: object) -> PassResult:
    context = Context(
        calibration=drawn_samples(before, 40) if calibration is None else calibration,
        selects=lambda pattern, module: pattern in ("*", module),
    )
    return find_pass("quantize")(before, QuantizeOptions.model_validate(options), context)


def operators(after: Graph) -> list[str]:
    return [node.op.name for node in after.nodes]


def grid(after: Graph, name: str) -> Encoding:
    found = after.producers[name].output.type.quantization
    assert found is not None
    return found


def signal_to_noise_db(before: Graph, after: Graph) -> float:
    return ratios_db(before, after)[0]


def ratios_db(before: Graph, after: Graph) -> list[float]:
    """The signal-to-noise ratio of each output."""
    runs = [(run(before, x), run_integer(after, x)) for x in drawn_samples(before, 20, seed=2)]
    outputs = range(len(before.outputs))
    return [snr_db(*(torch.cat([r[side][i] for r in runs]) for side in (0, 1))) for i in outputs]


SMALL_CNN = """
graph(%x: f32[1x3x8x8]) {
  const %w1: f32[8x3x3x3]
  const %b1: f32[8]
  const %w2: f32[5x128]
  const %b2: f32[5]
  %c: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1, %b1)   # "features.0", ""
  %p: f32[1x8x4x4] = max_pool(%c)
  %f: f32[1x128] = reshape{shape=(-1, 128)}(%p)
  %y: f32[1x5] = linear(%f, %w2, %b2)   # "head", ""
  return output: %y
}"""


def test_a_small_network_computes_on_integers_near_the_float_network() -> None:
    before = graph(SMALL_CNN)
    after = quantize(before).graph
    assert operators(after) == ["quantize", "conv", "max_pool", "reshape", "linear", "dequantize"]
    assert signal_to_noise_db(before, after) > 27


def test_data_movement_shares_one_grid_on_both_sides() -> None:
    after = quantize(graph(SMALL_CNN)).graph
    assert grid(after, "c") == grid(after, "p") == grid(after, "f") != grid(after, "y")


def test_weights_are_symmetric_per_channel_and_biases_have_the_product_of_the_scales() -> None:
    after = quantize(graph(SMALL_CNN)).graph
    node = after.producers["c"]
    weight, bias = (v.type.quantization for v in (node.inputs[1], node.inputs[2]))
    assert (len(weight.scale), weight.axis, weight.is_symmetric) == (8, 0, True)
    assert (bias.bits, tuple(bias.scale)) == (
        32,
        tuple(grid(after, "x_q").scale[0] * s for s in weight.scale),
    )
    assert after.params["w1"].min() >= -127


def test_one_scale_for_the_whole_weight_on_request() -> None:
    after = quantize(graph(SMALL_CNN), per_channel=False).graph
    assert after.producers["c"].inputs[1].type.quantization.is_per_tensor


def test_error_falls_as_bits_rise() -> None:
    before = graph(SMALL_CNN)
    ratios = [signal_to_noise_db(before, quantize(before, weights=w).graph) for w in ("int2", "int4", "int8")]
    ratios.append(signal_to_noise_db(before, quantize(before, activations="int16").graph))
    assert ratios == sorted(ratios)
    assert ratios[1] > 15


def test_bias_correction_brings_the_mean_of_the_output_back() -> None:
    before = graph(SMALL_CNN)
    inputs = drawn_samples(before, 200)

    def mean_error(after: Graph) -> float:
        errors = [run_integer(after, x)[0] - run(before, x)[0] for x in inputs]
        return float(torch.cat(errors).mean(0).norm())

    corrected, plain = (
        mean_error(quantize(before, inputs, weights="int2", bias_correction=b).graph) for b in (True, False)
    )
    assert corrected < plain / 3


def test_the_last_pattern_that_matches_decides_over_a_layer() -> None:
    after = quantize(graph(SMALL_CNN), layers={"*": "int4", "head": "int8"}).graph
    bits = {n.output.name: n.inputs[1].type.quantization.bits for n in after.nodes if len(n.inputs) > 1}
    assert bits == {"c": 4, "y": 8}


def test_a_layer_that_the_spec_keeps_in_float_has_conversions_around_it() -> None:
    before = graph(SMALL_CNN)
    result = quantize(before, layers={"features.0": "float32"})
    assert operators(result.graph) == ["conv", "quantize", "max_pool", "reshape", "linear", "dequantize"]
    assert result.report.declined["quantize"] == {"the spec keeps this layer in float": 1}


def test_all_layers_in_float_is_the_graph_itself() -> None:
    before = graph(SMALL_CNN)
    assert quantize(before, layers={"*": "float32"}).graph.nodes[0] == before.nodes[0]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64"])
def test_a_network_in_another_precision_stays_float_with_the_remedy(dtype: str) -> None:
    before = graph(SMALL_CNN.replace("f32", dtype))
    result = quantize(before)
    name = str(before.inputs[0].type.dtype.torch).removeprefix("torch.")
    reason = f"it computes in {name}; set `dtype: float32` under `model`"
    assert result.graph == before and result.report.declined["quantize"][reason] == 2
    assert result.report.warnings == (f"nothing was quantized; the reason for most of the work: {reason}",)


def test_a_network_of_which_some_is_quantized_gets_no_note() -> None:
    assert quantize(graph(SMALL_CNN), layers={"features.0": "float32"}).report.warnings == ()


def test_rounding_to_half_precision_is_left_out() -> None:
    plain = graph(SMALL_CNN)
    halves = graph(
        SMALL_CNN.replace("max_pool(%c)", "max_pool(%h)").replace(
            "  %p:", '  %h: f32[1x8x8x8] = round_to{dtype="bf16"}(%c)\n  %p:'
        )
    )
    after = quantize(halves, drawn_samples(plain, 40)).graph
    assert operators(after) == operators(quantize(plain).graph)
    assert signal_to_noise_db(halves, after) > 30


def test_a_quantized_graph_is_refused_as_in_a_spec() -> None:
    after = quantize(graph(SMALL_CNN)).graph
    with pytest.raises(OrderError, match=r"quantize occurs twice.*from before `quantize` \[S303\]"):
        quantize(after)
    with pytest.raises(OrderError, match=r"fuse cannot run after quantize: .* \[S301\]"):
        find_pass("fuse")(after)


def test_pixels_keep_their_own_steps() -> None:
    before = graph(SMALL_CNN)
    pixels = torch.randint(0, 256, (20, 1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    after = quantize(before, [(x,) for x in pixels]).graph
    assert grid(after, "x_q") == Encoding((1.0,), (-128,))
    scaled = quantize(before, [(x / 255,) for x in pixels]).graph
    assert grid(scaled, "x_q").scale[0] == pytest.approx(1 / 255, rel=1e-6)
    assert list(grid(scaled, "x_q").zero_point) == [-128]


def test_stored_features_keep_their_own_steps_without_any_error() -> None:
    before = graph(SMALL_CNN)
    stored = torch.randint(-100, 90, (20, 1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    features = (stored + 17).float() * 0.5847029
    own = grid(quantize(before, [(x,) for x in features]).graph, "x_q")
    torch.testing.assert_close(own.dequantize(own.quantize(features)), features, rtol=1e-6, atol=1e-6)


def test_zeros_throughout_give_a_sane_scale_and_a_warning() -> None:
    before = graph(SMALL_CNN, b1=torch.zeros(8))
    result = quantize(before, [(torch.zeros(1, 3, 8, 8),)])
    assert list(grid(result.graph, "c").scale) == [1.0]
    notes = result.report.warnings
    assert any(note.startswith("%x: calibration saw zeros only, so that its scale is") for note in notes)
    assert any(note.startswith("%c (features.0): calibration saw zeros only") for note in notes)


def test_small_activations_keep_their_precision() -> None:
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def ratio(scale: float) -> float:
        before = graph(SMALL_CNN, w1=weight * scale, b1=torch.zeros(8), b2=torch.zeros(5))
        return signal_to_noise_db(before, quantize(before).graph)

    assert ratio(1.0) > 25
    assert abs(ratio(1e-9) - ratio(1.0)) < 1


def test_an_outlier_of_1e30_does_not_overflow_and_is_told() -> None:
    before = graph(SMALL_CNN)
    calibration = drawn_samples(before, 10)
    calibration[3][0][0, 0, 0, 0] = 1e30
    result = quantize(before, calibration)
    assert any(w.startswith("%x: the largest value seen, 1e+30, is") for w in result.report.warnings)
    assert run_integer(result.graph, calibration[3])[0].isfinite().all()


BEYOND = """graph(%x: f32[1x2]) {
  const %w: f32[1x2]
  %y: f32[1x1] = linear(%x, %w)   # "head", "net.py:7"
  return output: %y
}"""


def test_a_layer_that_could_overflow_stays_float_or_is_an_error() -> None:
    before, samples = graph(BEYOND, w=torch.tensor([[0.0, 1.0]])), [(torch.tensor([[1.0, 1e-30]]),)]
    kept = quantize(before, samples)
    assert operators(kept.graph) == ["linear"]
    with pytest.raises(
        PassError, match=r"%y \(head at net.py:7\): a scale ratio.*; on_overflow: float keeps"
    ):
        quantize(before, samples, on_overflow="error")


def test_activations_that_are_all_negative_have_zero_on_their_grid() -> None:
    before = graph("graph(%x: f32[1x4]) {\n %y: f32[1x4] = tanh(%x)\n return output: %y\n}")
    after = quantize(before, [(torch.full((1, 4), -3.0 - i**0.5),) for i in range(5)]).graph
    assert list(grid(after, "x_q").zero_point) == [127]
    torch.testing.assert_close(run_integer(after, [torch.zeros(1, 4)])[0], torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: (x[:, :2],),
            'calibration sample 2, input "x": shape (1, 2, 8, 8); the model takes (1, 3, 8, 8)',
        ),
        (
            lambda x: (x.double(),),
            'calibration sample 2, input "x": torch.float64; the model takes torch.float32',
        ),
        (lambda x: (x * float("nan"),), 'calibration sample 2, input "x": contains NaN or infinity'),
        (lambda x: (x, x), "calibration sample 2 has 2 tensors; the model takes 1"),
        (lambda x: (x * 3e38,), "calibration sample 2: conv %c (features.0) computes NaN or infinity"),
    ],
)
def test_a_calibration_sample_that_does_not_serve_is_named(spoil: object, message: str) -> None:
    before = graph(SMALL_CNN, w1=torch.full((8, 3, 3, 3), 2.0))
    calibration = drawn_samples(before, 5)
    calibration[2] = spoil(torch.ones(1, 3, 8, 8))
    with pytest.raises(CalibrationError) as caught:
        quantize(before, calibration)
    assert str(caught.value) == f"{message} [D107]"


def test_without_calibration_nothing_runs() -> None:
    with pytest.raises(MissingNeedError, match='pass "quantize" needs calibration'):
        quantize(graph(SMALL_CNN), [])


def test_a_graph_that_mixes_its_batch_is_calibrated_sample_by_sample() -> None:
    text = "graph(%x: f32[2x3]) {\n %s: f32[2x3] = softmax{axis=0}(%x)\n %t: f32[2x3] = tanh(%s)\n return o: %t\n}"
    before = graph(text)
    calibration = [(torch.full((2, 3), float(i)),) for i in range(40)]
    table = quantize(before, calibration).report.table("quantization_parameters")
    highest = {row[0]: row[3] for row in table.rows}
    assert highest["s"] == 0.5


NORM_RELU = """
graph(%x: f32[1x4SPATIAL]) {
  const %gamma: f32[4]
  const %beta: f32[4]
  const %mean: f32[4]
  const %var: f32[4]
  %n: f32[1x4SPATIAL] = batch_norm(%x, %gamma, %beta, %mean, %var)
  %r: f32[1x4SPATIAL] = relu(%n)
  return output: %r
}"""


@pytest.mark.parametrize(("spatial", "expected"), [("x5x5", ["conv"]), ("", ["mul", "add"])])
def test_a_batch_norm_that_stands_alone_gets_an_integer_form(spatial: str, expected: list[str]) -> None:
    before = graph(NORM_RELU.replace("SPATIAL", spatial))
    after = quantize(before).graph
    assert operators(after) == ["quantize", *expected, "dequantize"]
    assert signal_to_noise_db(before, after) > 25


def test_softmax_has_its_own_grid_and_log_softmax_stays_in_float() -> None:
    before = graph(
        """
        graph(%x: f32[1x6]) {
          %s: f32[1x6] = softmax{axis=1}(%x)
          %l: f32[1x6] = log_softmax{axis=1}(%x)
          return probabilities: %s, logarithms: %l
        }"""
    )
    result = quantize(before)
    assert grid(result.graph, "s") == Softmax(1).result_encoding(1.0)
    assert result.report.declined["quantize"] == {"log_softmax has no integer form": 1}
    assert operators(result.graph) == ["quantize", "softmax", "log_softmax", "dequantize"]


def test_a_division_by_a_constant_becomes_a_product_of_integers() -> None:
    text = "graph(%x: f32[1x6]) {\n const %six: f32[]\n %y: f32[1x6] = div(%x, %six)\n return output: %y\n}"
    before = graph(text, six=torch.tensor(6.0))
    after = quantize(before).graph
    assert operators(after) == ["quantize", "mul", "dequantize"]
    assert signal_to_noise_db(before, after) > 35


def test_functions_with_a_pole_stay_in_float() -> None:
    before = graph("graph(%x: f32[1x6]) {\n %y: f32[1x6] = rsqrt(%x)\n return output: %y\n}")
    result = quantize(before, [(torch.rand(1, 6) + 0.5,) for _ in range(4)])
    assert operators(result.graph) == ["rsqrt"]
    assert result.report.declined["quantize"] == {"rsqrt has a pole, which eight bits do not resolve": 1}


@pytest.mark.parametrize(("activations", "inputs"), [("int8", 140000), ("int16", 1200)])
def test_a_layer_whose_sums_leave_int32_computes_on_integers(activations: str, inputs: int) -> None:
    text = (
        "graph(%x: f32[1x{n}]) {{\n const %w: f32[1x{n}]\n %y: f32[1x1] = linear(%x, %w)\n return o: %y\n}}"
    )
    before = graph(text.format(n=inputs), w=torch.ones(1, inputs))
    result = quantize(before, drawn_samples(before, 4), activations=activations)
    assert operators(result.graph) == ["quantize", "linear", "dequantize"]
    assert result.report.table("layers").rows[0][-1] > 1 << 31
    (x,) = drawn_samples(before, 1)
    assert snr_db(run(before, x)[0], run_integer(result.graph, x)[0]) > 20


def test_the_bound_of_the_accumulator_is_attained_by_an_adversarial_input() -> None:
    text = "graph(%x: f32[1x64]) {\n const %w: f32[3x64]\n %y: f32[1x3] = linear(%x, %w)\n return o: %y\n}"
    before = graph(text)
    result = quantize(before, bias_correction=False)
    bound = result.report.table("layers").rows[0][-1]
    weight = result.graph.params["w"].to(torch.int64)
    ends = torch.where(weight[:, None] * torch.tensor([[1], [-1]]) > 0, 127, -128)
    folded = -grid(result.graph, "x_q").zero_point[0] * weight.sum(1)
    centred = (weight[:, None] * (ends - grid(result.graph, "x_q").zero_point[0])).sum(-1).abs().max()
    raw = (weight.abs().sum(1) * 128 + folded.abs()).max()
    assert bound == max(int(centred), int(raw))


def test_a_bias_that_dwarfs_the_weights_raises_their_scale() -> None:
    before = graph(SMALL_CNN, w1=torch.full((8, 3, 3, 3), 1e-9), b1=torch.full((8,), 50.0))
    after = quantize(before).graph
    assert after.params["b1"].abs().max() < 1 << 30
    assert signal_to_noise_db(before, after) > 25


CONCAT = """
graph(%x: f32[1x2x4x4]) {
  const %w: f32[3x2x1x1]
  const %v: f32[2x2x1x1]
  %a: f32[1x2x4x4] = sigmoid(%x)
  %b: f32[1x3x4x4] = conv(%x, %w)
  %k: f32[1x5x4x4] = concat{axis=1}(%a, %b)
  %c: f32[1x2x4x4] = conv(%a, %v)
  return output: %k, OTHER
}"""


def test_a_narrow_operand_of_a_concat_that_others_compute_with_keeps_its_grid() -> None:
    wide = torch.full((3, 2, 1, 1), 9.0)
    after = quantize(graph(CONCAT.replace("OTHER", "other: %c"), w=wide)).graph
    assert operators(after).count("requantize") == 1
    assert grid(after, "a").scale[0] < grid(after, "k").scale[0] / 10


def test_a_narrow_operand_of_a_concat_alone_shares_its_grid() -> None:
    wide = torch.full((3, 2, 1, 1), 9.0)
    after = quantize(graph(CONCAT.replace("OTHER", "other: %b"), w=wide)).graph
    assert "requantize" not in operators(after)
    assert grid(after, "a") == grid(after, "k")


SHARED_BY_CONCATS = """
graph(%x: f32[1x4]) {
  const %w: f32[4x4]
  const %v: f32[3x4]
  %u: f32[1x4] = linear(%x, %w)
  %b: f32[1x3] = linear(%x, %v)
  %k: f32[1x7] = concat{axis=1}(%u, %b)
  %n: f32[1x8] = concat{axis=1}(%u, %u)
  return wide: %k, narrow: %n
}"""


def test_a_value_that_two_concats_read_has_the_grid_of_the_narrow_one() -> None:
    before = graph(SHARED_BY_CONCATS, v=torch.full((3, 4), 300.0))
    after = quantize(before).graph
    assert operators(after).count("requantize") == 1
    assert grid(after, "u") == grid(after, "n") and grid(after, "n").scale[0] < grid(after, "k").scale[0] / 50
    assert all(ratio > 25 for ratio in ratios_db(before, after))


def test_a_narrow_value_is_rescaled_to_the_grid_of_each_concat_that_reads_it() -> None:
    before = graph(
        """
        graph(%x: f32[1x4]) {
          const %w: f32[4x4]
          const %v: f32[3x4]
          const %t: f32[3x4]
          %u: f32[1x4] = linear(%x, %w)
          %b: f32[1x3] = linear(%x, %v)
          %c: f32[1x3] = linear(%x, %t)
          %k: f32[1x7] = concat{axis=1}(%u, %b)
          %l: f32[1x7] = concat{axis=1}(%c, %u)
          return wide: %k, wider: %l, own: %u
        }""",
        v=torch.full((3, 4), 30.0),
        t=torch.full((3, 4), 300.0),
    )
    after = quantize(before).graph
    assert operators(after).count("requantize") == 2
    assert grid(after, "u").scale[0] < grid(after, "k").scale[0] / 5 < grid(after, "l").scale[0] / 25
    for concat in ("k", "l"):
        assert {v.type.quantization for v in after.producers[concat].operands} == {grid(after, concat)}
    assert all(ratio > 25 for ratio in ratios_db(before, after))
    x = drawn_samples(before, 1, seed=2)[0]
    want, have = run(before, x)[1][:, 3:], run_integer(after, x)[1][:, 3:]
    assert float((want - have).abs().max()) <= grid(after, "l").scale[0]


SLICES = """
graph(%x: f32[1x4]) {
  const %w: f32[6x4]
  const %v: f32[3x4]
  %y: f32[1x6] = linear(%x, %w)
  %a: f32[1x3] = slice{axis=1, start=0, stop=3}(%y)
  %b: f32[1x3] = slice{axis=1, start=3, stop=6}(%y)
  %z: f32[1x3] = linear(%x, %v)
  %k: f32[1x6] = concat{axis=1}(%a, %z)
  return joined: %k, other: %b
}"""


@pytest.mark.parametrize("size", [300.0, 0.001], ids=["joined with wide", "joined with narrow"])
def test_slices_of_a_layer_do_not_share_the_grid_of_all_that_one_is_joined_with(size: float) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    weight[:3] *= 0.001 if size < 1 else 1.0
    before = graph(SLICES, w=weight, v=torch.full((3, 4), size))
    after = quantize(before).graph
    assert operators(after).count("requantize") == 1
    (joined, other), narrow = ratios_db(before, after), "z" if size < 1 else "y"
    assert other > 25 and (joined > 25 or size < 1)
    assert grid(after, narrow).scale[0] < grid(after, "y" if size < 1 else "k").scale[0] / 50


def test_slices_that_are_only_put_together_again_are_not_rescaled() -> None:
    text = SLICES.replace("(%a, %z)", "(%a, %a)")
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    weight[:3] *= 0.001
    assert "requantize" not in operators(quantize(graph(text, w=weight)).graph)


def test_a_concat_takes_no_grid_that_an_operator_imposes_on_one_operand() -> None:
    before = graph(CONCAT.replace("sigmoid", "softmax{axis=1}").replace("OTHER", "other: %a"))
    after = quantize(before).graph
    assert grid(after, "a").scale[0] == 1 / 256
    assert all(ratio > 25 for ratio in ratios_db(before, after))


def test_a_constant_is_quantized_on_the_grid_of_each_concat_that_reads_it() -> None:
    text = SHARED_BY_CONCATS.replace(
        "%u: f32[1x4] = linear(%x, %w)", "const %u: f32[1x4]\n  %t: f32[1x4] = linear(%x, %w)"
    )
    text = text.replace("(%u, %u)", "(%u, %t)")
    before = graph(text, v=torch.full((3, 4), 300.0), u=torch.tensor([[0.5, -0.25, 0.125, 1.0]]))
    after = quantize(before).graph
    narrow, wide = after.producers["n"].inputs[0], after.producers["k"].inputs[0]
    assert narrow.type.quantization == grid(after, "n") and wide.type.quantization == grid(after, "k")
    assert grid(after, "n").scale[0] < grid(after, "k").scale[0] / 50
    assert all(ratio > 25 for ratio in ratios_db(before, after))


def test_layers_that_share_a_weight_share_its_integers() -> None:
    before = graph(
        """
        graph(%x: f32[1x4]) {
          const %w: f32[4x4]
          %a: f32[1x4] = linear{clamp=(0.0, inf)}(%x, %w)
          %b: f32[1x4] = linear(%a, %w)
          return output: %b
        }"""
    )
    after = quantize(before).graph
    assert [v.name for v in after.constants if v.type.shape == (4, 4)] == ["w"]


def test_a_constant_beside_activations_and_a_slope_are_quantized_per_tensor() -> None:
    before = graph(
        """
        graph(%x: f32[1x4x3x3]) {
          const %k: f32[4x1x1]
          const %slope: f32[4]
          %m: f32[1x4x3x3] = mul(%x, %k)
          %p: f32[1x4x3x3] = prelu(%m, %slope)
          return output: %p
        }"""
    )
    after = quantize(before).graph
    assert operators(after) == ["quantize", "mul", "prelu", "dequantize"]
    assert after.producers["p"].inputs[1].type.quantization.is_symmetric
    assert signal_to_noise_db(before, after) > 25


def test_progress_is_told_to_the_last_sample() -> None:
    before, told = graph(SMALL_CNN), []
    context = Context(calibration=drawn_samples(before, 33), progress=lambda *call: told.append(call))
    find_pass("quantize")(before, QuantizeOptions(samples=20), context)
    assert told[-1] == ("calibration", 20, 20)


def test_a_fused_network_keeps_its_residual_and_its_clamps() -> None:
    before = graph(
        """
        graph(%x: f32[1x4x6x6]) {
          const %w: f32[4x4x3x3]
          const %v: f32[4x4x3x3]
          %a: f32[1x4x6x6] = conv{padding=(1, 1, 1, 1)}(%x, %w)
          %r: f32[1x4x6x6] = relu(%a)
          %b: f32[1x4x6x6] = conv{padding=(1, 1, 1, 1)}(%r, %v)
          %s: f32[1x4x6x6] = add(%b, %r)
          %y: f32[1x4x6x6] = clamp{low=0.0, high=6.0}(%s)
          return output: %y
        }"""
    )
    after = quantize(find_pass("fuse")(before, FuseOptions()).graph).graph
    assert operators(after) == ["quantize", "conv", "conv", "dequantize"]
    assert signal_to_noise_db(before, after) > 25
