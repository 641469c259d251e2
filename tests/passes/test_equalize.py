"""Cross-layer equalization: the same function, equal ranges, and layers that stay unchanged."""

from __future__ import annotations

import pytest
import torch

from fxpress.ir import DType, Graph, parse, run, run_integer
from fxpress.ir.testing import check_rewrite, drawn_constant, graphs
from fxpress.passes import Context, PassResult, find_pass
from fxpress.specs.options import EqualizeOptions, FuseOptions, QuantizeOptions

LAYERED = ("conv", "conv_transpose", "linear", "relu", "leaky_relu", "max_pool", "avg_pool", "reshape", "add")


def equalize(graph: Graph, *, keep: tuple[str, ...] = ()) -> PassResult:
    return find_pass("equalize")(graph, EqualizeOptions(keep=keep))


def fused(graph: Graph) -> Graph:
    return find_pass("fuse")(graph, FuseOptions()).graph


def test_the_function_is_kept_on_random_graphs() -> None:
    check_rewrite(
        lambda graph: equalize(graph).graph, graphs=graphs(ops=LAYERED, dtype=DType.F64), tolerance=1e-11
    )


def test_the_function_of_fused_graphs_is_kept() -> None:
    check_rewrite(
        lambda graph: equalize(fused(graph)).graph,
        graphs=graphs(ops=LAYERED, dtype=DType.F64),
        tolerance=1e-11,
    )


CHAIN = """
graph(%x: f32[1x3x8x8]) {
  const %w1: f32[6x3x3x3]
  const %b1: f32[6]
  const %w2: f32[6x1x3x3]
  const %w3: f32[4x6x1x1]
  const %w4: f32[5x16]
  %a: f32[1x6x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1, %b1)   # "stem", ""
  %b: f32[1x6x4x4] = conv{stride=(2, 2), padding=(1, 1, 1, 1), groups=6, clamp=(0.0, inf)}(%a, %w2)   # "depthwise", ""
  %c: f32[1x4x4x4] = conv{clamp=(0.0, inf)}(%b, %w3)   # "pointwise", ""
  %p: f32[1x4x2x2] = avg_pool(%c)
  %f: f32[1x16] = reshape{shape=(-1, 16)}(%p)
  %y: f32[1x5] = linear(%f, %w4)   # "head", ""
  return output: %y
}"""


def test_ranges_agree_through_a_depthwise_chain_and_a_flattening() -> None:
    after = equalize(parse(CHAIN, fill=drawn_constant)).graph.params
    stem, depthwise = after["w1"].abs().amax((1, 2, 3)), after["w2"].abs().amax((1, 2, 3))
    written, read = after["w3"].abs().amax((1, 2, 3)), after["w4"].abs().view(5, 4, 4).amax((0, 2))
    torch.testing.assert_close(stem, depthwise, rtol=1e-3, atol=0.0)
    torch.testing.assert_close(depthwise, after["w3"].abs().amax((0, 2, 3)), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(written, read, rtol=1e-3, atol=0.0)


def unbalanced(graph: Graph) -> Graph:
    """The same function with channels of the stem a hundred times apart."""
    factor = torch.logspace(-1, 1, 6)
    return graph.with_params(
        {
            "w1": graph.params["w1"] * factor.view(-1, 1, 1, 1),
            "b1": graph.params["b1"] * factor,
            "w2": graph.params["w2"] / factor.view(-1, 1, 1, 1),
        }
    )


def test_channels_that_were_scaled_apart_come_together_again() -> None:
    before = parse(CHAIN, fill=drawn_constant)
    plain, apart = equalize(before).graph, equalize(unbalanced(before)).graph
    for name in ("w1", "b1", "w2", "w3", "w4"):
        torch.testing.assert_close(plain.params[name], apart.params[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_shared_grids_lose_less(per_channel: bool) -> None:
    before = unbalanced(parse(CHAIN, fill=drawn_constant))
    generator = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(1, 3, 8, 8, generator=generator),) for _ in range(64)]

    def squared_error(graph: Graph) -> float:
        options = QuantizeOptions(per_channel=per_channel)
        integer = find_pass("quantize")(graph, options, Context(calibration=inputs)).graph
        return sum(float((run(before, x)[0] - run_integer(integer, x)[0]).square().sum()) for x in inputs)

    assert squared_error(equalize(before).graph) < squared_error(before) / 2


def test_a_channel_of_zeros_stays() -> None:
    before = parse(CHAIN, fill=drawn_constant)
    weight = before.params["w1"].clone()
    weight[2] = 0
    after = equalize(before.with_params({"w1": weight})).graph
    assert not after.params["w1"][2].any()
    assert all(tensor.isfinite().all() for tensor in after.params.values())


def test_a_layer_that_the_spec_keeps_is_not_scaled() -> None:
    before = parse(CHAIN, fill=drawn_constant)
    result = equalize(before, keep=("depthwise",))
    assert all(torch.equal(result.graph.params[name], before.params[name]) for name in ("w1", "b1", "w2"))
    assert result.report.declined["equalize"]["the spec keeps one of the layers"] == 2


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (
            "%a: f32[1x4] = linear{clamp=(0.0, 6.0)}(%x, %w)",
            "its clamp would need a different bound for each channel",
        ),
        (
            "%h: f32[1x4] = linear(%x, %w)\n  %a: f32[1x4] = tanh(%h)",
            "tanh after it does not propagate a factor",
        ),
        ("%a: f32[1x4] = linear(%x, %w, none, %x)", "a residual is added to its result"),
        ("%a: f32[1x4] = linear(%x, %v)", "its weights are not unshared float constants"),
    ],
)
def test_what_does_not_pass_a_factor_on_is_told(middle: str, reason: str) -> None:
    text = "graph(%x: f32[1x4]) {\n  const %w: f32[4x4]\n  const %v: f32[4x4]\n  MIDDLE\n"
    text += "  %y: f32[1x4] = linear(%a, %v)\n  return output: %y\n}"
    before = parse(text.replace("MIDDLE", middle), fill=drawn_constant)
    result = equalize(before)
    assert reason in result.report.declined["equalize"]
    assert result.graph == before


