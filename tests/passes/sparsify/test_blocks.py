"""`sparsify` with `pattern: blocks`: weights become zero in blocks of four along the input channels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import Graph, Value, parse
from fxpress.passes import Context, PassResult, find_pass
from fxpress.passes.sparsify.blocks import Blocks
from fxpress.passes.sparsify.criteria import mask_smallest, sparse_by_sparsegpt
from fxpress.passes.sparsify.sparsify import sparsity_at
from fxpress.specs.options import SparsifyOptions

NET = """
graph(%x: f32[2x10x4x4]) {
  const %a: f32[8x10x3x3]
  const %g: f32[8x4x1x1]
  const %d: f32[8x1x3x3]
  const %t: f32[8x6x2x2]
  const %w: f32[6x6]
  const %v: f32[3x6]
  %h: f32[2x8x4x4] = conv{padding=(1, 1, 1, 1)}(%x, %a)
  %i: f32[2x8x4x4] = conv{groups=2}(%h, %g)
  %k: f32[2x8x4x4] = conv{padding=(1, 1, 1, 1), groups=8}(%i, %d)
  %u: f32[2x6x8x8] = conv_transpose{stride=(2, 2)}(%k, %t)
  %m: f32[2x6] = mean{axes=(2, 3)}(%u)
  %l: f32[2x6] = linear(%m, %w)
  %y: f32[2x3] = linear(%l, %v)
  return output: %y
}"""
SPARSE = ("a", "g", "w", "v")
TRAINING = {"epochs": 6, "batch": 4, "learning_rate": 0.01, "distill": None}


def net() -> Graph:
    generator = torch.Generator().manual_seed(0)

    def fill(value: Value) -> Tensor:
        return torch.randn(value.type.shape, generator=generator)

    return parse(NET, fill=fill)


def data() -> Context:
    generator = torch.Generator().manual_seed(1)
    inputs = [(torch.randn(2, 10, 4, 4, generator=generator),) for _ in range(8)]
    labels = [torch.randint(0, 3, (2,), generator=generator) for _ in range(8)]
    return Context(inputs, labels, original=net())


def sparsify(**options: object) -> PassResult:
    chosen = SparsifyOptions.model_validate({"pattern": "blocks", **options})
    return find_pass("sparsify")(net(), chosen, data())


def blocks(weight: Tensor) -> list[Tensor]:
    """The blocks of each position [out, :, kh, kw], written out."""
    rows = weight.movedim(1, -1).reshape(-1, weight.shape[1])
    return [block for row in rows for block in row.split(4)]


def is_whole(weight: Tensor) -> bool:
    """True if no block is zero in part."""
    return all(bool((block == 0).all()) or bool((block != 0).all()) for block in blocks(weight))


def zero_blocks(graph: Graph, *names: str) -> float:
    found = [not bool(block.any()) for name in names for block in blocks(graph.params[name])]
    return sum(found) / len(found)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda", "sparsegpt"])
def test_blocks_become_zero_together_by_every_criterion(criterion: str) -> None:
    result = sparsify(sparsity="50 %", criterion=criterion)
    assert all(is_whole(result.graph.params[name]) for name in SPARSE)
    assert zero_blocks(result.graph, *SPARSE) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(result.graph.params["t"], net().params["t"])


def test_layers_without_blocks_keep_all_weights_with_the_reason() -> None:
    result = sparsify(sparsity="75 %")
    kept = {d.name: d.reason for d in result.report.decisions if not d.applied}
    assert kept == {
        "d": "its 1 input channels are fewer than a block of 4",
        "t": "blocks are for linear layers and convolutions that are not transposed",
    }
    assert all(torch.equal(result.graph.params[name], net().params[name]) for name in kept)


def test_the_report_has_the_zeros_of_weights_and_of_blocks() -> None:
    result = sparsify(sparsity="50 %", scope="layer")
    assert any("C for microcontrollers skips blocks" in warning for warning in result.report.warnings)
    reasons = {d.name: d.reason for d in result.report.decisions}
    assert reasons["g"] == "50.0 % of the weights are zero, 50.0 % of its blocks of 4"
    zeros = float((result.graph.params["w"] == 0).double().mean())
    assert reasons["w"] == f"{100 * zeros:.1f} % of the weights are zero, 50.0 % of its blocks of 4"


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda"])
def test_blocks_of_no_layer_are_noted(criterion: str) -> None:
    graph = parse(
        "graph(%x: f32[1x3]) {\n  const %w: f32[2x3]\n  %y: f32[1x2] = linear(%x, %w)\n  return output: %y\n}",
        fill=lambda value: torch.ones(value.type.shape),
    )
    options = SparsifyOptions.model_validate(
        {"pattern": "blocks", "sparsity": "50 %", "criterion": criterion}
    )
    result = find_pass("sparsify")(graph, options, Context([(torch.ones(1, 3),)]))
    assert result.graph.params["w"].all()
    assert result.report.warnings == ("no layer has 4 input channels: all weights stay",)


def test_the_sum_of_a_block_decides_not_its_largest_weight() -> None:
    graph = parse(
        "graph(%x: f32[1x8]) {\n  const %w: f32[1x8]\n  %y: f32[1x1] = linear(%x, %w)\n  return output: %y\n}",
        fill=lambda value: torch.tensor([[3.0, 0.1, 0.1, 0.1, 1.0, -1.0, 1.0, -1.0]]),
    )
    options = SparsifyOptions.model_validate({"pattern": "blocks", "sparsity": "50 %"})
    kept = find_pass("sparsify")(graph, options, Context()).graph.params["w"]
    assert torch.equal(kept, torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 1.0, -1.0]]))


def test_blocks_become_zero_in_steps_and_stay_zero() -> None:
    result = sparsify(sparsity="60 %", steps=2, finetune=TRAINING)
    assert all(is_whole(result.graph.params[name]) for name in SPARSE)
    assert zero_blocks(result.graph, *SPARSE) == pytest.approx(0.6, abs=0.02)
    first, last = (float(str(row[1])) for row in result.report.table("steps").rows)
    assert first / last == pytest.approx(sparsity_at(1, 2), abs=0.05)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_surgery_chooses_blocks(scope: str) -> None:
    result = sparsify(sparsity="50 %", schedule="surgery", scope=scope, finetune=TRAINING)
    assert all(is_whole(result.graph.params[name]) for name in SPARSE)
    assert zero_blocks(result.graph, *SPARSE) == pytest.approx(0.5, abs=0.02)
    assert result.graph.params["d"].all()


IMAGES = {
    "image": ("2x6x2x3", "conv{padding=(1, 1, 1, 1)}", "6x6x3x3", (6, 6)),
    "signal": ("2x6x7", "conv{stride=(1,), padding=(1, 1), dilation=(1,)}", "6x6x3", (6, 7)),
}


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda", "sparsegpt", "surgery"])
@pytest.mark.parametrize("name", IMAGES)
def test_blocks_of_a_flattened_image_are_channels_of_a_pixel(name: str, criterion: str) -> None:
    image, conv, kernel, (channels, pixels) = IMAGES[name]
    text = f"""graph(%x: f32[{image}]) {{
      const %a: f32[{kernel}]
      const %w: f32[5x{channels * pixels}]
      %h: f32[{image}] = {conv}(%x, %a)
      %r: f32[{image}] = relu(%h)
      %f: f32[2x{channels * pixels}] = reshape{{shape=(-1, {channels * pixels})}}(%r)
      %y: f32[2x5] = linear(%f, %w)
      return y: %y
    }}"""
    generator = torch.Generator().manual_seed(0)
    graph = parse(text, fill=lambda value: torch.randn(value.type.shape, generator=generator))
    inputs = [(torch.randn(graph.inputs[0].type.shape, generator=generator),) for _ in range(4)]
    context = Context(
        inputs, [torch.randint(0, 5, (2,), generator=generator) for _ in inputs], original=graph
    )
    trained = {"schedule": "surgery", "scope": "layer", "finetune": {**TRAINING, "batch": 2}}
    how = trained if criterion == "surgery" else {"criterion": criterion}
    options = SparsifyOptions.model_validate({"pattern": "blocks", "sparsity": "50 %", **how})
    result = find_pass("sparsify")(graph, options, context)
    weight = result.graph.params["w"].view(5, channels, pixels).transpose(1, 2).reshape(5, -1)
    assert is_whole(weight)
    assert 0.2 < zero_blocks(result.graph.with_params({"w": weight}), "w") < 0.8
    reasons = {d.name: d.reason for d in result.report.decisions}
    assert reasons["w"].endswith(
        f"{100 * sum(not b.any() for b in blocks(weight)) / len(blocks(weight)):.1f} % of its blocks of 4"
    )


weights = st.builds(
    lambda seed, shape: torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
    st.integers(0, 1000),
    st.tuples(st.integers(1, 6), st.integers(4, 19), *[st.integers(1, 3)] * 2)
    | st.tuples(st.integers(1, 6), st.integers(4, 140)),
)


@settings(max_examples=60, deadline=None)
@given(weights, st.floats(0, 0.99))
def test_masks_of_blocks_keep_the_largest_sums(weight: Tensor, share: float) -> None:
    scores = Blocks(4).scores(weight)
    assert scores.shape == (weight.shape[0], -(-weight.shape[1] // 4), *weight.shape[2:])
    mask = Blocks(4).mask(mask_smallest(scores, share), weight.shape[1])
    assert mask.shape == weight.shape
    sums = [(float(b.abs().sum()), bool(k.all())) for b, k in zip(blocks(weight), blocks(mask), strict=True)]
    assert is_whole(mask)
    assert sum(not kept for _, kept in sums) == round(share * len(sums))
    removed, kept = ([total for total, stays in sums if stays is which] for which in (False, True))
    assert max(removed, default=0.0) <= min(kept, default=float("inf")) + 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(4, 140), st.floats(0.1, 0.9))
def test_compensation_keeps_the_blocks_of_any_width_zero(seed: int, inputs: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(rows, inputs, generator=generator) for rows in (5, 3 * inputs))
    sparse = sparse_by_sparsegpt(weight, (x.T @ x).double(), share, None, blocks=Blocks(4))
    chunks = [5 * -(-min(128, inputs - start) // 4) for start in range(0, inputs, 128)]
    zeros = sum(not bool(block.any()) for block in blocks(sparse))
    assert is_whole(sparse)
    assert zeros == sum(round(share * count) for count in chunks)
