"""Shared weights: the best table there is, few distinct values in the graph, and the bytes that they take."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from fxpress.ir import (
    Graph,
    Value,
    coded_weights,
    decode_codebooks,
    dump,
    encode_codebooks,
    parse,
    run,
    run_integer,
    verify,
)
from fxpress.ir.huffman import code_lengths, encode
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import Context, PassResult, find_pass
from fxpress.passes.quantize.codebook import share_values
from fxpress.specs.options import AdaRound, QuantizeOptions


def squared_error(integers: Tensor, shared: Tensor, importance: Tensor) -> float:
    return float(((integers.double() - shared.double()).square() * importance).sum())


@pytest.mark.parametrize("seed", range(8))
def test_no_table_is_better(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-6, 7, (40,), generator=generator)
    importance = torch.rand(40, generator=generator).double()
    found = squared_error(integers, share_values(integers, importance, bits=2), importance)

    def nearest(table: tuple[int, ...]) -> Tensor:
        values = torch.tensor(table)
        return values[(integers[:, None] - values).abs().argmin(1)]

    tables = combinations(range(-6, 7), 4)
    best = min(squared_error(integers, nearest(table), importance) for table in tables)
    assert found == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_there_are_no_more_values_than_indices(bits: int) -> None:
    integers = torch.randint(-127, 128, (64, 30), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    shared = share_values(integers, torch.ones(64, 1), bits=bits)
    assert len(shared.unique()) == 1 << bits
    assert shared.dtype == torch.int8


def test_few_values_stay_as_they_are() -> None:
    integers = torch.tensor([5, -3, 5, 0], dtype=torch.int8)
    assert torch.equal(share_values(integers, torch.ones(4), bits=2), integers)


def test_weights_that_count_for_nothing_do_not_decide() -> None:
    integers = torch.tensor([-100, 0, 1, 100, 101])
    shared = share_values(integers, torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]), bits=2)
    assert shared.tolist()[1:] == [0, 1, 100, 101]


NETWORK = """
graph(%x: f32[1x3x8x8]) {
  const %w1: f32[8x3x3x3]
  const %b1: f32[8]
  const %w2: f32[5x128]
  %c: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1, %b1)   # "stem", ""
  %p: f32[1x8x4x4] = max_pool(%c)
  %f: f32[1x128] = reshape{shape=(-1, 128)}(%p)
  %y: f32[1x5] = linear(%f, %w2)   # "head", ""
  return output: %y
}"""


def fill(value: Value) -> Tensor:
    return drawn_constant(value) / 3


def quantize(before: Graph, **options: object) -> PassResult:
    context = Context(
        calibration=drawn_samples(before, 40), selects=lambda pattern, module: pattern == module
    )
    return find_pass("quantize")(before, QuantizeOptions.model_validate(options), context)


def test_layers_of_eight_bits_share_values_and_others_stay() -> None:
    graph = quantize(parse(NETWORK, fill=fill), codebook_bits=3, layers={"head": "int4"}).graph
    assert len(graph.params["w1"].unique()) == 8
    assert len(graph.params["w2"].unique()) == 15 and coded_weights(graph) == {"w1"}


def test_the_type_of_a_shared_weight_has_its_codebook_and_the_text_reads_back() -> None:
    graph = verify(quantize(parse(NETWORK, fill=fill), codebook_bits=3, layers={"head": "int4"}).graph)
    weight = graph.producers["c"].operand("weight")
    encoding = weight.type.quantization
    assert encoding is not None and encoding.levels is not None and encoding.bits == 4
    assert len(encoding.levels) == 8 and graph.params["w1"].dtype == torch.uint8
    assert weight.type.storage_bytes == 108
    assert "levels=@0" in next(line for line in dump(graph).splitlines() if "%w1:" in line)
    assert parse(dump(graph), params=graph.params) == graph


def test_layers_compute_with_the_integers_that_codes_stand_for() -> None:
    graph = quantize(parse(NETWORK, fill=fill), codebook_bits=3).graph
    plain = verify(decode_codebooks(graph))
    assert plain.params["w1"].dtype == torch.int8 and decode_codebooks(plain) is plain
    assert encode_codebooks(plain, coded_weights(graph)) == graph
    for x in drawn_samples(graph, 4, seed=2):
        assert torch.equal(run_integer(graph, x)[0], run_integer(plain, x)[0])
        assert torch.equal(run(graph, x)[0], run(plain, x)[0])


def test_dead_channels_leave_the_codebook() -> None:
    bias = torch.zeros(8).index_fill(0, torch.tensor([2]), -100.0)  # the clamp cuts channel 2
    before = parse(NETWORK, params={"b1": bias}, fill=fill)
    graph = quantize(before, codebook_bits=3).graph
    after = find_pass("remove_dead_channels")(graph).graph
    assert after.params["w1"].shape == (7, 3, 3, 3) and coded_weights(after) == coded_weights(graph)


def test_sixteen_values_are_nearer_to_the_float_network_than_four_bits() -> None:
    before = parse(NETWORK, fill=fill)

    def error(after: Graph) -> float:
        return sum(
            float((run(before, x)[0] - run_integer(after, x)[0]).square().sum())
            for x in drawn_samples(before, 40, seed=2)
        )

    errors = [error(quantize(before, codebook_bits=bits).graph) for bits in (2, 3, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < error(quantize(before, weights="int4", per_channel=False).graph)


def test_the_report_has_the_bytes_of_each_image() -> None:
    result = quantize(parse(NETWORK, fill=fill), codebook_bits=4)
    row = result.report.table("codebooks").rows[0]
    assert row[:5] == ("c", "stem", 16, 216, 16 + 108)
    values, index, counts = (
        decode_codebooks(result.graph).params["w1"].unique(return_inverse=True, return_counts=True)
    )
    image = encode(index.flatten().tolist(), code_lengths(counts.tolist()))
    assert row[5] == 2 * len(values) + len(image)


def test_shared_values_and_learned_rounding_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="codebook_bits"):
        QuantizeOptions.model_validate({"codebook_bits": 4, "rounding": "adaround"})


def test_binary_weights_are_a_codebook_of_two_values() -> None:
    graph = parse(
        """
graph(%x: f32[1x3x5x5]) {
  const %w: f32[4x3x3x3]
  %c: f32[1x4x5x5] = conv{padding=(1, 1, 1, 1)}(%x, %w)   # "first", ""
  return output: %c
}""",
        fill=drawn_constant,
    )
    options = QuantizeOptions(weights="binary", rounding=AdaRound(iterations=2, samples=4))
    context = Context(calibration=drawn_samples(graph, 8))
    made = find_pass("quantize")(graph, options, context)
    verify(made.graph)
    assert coded_weights(made.graph) == {"w"}
    assert "levels=(-1.0, 1.0)" in dump(made.graph)
    assert parse(dump(made.graph), params=made.graph.params) == made.graph
    assert "its weights have a codebook" in {decision.reason for decision in made.report.decisions}
    plain = decode_codebooks(made.graph)
    sample = drawn_samples(graph, 1, seed=3)[0]
    assert torch.equal(run_integer(made.graph, sample)[0], run_integer(plain, sample)[0])
    assert set(plain.params["w"].unique().tolist()) == {-1, 1}