def test_a_result_that_is_read_twice_stays() -> None:
    text = CHAIN.replace("return output: %y", "return output: %y, other: %b")
    reasons = equalize(parse(text, fill=drawn_constant)).report.declined["equalize"]
    assert reasons["its result is read more than once, or is an output"] == 2  # the head's too


@pytest.mark.parametrize(
    "between",
    [
        "%m: f32[1x4] = mean{axes=(2, 3), keepdim=False}(%a)",
        "%f: f32[1x4x2x2] = flip{axes=(1,)}(%a)\n  %m: f32[1x4] = mean{axes=(2, 3), keepdim=False}(%f)",
    ],
)
def test_factors_follow_their_channels(between: str) -> None:
    text = f"""graph(%x: f32[1x3x2x2]) {{
  const %w1: f32[4x3x1x1]
  const %w2: f32[5x4]
  %a: f32[1x4x2x2] = conv(%x, %w1)
  {between}
  %y: f32[1x5] = linear(%m, %w2)
  return output: %y
}}"""
    before = parse(text, fill=drawn_constant)
    after = equalize(before).graph
    written, read = after.params["w1"].abs().amax((1, 2, 3)), after.params["w2"].abs().amax(0)
    torch.testing.assert_close(written, read.flip(0) if "flip" in between else read, rtol=1e-3, atol=0.0)
    x = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(after, [x])[0], run(before, [x])[0])


SPECTRUM = """
graph(%x: f32[1x1x64]) {
  const %basis: f32[18x1x16]
  const %w: f32[8x9x3]
  const %b: f32[8]
  const %v: f32[5x8x1]
  %c: f32[1x18x7] = conv{stride=(8,), padding=(0, 0), dilation=(1,)}(%x, %basis)
  %re: f32[1x9x7], %im: f32[1x9x7] = split{axis=1, sizes=(9, 9)}(%c)
  %m: f32[1x9x7] = magnitude(%re, %im)
  %r: f32[1x8x7] = conv{stride=(1,), padding=(1, 1), dilation=(1,), clamp=(0.0, inf)}(%m, %w, %b)
  %y: f32[1x5x7] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%r, %v)
  return output: %y
}"""


def spectrum() -> Graph:
    """A network on magnitudes whose columns of weights differ by a factor of up to 100."""
    before = parse(SPECTRUM, fill=drawn_constant)
    return before.with_params({"w": before.params["w"] * torch.logspace(-2, 0, 9).view(1, -1, 1)})


def test_the_real_and_imaginary_part_of_a_bin_share_a_factor() -> None:
    before = spectrum()
    after = equalize(before).graph
    factor = (after.params["basis"] / before.params["basis"]).flatten(1).mean(1)
    torch.testing.assert_close(factor[:9], factor[9:])
    assert factor.max() > 3 * factor.min()
    x = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(after, [x])[0], run(before, [x])[0])


def test_levelled_spectra_lose_less_beside_activations_of_16_bits() -> None:
    before = spectrum()
    generator = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(1, 1, 64, generator=generator),) for _ in range(24)]

    def squared_error(graph: Graph) -> float:
        options = QuantizeOptions(activations="int16")
        integer = find_pass("quantize")(graph, options, Context(calibration=inputs)).graph
        return sum(float((run(before, x)[0] - run_integer(integer, x)[0]).square().sum()) for x in inputs)

    assert squared_error(equalize(before).graph) < squared_error(before)


def test_a_sum_with_another_value_does_not_pass_a_factor_on() -> None:
    text = CHAIN.replace(
        "%p: f32[1x4x2x2] = avg_pool(%c)",
        "%s: f32[1x4x4x4] = add(%c, %x4)\n  %p: f32[1x4x2x2] = avg_pool(%s)",
    )
    text = text.replace("(%x: f32[1x3x8x8])", "(%x: f32[1x3x8x8], %x4: f32[1x4x4x4])")
    reasons = equalize(parse(text, fill=drawn_constant)).report.declined["equalize"]
    assert reasons["add after it does not propagate a factor: it reads another value, too"] == 1
