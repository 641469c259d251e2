"""Mixtures of experts: rows sorted by expert, a product for each group of rows, and a sum of the experts' results."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxpress.backends.torch_module import emit
from fxpress.compiler.frontend.capture import capture
from fxpress.ir import Graph, run
from fxpress.ir.ops.matmul import grouped_matmul
from fxpress.passes import Context
from fxpress.passes.weight_only.weight_storage import weight_only
from fxpress.specs.options import WeightOnlyOptions

EXPERTS, CHOSEN, FEATURES, HIDDEN = 4, 2, 16, 32
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
Product = Callable[[Tensor, Tensor, Tensor], Tensor]

if not HAS_TRANSFORMERS:  # its operator, as it declares and computes it
    torch.library.custom_op(
        "transformers::grouped_mm_fallback",
        grouped_matmul,
        mutates_args=(),
        schema="(Tensor input, Tensor weight, Tensor offs) -> Tensor",
    ).register_fake(lambda input, weight, offs: input.new_empty(len(input), weight.shape[2]))


def of_package(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    product: Tensor = torch.ops.transformers.grouped_mm_fallback(x, weights, offs=ends)
    return product


def of_torch(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return torch._grouped_mm(x, weights, offs=ends)


class Experts(nn.Module):
    """Rows sorted by expert, as the package transformers has it; `product` multiplies groups of rows."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product
        self.gate = nn.Linear(FEATURES, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, FEATURES) / FEATURES**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, FEATURES, HIDDEN) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.gate(x).softmax(-1).topk(CHOSEN)
        experts, order = chosen.flatten().sort()
        sizes = torch.histc(experts.float(), EXPERTS, 0, EXPERTS - 1)
        ends = sizes.cumsum(0, dtype=torch.int32)
        y = F.silu(self.product(x[order // CHOSEN], self.up.transpose(1, 2), ends))
        y = self.product(y, self.down.transpose(1, 2), ends) * shares.flatten()[order, None].to(x.dtype)
        return x.new_zeros(x.shape).index_add(0, order // CHOSEN, y)


class OneAfterTheOther(Experts):
    """The same, expert by expert over all rows."""

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.gate(x).softmax(-1).topk(CHOSEN)
        y = torch.zeros_like(x)
        for expert in range(EXPERTS):
            share = torch.where(chosen == expert, shares, 0.0).sum(1, keepdim=True)
            y = y + share * F.linear(F.silu(F.linear(x, self.up[expert])), self.down[expert])
        return y


def experts(kind: type[Experts], product: Product, dtype: torch.dtype) -> tuple[Experts, Graph, Tensor]:
    torch.manual_seed(0)
    model, x = kind(product).eval().to(dtype), torch.randn(9, FEATURES).to(dtype)
    return model, capture(model, (x,)).graph, x


NEEDS_OWN = pytest.mark.skipif(
    HAS_TRANSFORMERS, reason="the package transformers defines the operator itself"
)
FLOAT, HALF = torch.float32, torch.bfloat16  # torch traces its own operator in bfloat16 alone
FORMS = [
    pytest.param(Experts, of_package, FLOAT, id="package", marks=NEEDS_OWN),
    pytest.param(Experts, of_package, HALF, id="package in bfloat16", marks=NEEDS_OWN),
    pytest.param(Experts, of_torch, HALF, id="torch in bfloat16"),
    pytest.param(OneAfterTheOther, of_torch, FLOAT, id="loop"),
    pytest.param(OneAfterTheOther, of_torch, HALF, id="loop in bfloat16"),
]


@pytest.mark.parametrize(("kind", "product", "dtype"), FORMS)
def test_matrices_of_experts_become_integers_in_a_module_of_torch_alone(
    kind: type[Experts], product: Product, dtype: torch.dtype
) -> None:
    model, graph, x = experts(kind, product, dtype)
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(run(graph, [x])[0], expected)
    stored = weight_only(graph, WeightOnlyOptions(weights="int8"), Context())
    assert {d.name for d in stored.report.decisions if d.applied} == {"gate.weight", "up", "down"}
    emitted = emit(stored.graph)
    assert "transformers" not in emitted.source
    with torch.no_grad():
        y = emitted.build()(x)
    exact = run(stored.graph, [x])[0]
    largest = 1e-5 if dtype is FLOAT else 1e-2  # the kernel adds in float32 and rounds once
    assert float((y - exact).norm() / exact.norm()) < largest
    assert float((y - expected).norm() / expected.norm()) < 0.03


def test_groups_may_be_empty_and_rows_after_the_last_one_are_zeros() -> None:
    x, weights = torch.arange(1.0, 6)[:, None], torch.tensor([10.0, 100.0, 1000.0])[:, None, None]
    assert grouped_matmul(x, weights, torch.tensor([1, 1, 3])).flatten().tolist() == [10, 2000, 3000, 0, 0]
    assert grouped_matmul(x, weights, torch.tensor([0, 2, 9])).flatten().tolist() == [
        100,
        200,
        3000,
        4000,
        5000,
    ]


def test_a_decoder_of_the_package_transformers_needs_torch_alone() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=EXPERTS,
    )
    model, ids = transformers.MixtralForCausalLM(config).eval(), torch.randint(3, 60, (1, 8))
    graph = capture(model, (), {"input_ids": ids, "use_cache": False}).graph
    stored = weight_only(graph, WeightOnlyOptions(weights="int8"), Context())
    assert not [d for d in stored.report.decisions if "experts" in d.name and not d.applied]
    emitted = emit(stored.graph)
    code = "\n".join(line.partition("  # ")[0] for line in emitted.source.splitlines())
    assert "transformers" not in code
    with torch.no_grad():
        torch.testing.assert_close(emitted.build()(ids), run(stored.graph, [ids])[0])
