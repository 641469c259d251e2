"""Rounding that is trained end to end, and its result in the report."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Builder, DType, Graph, TensorType, run, verify
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.norm import RmsNorm
from fxpress.passes import PassResult
from fxpress.passes.base import Context
from fxpress.passes.weight_only import weight_only
from fxpress.specs.options import WeightOnlyOptions


def scorer() -> Graph:
    """Tokens to scores of 16 classes for each of 8 positions; the table is the weight of the output layer too."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    builder = Builder()
    table = builder.constant("table.weight", weight(16, 32))
    x = builder.add(Embedding(), builder.input("tokens", TensorType((1, 8), DType.I64)), table)
    y = builder.add(RmsNorm((32,), 1e-5), x, builder.constant("norm.weight", torch.ones(32)))
    y = builder.add(Linear(clamp=(0.0, float("inf"))), y, builder.constant("up.weight", weight(64, 32)))
    y = builder.add(Linear(), y, builder.constant("down.weight", weight(32, 64)), None, x)
    return builder.build([builder.add(Linear(), y, table)])


def tokens(count: int) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 16, (1, 8), generator=generator),) for _ in range(count)]


CALIBRATION, HELD_OUT = tokens(72)[:64], tokens(72)[64:]


def compress(**options: object) -> PassResult:
    settings = WeightOnlyOptions.model_validate({"weights": "int3", **options})
    return weight_only(scorer(), settings, Context(calibration=CALIBRATION))


def divergence(graph: Graph) -> float:
    total = 0.0
    for sample in HELD_OUT:
        p, q = (run(g, sample)[0].log_softmax(-1) for g in (scorer(), graph))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(HELD_OUT)


LEARNED = {"kind": "learned", "batch": 8, "steps": 80}


@pytest.mark.parametrize("start", ["nearest", "gptq", "hqq"])
def test_learned_rounding_halves_the_divergence(start: str) -> None:
    before = divergence(compress(rounding=start).graph)
    result = compress(rounding={**LEARNED, "start": start})
    verify(result.graph)
    assert divergence(result.graph) < 0.5 * before
    assert "learned rounding: divergence on held-back samples" in " ".join(result.report.warnings)


def test_the_same_samples_give_the_same_bytes() -> None:
    first, second = (compress(rounding={**LEARNED, "steps": 14}).graph for _ in range(2))
    assert first == second


def test_learned_integers_take_no_more_bytes() -> None:
    nearest, learned = (compress(rounding=rounding) for rounding in ("nearest", {**LEARNED, "steps": 21}))
    for result in (nearest, learned):
        assert [row[4] for row in result.report.table("weights").rows] == [224, 896, 896]
    assert not torch.equal(nearest.graph.params["up.weight"], learned.graph.params["up.weight"])
    assert not torch.equal(nearest.graph.params["norm.weight"], learned.graph.params["norm.weight"])


def test_the_summary_has_the_divergence_on_samples_that_nothing_was_fitted_to() -> None:
    result = compress(rounding="gptq")
    figures = dict(result.report.table("summary").rows)
    reference, total = scorer(), 0.0
    for sample in CALIBRATION[7::8]:
        p, q = (run(g, sample)[0].double().log_softmax(-1) for g in (reference, result.graph))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    assert figures["divergence_samples"] == 8
    assert figures["divergence"] == pytest.approx(total / 8)
    note = f"divergence from the float network on 8 held-back calibration samples: {total / 8:.3g} nats"
    assert note in result.report.warnings


def test_rounding_to_nearest_runs_no_sample() -> None:
    result = compress()
    assert "divergence" not in dict(result.report.table("summary").rows)


def test_outputs_that_are_no_scores_are_learned_by_their_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    builder = Builder()
    x = builder.input("x", TensorType((1, 4, 8, 8)))
    weight = torch.randn(8, 8, generator=generator)
    graph = builder.build([builder.add(Linear(), x, builder.constant("layer.weight", weight))])
    samples = [(torch.randn(1, 4, 8, 8, generator=generator),) for _ in range(32)]
    settings = WeightOnlyOptions.model_validate({"weights": "int2", "rounding": "learned"})
    learned, reached, *_ = weight_only(graph, settings, Context(calibration=samples)).report.warnings
    assert reached.endswith("squared error")
    before, after = map(float, learned.rpartition("samples ")[2].split(" -> "))
    assert after <= before
