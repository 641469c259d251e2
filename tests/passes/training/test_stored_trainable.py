"""Training of a network whose weights are stored as integers: rounding and scales are learned."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Builder, DType, Graph, Source, TensorType, run, verify
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.norm import LayerNorm
from fxpress.passes import finetune, weight_only
from fxpress.passes.base import Context
from fxpress.specs.options import FinetuneOptions, WeightOnlyOptions


def scorer(dtype: torch.dtype = torch.float32) -> Graph:
    """Tokens to scores of 16 classes for each of 8 positions; the table is the weight of the output layer too."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    builder = Builder()
    table = builder.constant("table.weight", weight(16, 32))
    x = builder.add(Embedding(), builder.input("tokens", TensorType((1, 8), DType.I64)), table)
    x = builder.add(Linear(clamp=(0.0, float("inf"))), x, builder.constant("up.weight", weight(64, 32)))
    x = builder.add(Linear(), x, builder.constant("down.weight", weight(32, 64)), source=Source("down"))
    norm = builder.constant("norm.weight", torch.ones(32, dtype=dtype))
    x = builder.add(LayerNorm((32,), 1e-5), x, norm)
    return builder.build([builder.add(Linear(), x, table)])


SAMPLES = [
    (torch.randint(0, 16, (1, 8), generator=torch.Generator().manual_seed(seed)),) for seed in range(48)
]


def stored(graph: Graph, **options: object) -> Graph:
    return weight_only(graph, WeightOnlyOptions.model_validate({"weights": "int3", **options})).graph


def trained(before: Graph, original: Graph | None, **options: object) -> Graph:
    settings = {"class_axis": -1, "batch": 8, "learning_rate": 2e-3, "distill": {"temperature": 1.0}}
    context = Context(calibration=SAMPLES[:40], original=original)
    chosen = FinetuneOptions.model_validate({"epochs": 20, **settings, **options})
    return verify(finetune(before, chosen, context).graph)


def divergence(graph: Graph, original: Graph) -> float:
    total = 0.0
    for sample in SAMPLES[40:]:
        p, q = (run(g, sample)[0].float().log_softmax(-1) for g in (original, graph))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_distillation_halves_the_divergence(dtype: torch.dtype, activations: str) -> None:
    original = scorer(dtype)
    before = stored(original, activations=activations)
    after = trained(before, original)
    assert divergence(after, original) < 0.5 * divergence(before, original)
    assert [v.type.shape for v in after.constants] == [v.type.shape for v in before.constants]
    for old, new in zip(before.constants, after.constants, strict=True):
        if old.type.quantization is not None and new.type.quantization is not None:
            assert new.type.quantization.scale.dtype is old.type.quantization.scale.dtype
            assert not torch.equal(before.tensor(old), after.tensor(new))


def test_no_epoch_changes_no_byte() -> None:
    original = scorer()
    before = stored(original)
    after = trained(before, original, epochs=0)
    assert after.constants == before.constants
    assert all(torch.equal(before.tensor(v), after.tensor(v)) for v in before.constants)


def test_layers_that_are_kept_and_scales_that_are_not_learned_stay() -> None:
    original = scorer()
    before = stored(original)
    after = trained(before, original, keep=("down",), learn_steps=False)
    types = {v.name: v.type for v in after.constants}
    assert types == {v.name: v.type for v in before.constants}
    assert torch.equal(after.params["down.weight"], before.params["down.weight"])
    assert not torch.equal(after.params["up.weight"], before.params["up.weight"])


def test_rounded_weights_start_where_the_captured_model_has_them() -> None:
    """Without it they start at the integers, from which training gains less."""
    original = scorer()
    before = stored(original)
    renamed = trained(before, original.with_params({}))
    assert divergence(renamed, original) < divergence(before, original)


@pytest.mark.parametrize("options", [{"rounding": "hqq"}, {"weights": "nf4"}])
def test_zero_points_and_tables_stay_as_they_are(options: dict[str, object]) -> None:
    original = scorer()
    before = stored(original, **options)
    after = trained(before, original, epochs=4)
    for old, new in zip(before.constants, after.constants, strict=True):
        if old.type.quantization is not None and new.type.quantization is not None:
            assert new.type.quantization.zero_point == old.type.quantization.zero_point
            assert new.type.quantization.levels == old.type.quantization.levels
    assert divergence(after, original) <= divergence(before, original)
