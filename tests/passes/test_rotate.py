"""Rotation of the residual stream of networks with RMS norms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import Builder, DType, Graph, TensorType, parse, run, verify
from fxpress.ir.ops.binary import Add, Mul
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.norm import LayerNorm, RmsNorm
from fxpress.ir.ops.slicing import Select
from fxpress.passes import rotate
from fxpress.passes.base import Context
from fxpress.passes.rotate import random_rotation

TOKENS = (torch.tensor([[3, 1, 4, 1, 5]]),)


def decoder(
    width: int,
    *,
    blocks: int = 2,
    tied: bool = False,
    fused: bool = False,
    biased: bool = False,
    scaled: bool = False,
    last: bool = False,
    centred: bool = False,
) -> Graph:
    """Tokens to scores: blocks of norm, gate, up and down, added to a residual stream with a loud channel."""
    generator = torch.Generator().manual_seed(width)

    def constant(name: str, *shape: int) -> object:
        return builder.constant(name, torch.randn(shape, generator=generator) / shape[-1] ** 0.5)

    builder = Builder()
    norm = LayerNorm((width,), 1e-5) if centred else RmsNorm((width,), 1e-5)
    table = constant("table", 8, width)
    x = builder.add(Embedding(), builder.input("tokens", TensorType((1, 5), DType.I64)), table)
    if scaled:
        x = builder.add(Mul(), x, builder.constant("factor", torch.tensor([3.0])))
    for i in range(blocks):
        gain = builder.constant(f"{i}.norm", torch.linspace(0.5, 2.0, width))
        n = builder.add(norm, x, gain)
        bias = [constant(f"{i}.bias", 2 * width)] if biased else []
        up = builder.add(Linear(clamp=(0.0, float("inf"))), n, constant(f"{i}.up", 2 * width, width), *bias)
        up = builder.add(Mul(), up, builder.add(Linear(), n, constant(f"{i}.gate", 2 * width, width)))
        down, added = (
            constant(f"{i}.down", width, 2 * width),
            [constant(f"{i}.down_bias", width)] if biased else [None],
        )
        if fused:
            x = builder.add(Linear(), up, down, *added, x)
        else:
            x = builder.add(Add(), x, builder.add(Linear(), up, down, *added))
    if last:
        x = builder.add(Select(1, 4), x)
    x = builder.add(norm, x, builder.constant("norm", torch.linspace(2.0, 0.5, width)))
    return builder.build([builder.add(Linear(), x, table if tied else constant("head", 8, width))])


@settings(max_examples=25, deadline=None)
@given(
    width=st.sampled_from([1, 2, 6, 8, 12, 15, 16]),
    blocks=st.integers(0, 2),
    tied=st.booleans(),
    fused=st.booleans(),
    biased=st.booleans(),
    scaled=st.booleans(),
    last=st.booleans(),
)
def test_the_function_is_kept(
    width: int, blocks: int, tied: bool, fused: bool, biased: bool, scaled: bool, last: bool
) -> None:
    graph = decoder(width, blocks=blocks, tied=tied, fused=fused, biased=biased, scaled=scaled, last=last)
    result = rotate(graph)
    verify(result.graph)
    assert result.report.applied == {"rotate": 1}
    assert not torch.equal(result.graph.params["table"], graph.params["table"]) or width == 1
    torch.testing.assert_close(run(result.graph, TOKENS), run(graph, TOKENS), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 8, 12, 28, 64])
def test_rotations_are_orthogonal_and_spread_a_channel(width: int) -> None:
    matrix = random_rotation(width, torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64))
    if width & (width - 1) == 0:
        torch.testing.assert_close(matrix.abs(), torch.full((width, width), width**-0.5, dtype=torch.float64))


def test_a_tied_table_stays_tied_and_its_head_has_one_layer_before_it() -> None:
    graph = rotate(decoder(16, tied=True)).graph
    readers = graph.users["table"]
    assert [node.op.name for node in readers] == ["embedding", "linear"]
    added = [
        node
        for node in graph.nodes
        if isinstance(node.op, Linear) and "rotation" in node.operand("weight").name
    ]
    assert len(added) == 1 and readers[1].operand("x") == added[0].output
    assert sum(node.op.name == "rms_norm" and node.optional("weight") is None for node in graph.nodes) == 3


def test_another_seed_is_another_rotation_and_the_same_seed_the_same() -> None:
    tables = [rotate(decoder(8), seed=seed).graph.params["table"] for seed in (0, 0, 1)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


def test_outliers_of_one_channel_are_spread_over_all() -> None:
    table = decoder(64).params["table"].clone()
    table[:, 3] *= 30
    graph = decoder(64).with_params({"table": table})

    def peak(graph: Graph) -> Tensor:
        rows = graph.params["table"]
        return rows.abs().amax(1) / rows.square().mean(1).sqrt()

    assert float(peak(rotate(graph).graph).mean()) < 0.5 * float(peak(graph).mean())


def reason(graph: Graph) -> str:
    result = rotate(graph, context=Context())
    assert result.graph == graph
    assert not result.report.applied
    return result.report.decisions[0].reason


def test_a_norm_that_subtracts_the_mean_is_refused() -> None:
    assert "only RMS norms commute" in reason(decoder(8, centred=True))


REFUSED = {
    "%y: f32[1x4] = tanh(%h)": "tanh y reads the residual stream",
    "%s: f32[1x4] = add(%h, %x)\n  %y: f32[1x2] = linear(%s, %u)": "an input or a constant, is part of",
    "%t: f32[1x4] = tanh(%x)\n  %s: f32[1x4] = add(%h, %t)\n  %y: f32[1x2] = linear(%s, %u)": "tanh t computes",
    "%y: f32[1x4] = linear(%h, %w)": "the weight of linear h is shared, or not float",
    "%y: f32[1x4] = add(%h, %h)": "is an output of the model",
    "%y: f32[1x2x2] = reshape{shape=(1, 2, 2)}(%h)": "reshape y reads the residual stream",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_stream_that_other_operators_join_is_refused_with_the_place(line: str) -> None:
    graph = parse(
        f"""
