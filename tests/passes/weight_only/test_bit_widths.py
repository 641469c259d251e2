"""Bit widths of stored weights from their measured losses, within a budget."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Builder, DType, Graph, Source, TensorType, run
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.passes import InfeasibleError, PassResult
from fxpress.passes.base import Context
from fxpress.passes.weight_only import weight_only
from fxpress.specs import SpecError, layer_matches
from fxpress.specs.options import WeightOnlyOptions
from fxpress.specs.write import read_values


def classifier() -> Graph:
    """Tokens to scores of 16 classes: a layer whose output is large, and one whose output hardly counts."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    builder = Builder()
    x = builder.add(
        Embedding(),
        builder.input("tokens", TensorType((1, 8), DType.I64)),
        builder.constant("table.weight", weight(64, 32)),
    )
    loud = builder.add(Linear(), x, builder.constant("loud.weight", weight(32, 32, scale=0.3)))
    y = builder.add(
        Linear(),
        x,
        builder.constant("quiet.weight", weight(32, 32, scale=1e-3)),
        None,
        loud,
        source=Source("quiet"),
    )
    head = builder.constant("head.weight", weight(16, 32))
    return builder.build([builder.add(Linear(), y, head, source=Source("head"))])


SAMPLES = [
    (torch.randint(0, 64, (1, 8), generator=torch.Generator().manual_seed(seed)),) for seed in range(24)
]


def compress(**options: object) -> PassResult:
    context = Context(calibration=SAMPLES[:12], selects=layer_matches)
    settings = WeightOnlyOptions.model_validate({"activations": "float32", **options})
    return weight_only(classifier(), settings, context)


def widths(result: PassResult) -> dict[str, int]:
    return {row[0]: row[1] for row in result.report.table("weights").rows}


def stored(result: PassResult) -> int:
    return sum(row[4] for row in result.report.table("weights").rows)


def divergence(result: PassResult) -> float:
    total = 0.0
    for sample in SAMPLES[12:]:
        p = run(classifier(), sample)[0].log_softmax(-1)
        q = run(result.graph, sample)[0].log_softmax(-1)
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total


def test_a_layer_that_hardly_counts_takes_the_fewest_bits() -> None:
    result = compress(budget={"weights": "2400 B"})
    assert stored(result) <= 2400
    found = widths(result)
    assert found["quiet.weight"] == 2 < min(bits for name, bits in found.items() if name != "quiet.weight")


def test_chosen_widths_lose_less_than_one_width_of_as_many_bytes() -> None:
    uniform = compress(weights="int4")
    mixed = compress(budget={"weights": f"{stored(uniform)} B"})
    assert stored(mixed) <= stored(uniform)
    assert divergence(mixed) < 0.75 * divergence(uniform)


def test_more_bytes_never_lose_more_and_a_loss_is_kept_with_the_fewest_bytes() -> None:
    reached = []
    for share in ("40 %", "60 %", "80 %"):
        reached.append(
            min(row[2] for row in compress(budget={"weights": share}).report.table("allocations").rows)
        )
    assert reached == sorted(reached, reverse=True)
    strict, loose = (compress(budget={"loss": loss}) for loss in (0.001, 0.1))
    assert stored(loose) < stored(strict)
    assert "predicted loss" in strict.report.warnings[0]
    for result, most in ((strict, 0.001), (loose, 0.1)):
        ((_, _, predicted, _),) = result.report.table("allocations").rows
        assert predicted <= most


def test_layers_of_the_spec_keep_their_widths() -> None:
    result = compress(budget={"weights": "80 %"}, layers={"head": "float32", "quiet": "int8"}, widths=(3, 5))
    found = widths(result)
    assert found.pop("quiet.weight") == 8
    assert found.keys() == {"table.weight", "loud.weight"} and set(found.values()) <= {3, 5}


def test_the_table_has_every_measured_loss() -> None:
    rows = compress(budget={"weights": "50 %", "samples": 2}).report.table("widths").rows
    assert len(rows) == 4 * 6
    for name in ("table.weight", "loud.weight", "head.weight"):
        losses = [loss for weight, _, _, loss in rows if weight == name]
        assert losses[0] > 10 * losses[-1] >= 0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"weights": "100 B"}, r"at least [\d,]+ bytes at these widths; the budget is 100"),
        ({"loss": 1e-12}, "the predicted loss is at least .* the budget is 1e-12"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_with_the_least(
    budget: dict[str, object], message: str
) -> None:
    with pytest.raises(InfeasibleError, match=message):
        compress(budget=budget)


def test_a_budget_names_something_and_needs_calibration() -> None:
    with pytest.raises(SpecError, match="a budget needs"):
        read_values(WeightOnlyOptions, {"budget": {}}, name="weight_only(...)")
    options = WeightOnlyOptions.model_validate({"budget": {"loss": 0.1}, "rounding": "gptq"})
    assert list(options.needed()) == [("calibration", ("budget",)), ("calibration", ("rounding",))]


def test_every_output_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    builder = Builder()
    x = builder.input("x", TensorType((1, 32)))
    outputs = [
        builder.add(
            Linear(), x, builder.constant(f"{name}.weight", torch.randn(rows, 32, generator=generator))
        )
        for name, rows in (("classes", 16), ("box", 16), ("score", 16))
    ]
    samples = [(torch.randn(1, 32, generator=generator),) for _ in range(8)]
    options = WeightOnlyOptions.model_validate({"budget": {"weights": "60 %"}})
    result = weight_only(builder.build(outputs), options, Context(calibration=samples))
    assert min(widths(result).values()) > 2
    assert all(loss > 0 for *_, bits, _, loss in result.report.table("widths").rows if bits < 8)


def test_the_allocation_of_least_measured_loss_is_taken() -> None:
    result = compress(budget={"weights": "2600 B", "samples": 6})
    rows = result.report.table("allocations").rows
    assert len(rows) > 1 and all(size <= 2600 for _, size, _, _ in rows)
    best = min(rows, key=lambda row: row[3])
    assert best[0] != 1.0 and stored(result) == best[1]
    assert f"predicted loss {best[2]:.3g}, of all weights together {best[3]:.3g}" in result.report.warnings[0]
    graph, total = classifier(), 0.0
    for sample in (SAMPLES[6], *SAMPLES[8:12]):  # number 7 is held back
        p, q = (run(g, sample)[0].double().log_softmax(-1) for g in (graph, result.graph))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    assert best[3] == pytest.approx(total / 5, rel=1e-3)
