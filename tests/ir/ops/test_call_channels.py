"""Torch overloads without an operator of their own: those with a rule lose channels, and equal their masked selves."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Builder, Graph, TensorType, Value
from fxpress.ir.coupling import couple
from fxpress.ir.ops.call import TorchCall
from fxpress.ir.testing import check_cut, opened

INDEX = torch.tensor([2, 0, 1])
MASK = torch.tensor([True, False, True, True, False, True])


def called(call: str, *operands: tuple[int, ...] | Tensor) -> tuple[Graph, list[Tensor]]:
    """A graph of one call; shapes are float operands, tensors are constants."""
    builder, values, samples = Builder(), [], []
    generator = torch.Generator().manual_seed(0)
    for index, operand in enumerate(operands):
        if isinstance(operand, Tensor):
            values.append(builder.constant(f"c{index}", operand))
        else:
            values.append(builder.input(f"x{index}", TensorType(operand)))
            samples.append(torch.randn(operand, generator=generator))
    op = TorchCall(call)
    results: tuple[Value, ...] = builder.append(op, values, op.infer(*(v.type for v in values)))
    return opened(builder.build([v for v in results if v.type.dtype.is_floating]), samples)


@pytest.mark.parametrize(
    ("call", "operands"),
    [
        ("aten.where.self(x0, x1, x2)", (MASK, (4, 6), (1, 6))),
        ("aten.masked_fill.Scalar(x0, x1, 2.0)", ((4, 6), MASK)),
        ("aten.expm1.default(x0)", ((4, 6),)),
        ("aten.to.dtype(x0, torch.float64)", ((4, 6),)),
        ("aten.new_zeros.default(x0, [2, 6])", ((4, 6),)),
        ("aten.index.Tensor(x0, [x1])", ((4, 6), INDEX)),
        ("aten.index.Tensor(x0, [None, x1])", ((4, 6), INDEX)),
        ("aten.index_select.default(x0, 0, x1)", ((4, 6), INDEX)),
        ("aten.slice_scatter.default(x0, x1, 0, 1, 3)", ((4, 6), (2, 6))),
        ("aten.select_scatter.default(x0, x1, 0, 2)", ((4, 6), (6,))),
        ("aten.cumsum.default(x0, 0)", ((4, 6),)),
        ("aten.sort.default(x0, 1)", ((4, 6),)),
        ("aten.linalg_vector_norm.default(x0, 2, [1], True)", ((4, 6),)),
        ("aten.var.correction(x0, [0])", ((4, 6),)),
        ("aten.logsumexp.default(x0, [1])", ((4, 6),)),
        ("aten.repeat_interleave.self_int(x0, 3, 1)", ((4, 6),)),
        ("aten.upsample_bicubic2d.vec(x0, [5, 6], False, None)", ((1, 4, 3, 3),)),
        ("aten.unfold.default(x0, 1, 3, 2)", ((4, 7),)),
        ("aten.einsum.default('bic,bjc->bij', [x0, x1])", ((2, 3, 6), (2, 4, 6))),
        (
            "aten.batch_norm.default(x0, x1, None, None, None, True, 0.0, 1e-05, False)",
            ((1, 4, 6), (4,)),
        ),
        ("aten.baddbmm.default(x0, x1, x2)", ((2, 3, 4), (2, 3, 5), (2, 5, 4))),
    ],
)
def test_a_known_overload_loses_channels_and_equals_its_masked_self(
    call: str, operands: tuple[tuple[int, ...] | Tensor, ...]
) -> None:
    graph, samples = called(call, *operands)
    assert not couple(graph).refusals
    assert sum(check_cut(graph, samples, seed=seed) for seed in range(4)) > 0


@pytest.mark.parametrize(
    ("call", "operands"),
    [
        ("aten.index.Tensor(x0, [x1, None, x1])", ((4, 6, 4), INDEX)),
        ("aten.einsum.default('...c,c->...', [x0, x1])", ((2, 6), (6,))),
        ("aten.rot90.default(x0, 1, [0, 1])", ((4, 6),)),
    ],
)
def test_what_no_rule_covers_is_refused(call: str, operands: tuple[tuple[int, ...] | Tensor, ...]) -> None:
    graph, _ = called(call, *operands)
    assert couple(graph).refusals
