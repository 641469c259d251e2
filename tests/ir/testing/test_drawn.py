"""Constants and inputs that tests draw."""

import torch

from fxpress.ir import parse
from fxpress.ir.testing import drawn_constant, drawn_samples

TEXT = """
graph(%tokens: i64[1x6], %x: f64[1x6x2]) {
  const %table: f64[8x2]
  const %other: f64[8x2]
  %e: f64[1x6x2] = embedding(%tokens, %table)
  %o: f64[1x6x2] = embedding(%tokens, %other)
  %s: f64[1x6x2] = add(%e, %o)
  %y: f64[1x6x2] = add(%s, %x)
  return output: %y
}"""


def test_constants_are_the_same_for_the_same_name_alone() -> None:
    first, second = (parse(TEXT, fill=drawn_constant) for _ in range(2))
    assert first == second
    assert not torch.equal(first.params["table"], first.params["other"])


def test_samples_fit_the_inputs_and_differ_from_each_other_and_with_the_seed() -> None:
    graph = parse(TEXT, fill=drawn_constant)
    drawn = drawn_samples(graph, 3)
    for sample in drawn:
        assert [(x.dtype, tuple(x.shape)) for x in sample] == [
            (torch.int64, (1, 6)),
            (torch.float64, (1, 6, 2)),
        ]
        assert set(sample[0].flatten().tolist()) <= set(range(8))
    assert len({float(x.sum()) for _, x in (*drawn, *drawn_samples(graph, 3, seed=2))}) == 6
    assert all(torch.equal(a[1], b[1]) for a, b in zip(drawn, drawn_samples(graph, 3), strict=True))
