"""Criteria of `sparsify` that look at the outputs of linear layers."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fxpress.ir import Graph, Value, parse
from fxpress.passes import Context, MissingNeedError, PassResult, find_pass
from fxpress.passes.sparsify.criteria import (
    mask_pattern,
    mask_smallest_of_rows,
    sparse_by_sparsegpt,
    sparse_by_wanda,
)
from fxpress.specs.options import SparsifyOptions

NET = """
graph(%x: f32[1x6x16]) {
  const %w: f32[12x16]
  const %b: f32[12]
  const %v: f32[8x6x3]
  %h: f32[1x6x12] = linear(%x, %w, %b)
  %y: f32[1x8x10] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%h, %v)
  return output: %y
}"""


def net() -> Graph:
    generator = torch.Generator().manual_seed(0)

    def fill(value: Value) -> Tensor:
        return torch.randn(value.type.shape, generator=generator)

    return parse(NET, fill=fill)


def data(count: int = 32) -> Context:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(16, 16, generator=generator) * torch.logspace(-1, 1, 16)
    return Context([(torch.randn(1, 6, 16, generator=generator) @ mixing,) for _ in range(count)])


def sparsify(context: Context, **options: object) -> PassResult:
    return find_pass("sparsify")(net(), SparsifyOptions.model_validate(options), context)


def hessian(inputs: Tensor) -> Tensor:
    return (inputs.T @ inputs).double()


def loss(weight: Tensor, sparse: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (weight - sparse).T).square().sum())


@pytest.mark.parametrize("pattern", [None, (2, 4), (1, 4), (2, 3)])
def test_compensated_weights_are_nearer_to_the_outputs_than_the_largest_ones(
    pattern: tuple[int, int] | None,
) -> None:
    ratios = []
    for seed, (rows, columns) in enumerate([(8, 48), (16, 96), (24, 192), (40, 300)]):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator)
        mixing = torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=generator)
        inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
        mask = mask_smallest_of_rows(weight, 0.5) if pattern is None else mask_pattern(weight, *pattern)
        compensated = sparse_by_sparsegpt(weight, hessian(inputs), 0.5, pattern)
        ratios.append(loss(weight, compensated, inputs) / loss(weight, weight * mask, inputs))
        if pattern is None:
            assert int((compensated == 0).sum()) == pytest.approx(rows * columns / 2, abs=3)
        else:
            assert ((compensated.reshape(rows, -1, pattern[1]) != 0).sum(-1) <= pattern[0]).all()
    assert max(ratios) < 1 and sum(ratios) / len(ratios) < 0.85


def test_wanda_keeps_small_weights_of_large_inputs() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    moments = torch.diag(torch.tensor([100.0, 1.0, 1.0, 1.0]).double())
    expected = torch.tensor([[1.0, 0.0, 0.0, 4.0], [4.0, 3.0, 0.0, 0.0]])
    assert torch.equal(sparse_by_wanda(weight, moments, 0.5, None), expected)
    assert torch.equal(sparse_by_wanda(weight, moments, 0.5, (2, 4)), expected)


def test_weights_of_dead_inputs_become_zero_first() -> None:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    inputs[:, ::2] = 0
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).abs() + 1
    weight[:, ::2] *= 10
    sparse = sparse_by_wanda(weight, hessian(inputs), 0.5, None)
    assert loss(weight, sparse, inputs) == 0


@pytest.mark.parametrize("how", [{"sparsity": "50 %"}, {"pattern": "2:4"}])
def test_errors_of_the_output_fall_from_magnitude_to_sparsegpt(how: dict[str, str]) -> None:
    errors = {}
    for criterion in ("wanda", "sparsegpt"):
        result = sparsify(data(), criterion=criterion, **how)
        (row,) = (row for row in result.report.table("weights").rows if row[0] == "w")
        errors[criterion] = float(str(row[3]))
        assert (result.graph.params["w"] == 0).double().mean() == 0.5
    plain = sparsify(data(), scope="layer", **how) if "sparsity" in how else sparsify(data(), **how)
    before, after = net().params["w"], plain.graph.params["w"]
    inputs = torch.cat([x.reshape(-1, 16) for (x,) in data().calibration])
    magnitude = loss(before, after, inputs) / loss(before, torch.zeros_like(before), inputs)
    assert errors["sparsegpt"] < errors["wanda"] < magnitude


def test_other_layers_go_by_magnitude_and_the_report_says_so() -> None:
    result = sparsify(data(), criterion="sparsegpt", sparsity="50 %")
    (decision,) = (d for d in result.report.decisions if d.name == "v")
    assert (
        decision.reason
        == "50.0 % of the weights are zero, by magnitude: `sparsegpt` needs the inputs of linear layers"
    )
    kept = result.graph.params["v"]
    assert torch.equal(kept[kept != 0], net().params["v"][kept != 0])


def test_zeros_grow_in_steps_and_stay() -> None:
    result = sparsify(data(), criterion="sparsegpt", sparsity="75 %", steps=3)
    assert (result.graph.params["w"] == 0).double().mean() == pytest.approx(0.75, abs=0.01)


def test_a_criterion_of_outputs_needs_samples_and_a_layer() -> None:
    with pytest.raises(MissingNeedError, match="needs calibration"):
        sparsify(Context(), criterion="wanda", pattern="2:4")
    with pytest.raises(ValidationError, match="compares within a layer"):
        SparsifyOptions.model_validate({"criterion": "wanda", "sparsity": "50 %", "scope": "global"})
