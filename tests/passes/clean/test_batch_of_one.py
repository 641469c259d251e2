"""Networks called without a batch: the operators between their layers compute with a batch."""

import pytest
import torch

from fxpress.ir import Builder, Graph, TensorType, Value, dump, parse, run
from fxpress.ir.ops.activation import Relu, Sigmoid
from fxpress.ir.ops.binary import Add, Mul
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.elementary import Abs
from fxpress.ir.ops.shape import Reshape
from fxpress.ir.ops.slicing import Concat
from fxpress.passes import find_pass
from fxpress.specs.options import CleanOptions


def clean(graph: Graph, **options: object) -> Graph:
    return find_pass("clean")(graph, CleanOptions.model_validate(options)).graph


def unbatched(builder: Builder, value: Value, number: int) -> Value:
    """A convolution as torch calls it on [c, h, w]: a batch of one is added, and dropped again."""
    torch.manual_seed(number)
    weight = builder.constant(f"w{number}", torch.randn(4, value.type.shape[0], 3, 3))
    batched = builder.add(Reshape((1, *value.type.shape)), value)
    return builder.add(
        Reshape((4, *value.type.shape[1:])), builder.add(Conv(padding=(1, 1, 1, 1)), batched, weight)
    )


def between(builder: Builder, a: Value, b: Value, what: str) -> Value:
    two = builder.constant("two", torch.tensor(2.0))
    match what:
        case "activation":
            return builder.add(Sigmoid(), builder.add(Abs(), a))
        case "number":
            return builder.add(Mul(), a, two)
        case "residual":
            return builder.add(Relu(), builder.add(Add(), a, b))
        case _:
            return builder.add(Concat(axis=0), a, b)


def network(what: str) -> Graph:
    builder = Builder()
    x = builder.input("x", TensorType((3, 5, 5)))
    a, b = unbatched(builder, x, 0), unbatched(builder, x, 1)
    return builder.build([unbatched(builder, between(builder, a, b, what), 2)])


@pytest.mark.parametrize("what", ["activation", "number", "residual", "concat"])
def test_only_the_ends_reshape(what: str) -> None:
    before = network(what)
    after = clean(before)
    assert sum(node.op.name == "reshape" for node in after.nodes) == 2
    x = torch.rand(3, 5, 5)
    assert torch.equal(run(after, [x])[0], run(before, [x])[0])


@pytest.mark.parametrize(
    "text",
    [
        # the batch is not one
        "graph(%x: f32[2x3]) {\n %a: f32[2x3] = abs(%x)\n %r: f32[6] = reshape{shape=(6,)}(%a)\n"
        " %y: f32[6] = sigmoid(%r)\n return output: %y\n}",
        # only one side had a batch
        "graph(%x: f32[1x3], %z: f32[3]) {\n %a: f32[1x3] = abs(%x)\n %r: f32[3] = reshape{shape=(3,)}(%a)\n"
        " %y: f32[3] = add(%r, %z)\n return output: %y\n}",
    ],
)
def test_other_reshapes_stay_where_they_are(text: str) -> None:
    graph = parse(text)
    assert dump(clean(graph)) == dump(graph)


def test_operands_of_different_rank_meet_on_the_same_axes() -> None:
    before = parse(
        "graph(%x: f32[1x3], %z: f32[1x3x3]) {\n %a: f32[1x3] = abs(%x)\n %b: f32[1x3x3] = abs(%z)\n"
        " %r: f32[3] = reshape{shape=(3,)}(%a)\n %s: f32[3x3] = reshape{shape=(3, 3)}(%b)\n"
        " %y: f32[3x3] = sub(%r, %s)\n return output: %y\n}"
    )
    inputs = [torch.rand(1, 3), torch.rand(1, 3, 3)]
    after = clean(before)
    assert [node.op.name for node in after.nodes] == ["abs", "abs", "sub", "reshape"]
    assert torch.equal(run(after, inputs)[0], run(before, inputs)[0])


def test_the_rule_belongs_to_movement() -> None:
    before = network("activation")
    assert len(clean(before, disable=("movement",)).nodes) == len(before.nodes)
