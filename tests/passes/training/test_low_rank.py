"""Training of few constants: low-rank adapters, norms and biases."""

import pytest
import torch
from torch import Tensor

from fxpress.backends.torch_module import to_module
from fxpress.ir import Builder, DType, Graph, Source, TensorType, parse, run, verify
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.norm import LayerNorm
from fxpress.passes import Context, PassError, finetune, quantize, weight_only
from fxpress.specs.options import FinetuneOptions
from fxpress.specs.write import read_values


def scorer(seed: int = 0, dtype: torch.dtype = torch.float32) -> Graph:
    """Tokens to scores of 16 classes for each of 8 positions; the table is the weight of the output layer too."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    builder = Builder()
    table = builder.constant("table.weight", weight(16, 32))
    x = builder.add(Embedding(), builder.input("tokens", TensorType((1, 8), DType.I64)), table)
    up = builder.constant("up.weight", weight(64, 32))
    y = builder.add(
        Linear(clamp=(0.0, float("inf"))), x, up, builder.constant("up.bias", weight(64)), source=Source("up")
    )
    x = builder.add(
        Linear(), y, builder.constant("down.weight", weight(32, 64)), None, x, source=Source("down")
    )
    x = builder.add(LayerNorm((32,), 1e-5), x, builder.constant("norm.weight", torch.ones(32, dtype=dtype)))
    return builder.build([builder.add(Linear(), x, table, source=Source("head"))])


SAMPLES = [
    (torch.randint(0, 16, (1, 8), generator=torch.Generator().manual_seed(seed)),) for seed in range(48)
]


def trained(before: Graph, original: Graph, **options: object) -> Graph:
    settings = {"class_axis": -1, "batch": 8, "learning_rate": 1e-2, "distill": {"temperature": 1.0}}
    chosen = read_values(FinetuneOptions, {"epochs": 10, **settings, **options}, name="finetune(...)")
    return verify(finetune(before, chosen, Context(calibration=SAMPLES[:40], original=original)).graph)


def divergence(graph: Graph, original: Graph) -> float:
    total = 0.0
    for sample in SAMPLES[40:]:
        p, q = (run(g, sample)[0].float().log_softmax(-1) for g in (original, graph))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total


def changed(before: Graph, after: Graph) -> set[str]:
    return {name for name in before.params if not torch.equal(before.params[name], after.params[name])}


@pytest.mark.parametrize("rank", [1, 4])
def test_adapters_are_added_to_float_weights(rank: int) -> None:
    before, original = scorer(), scorer(seed=1)
    after = trained(before, original, trains={"lora": {"rank": rank, "layers": ["up", "down"]}})
    assert changed(before, after) == {"up.weight", "down.weight"}
    for name in changed(before, after):
        assert torch.linalg.matrix_rank(after.params[name] - before.params[name], rtol=1e-4) == rank
    assert divergence(after, original) < 0.9 * divergence(before, original)


def test_a_patterns_layers_and_those_that_are_kept_limit_the_adapters() -> None:
    before, original = scorer(), scorer(seed=1)
    after = trained(before, original, trains={"lora": {"rank": 2}}, keep=["down"], epochs=1)
    assert changed(before, after) == {"up.weight", "table.weight"}


def test_zeros_of_sparse_weights_stay_zero() -> None:
    before, original = scorer(), scorer(seed=1)
    mask = torch.rand(64, 32, generator=torch.Generator().manual_seed(3)) < 0.5
    sparse = before.with_params({"up.weight": before.params["up.weight"] * mask})
    after = trained(sparse, original, trains={"lora": {"rank": 2}}, epochs=2)
    assert changed(sparse, after) >= {"up.weight"}
    assert not after.params["up.weight"][~mask].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activations", ["float32", "int8"])
@pytest.mark.parametrize("weights", ["int4", "nf4"])
def test_stored_weights_keep_their_bytes_and_get_adapters(
    dtype: torch.dtype, activations: str, weights: str
) -> None:
    original = scorer(seed=1, dtype=dtype)
    base = weight_only(scorer(dtype=dtype), weights=weights, activations=activations).graph
    after = trained(base, original, trains={"lora": {"rank": 4}})
    assert not changed(base, after)
    added = set(after.params) - set(base.params)
    assert added == {f"{layer}.weight_lora_{part}" for layer in ("up", "down") for part in "ab"}
    assert divergence(after, original) < 0.9 * divergence(base, original)
    module = to_module(after)
    for sample in SAMPLES[40:44]:
        torch.testing.assert_close(module(*sample), run(after, sample)[0], rtol=4e-2, atol=4e-2)


def test_no_epoch_changes_no_byte() -> None:
    before = scorer()
    after = trained(before, scorer(seed=1), trains={"lora": {"rank": 4}}, epochs=0)
    assert not changed(before, after)


def test_norms_and_biases_alone_are_trained() -> None:
    before, original = scorer(), scorer(seed=1)
    after = trained(before, original, trains="norms_and_biases")
    assert changed(before, after) == {"up.bias", "norm.weight"}
    assert divergence(after, original) < divergence(before, original)


def test_adapters_that_cannot_be_are_refused() -> None:
    graph = scorer()
    with pytest.raises(PassError, match="rank 40 is more than the rank of"):
        trained(graph, graph, trains={"lora": {"rank": 40}})
    with pytest.raises(PassError, match="no linear layer"):
        trained(graph, graph, trains={"lora": {"rank": 2}}, keep=["**"])


def test_an_integer_graph_has_no_adapters() -> None:
    text = (
        "graph(%x: f32[1x6]) {\n  const %a: f32[3x6]\n  %y: f32[1x3] = linear(%x, %a)\n  return output: %y\n}"
    )
    graph = parse(text, fill=lambda v: torch.ones(v.type.shape))
    samples = [(torch.randn(1, 6, generator=torch.Generator().manual_seed(i)),) for i in range(16)]
    context = Context(calibration=samples, original=graph)
    integers = quantize(graph, context=context).graph
    options = FinetuneOptions.model_validate({"epochs": 1, "trains": {"lora": {"rank": 1}}})
    with pytest.raises(PassError, match="move `finetune` before `quantize`"):
        finetune(integers, options, context)
