"""The opaque call: its text, its inferred types, and results equal to torch."""

import logging
import math

import pytest
import torch

from fxpress.ir import Builder, DType, Graph, ShapeError, TensorType, dump, parse, run, verify
from fxpress.ir.ops.call import Operand, TorchCall

aten = torch.ops.aten
X = TensorType((2, 3))


def graph_of(op: TorchCall, *types: TensorType) -> Graph:
    builder = Builder()
    inputs = [builder.input(f"in{i}", type) for i, type in enumerate(types)]
    return builder.build(builder.append(op, inputs, op.infer(*types)))


CALLS = {
    "numbers": (TorchCall.of(aten.softmax.int, [Operand(0), -1], {}), [X]),
    "an element type": (TorchCall.of(aten.to.dtype, [Operand(0), torch.float64], {}), [X]),
    "a device": (TorchCall.of(aten.to.device, [Operand(0), torch.device("cpu"), torch.float16], {}), [X]),
    "a memory format": (
        TorchCall.of(aten.clone.default, [Operand(0)], {"memory_format": torch.channels_last}),
        [TensorType((1, 2, 3, 4))],
    ),
    "a list of tensors": (TorchCall.of(aten.cat.default, [[Operand(0), Operand(1)], 1], {}), [X, X]),
    "a list with an absent tensor": (
        TorchCall.of(aten.index.Tensor, [Operand(0), [None, Operand(1)]], {}),
        [X, TensorType((2,), DType.I64)],
    ),
    "infinity": (TorchCall.of(aten.clamp.default, [Operand(0), -math.inf, 0.5], {}), [X]),
    "not a number": (TorchCall.of(aten.nan_to_num.default, [Operand(0), math.nan], {}), [X]),
    "a complex number": (
        TorchCall.of(aten.mul.Scalar, [Operand(0), 1 - 2j], {}),
        [TensorType((2,), DType.C64)],
    ),
    "text": (TorchCall.of(aten.einsum.default, ["ij,kj->ik", [Operand(0), Operand(0)]], {}), [X]),
    "a switch": (TorchCall.of(aten.cumsum.default, [Operand(0), 0], {"dtype": None}), [X]),
    "several results": (TorchCall.of(aten.topk.default, [Operand(0), 2, 1, True, False], {}), [X]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_with_this_among_its_arguments_comes_back_from_its_text(call: str) -> None:
    op, types = CALLS[call]
    graph = verify(graph_of(op, *types))

    assert parse(dump(graph)) == graph


def test_a_call_computes_what_torch_computes() -> None:
    x, index = torch.randn(2, 3), torch.tensor([2, 0])
    op, types = CALLS["a list with an absent tensor"]

    (y,) = run(graph_of(op, *types), [x, index])

    assert torch.equal(y, x[:, index])


def test_what_a_call_writes_to_is_copied_first() -> None:
    x = torch.ones(2, 3)

    (y,) = TorchCall.of(aten.mul_.Scalar, [Operand(0), 3.0], {}).reference(x)

    assert torch.equal(y, torch.full((2, 3), 3.0))
    assert torch.equal(x, torch.ones(2, 3))


def test_an_integer_result_and_a_float_result_keep_their_types() -> None:
    op, types = CALLS["several results"]

    assert op.infer(*types) == (TensorType((2, 2)), TensorType((2, 2), DType.I64))


def test_a_call_that_does_not_fit_its_operands_says_why() -> None:
    op = TorchCall.of(aten.mm.default, [Operand(0), Operand(1)], {})

    with pytest.raises(ShapeError, match=r"aten\.mm\.default\(x0, x1\)"):
        op.infer(X, X)


def test_a_call_that_does_not_fit_its_operands_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(caplog.handler)  # torch's loggers pass nothing on to the root
    op = TorchCall.of(aten.scatter.src, [Operand(0), 1, Operand(1), Operand(2)], {})

    with pytest.raises(ShapeError, match="no larger than self"):
        op.infer(X, TensorType((4, 2), DType.I64), TensorType((4, 2)))

    logger.removeHandler(caplog.handler)
    assert caplog.records == []


def test_a_call_whose_size_depends_on_data_is_refused() -> None:
    op = TorchCall.of(aten.nonzero.default, [Operand(0)], {})

    with pytest.raises(ShapeError, match="nonzero"):
        op.infer(X)


@pytest.mark.parametrize(
    "text",
    [
        "aten.no_such_thing.default(x0)",
        "aten.relu(x0)",
        "__import__('os')",
        "1 +",
        "aten.relu.default(open('x'))",
    ],
)
def test_a_text_that_is_no_call_of_an_overload_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"call|overload|stand"):
        TorchCall(text)