graph(%x: f32[1x4]) {{
  const %w: f32[4x4]
  const %v: f32[2x4]
  const %u: f32[2x4]
  %h: f32[1x4] = linear(%x, %w)
  %n: f32[1x4] = rms_norm{{shape=(4,), eps=1e-05}}(%h)
  %z: f32[1x2] = linear(%n, %v)
  {line}
  return z: %z, y: %y
}}""",
        fill=lambda v: torch.ones(v.type.shape),
    )
    assert REFUSED[line] in reason(graph)


def test_a_norm_that_other_operators_read_gets_a_layer_back_to_the_old_basis() -> None:
    graph = parse(
        """
graph(%x: f32[1x4]) {
  const %w: f32[4x4]
  const %g: f32[4]
  %h: f32[1x4] = linear(%x, %w)
  %n: f32[1x4] = rms_norm{shape=(4,), eps=1e-05}(%h, %g)
  %y: f32[1x4] = tanh(%n)
  return output: %y
}""",
        fill=lambda v: torch.randn(v.type.shape, generator=torch.Generator().manual_seed(v.type.numel)),
    )
    result = rotate(graph)
    x: tuple[Tensor, ...] = (torch.tensor([[1.0, -2.0, 0.5, 3.0]]),)
    torch.testing.assert_close(run(result.graph, x), run(graph, x), rtol=1e-5, atol=1e-5)
    assert [node.op.name for node in result.graph.nodes] == ["linear", "rms_norm", "linear", "tanh"]
    assert "1 with a linear layer of 4x4" in result.report.decisions[0].reason


def test_a_layer_that_is_added_has_the_module_path_of_its_norm() -> None:
    graph = parse(
        """
graph(%i: i64[2]) {
  const %table: f32[6x8]
  const %g: f32[8]
  %h: f32[2x8] = embedding(%i, %table)   # "embed", "net.py:1"
  %n: f32[2x8] = rms_norm{shape=(8,), eps=1e-05}(%h, %g)   # "norm", "net.py:2"
  %y: f32[2x6] = linear(%n, %table)   # "head", "net.py:3"
  return output: %y
}""",
        fill=lambda v: torch.randn(v.type.shape, generator=torch.Generator().manual_seed(0)),
    )
    nodes = rotate(graph).graph.nodes
    assert [node.source.module for node in nodes] == ["embed", "norm", "norm", "head"]
