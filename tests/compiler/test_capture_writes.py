"""Writes in place become values, through views and other tensors with the same memory; or they are refused."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler.frontend.capture import capture, roundtrip

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """A module whose forward is a function of one tensor."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def assert_captured_exactly(model: nn.Module) -> None:
    call = roundtrip(model, ((X,), {}))
    for x in (X, X.flip(0), X * 1e3):
        expected, found = (torch.utils._pytree.tree_leaves(f(x)) for f in (model, call))
        assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def base_seen_through_a_view(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    view = y.view(-1)
    y.add_(1)
    return y, view


def view_writes_to_its_base_and_its_sisters(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    left, right = y[:, :2], y[:, 1:]
    left.mul_(2)
    right.sub_(1)
    return y, left, right


def write_through_a_chain_of_views(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    view = y.transpose(0, 2)[1:, ::2].unsqueeze(0)
    view.relu_()
    return y, view


def slice_and_fill(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :2] = 0.0
    y[0, 1, ::2] = 5.0
    y[..., -1] += 1
    return y


def copy_between_parts(x: Tensor) -> Tensor:
    y = x * 1
    y[0] = y[1]
    y[:, 0].copy_(y[:, 2] * 2)
    return y


def masked_writes(x: Tensor) -> Tensor:
    y = x * 1
    y[y > 0] = -1.0
    y.masked_fill_(y < -1, 7.0)
    return y


def indexed_writes(x: Tensor) -> Tensor:
    y = x * 1
    y[:, torch.tensor([2, 0])] = x[:, :2]
    y.index_put_((torch.tensor([0, 0]),), x[0], accumulate=True)
    return y


def diagonal_write(x: Tensor) -> Tensor:
    y = x * 1
    y.diagonal(0, 1, 2).fill_(9.0)
    return y


def split_parts(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    parts = y.split(1, dim=1)
    parts[0].zero_()
    y.exp_()
    return (*parts, *y.unbind(0))


def dropout_gives_its_input(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    same = nn.functional.dropout(y, 0.5, training=False)
    same.add_(1)
    return y, same


def a_copy_is_apart(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    copy = y.clone()
    y.add_(1)
    return y, copy


def reshape_copies_only_when_it_must(x: Tensor) -> tuple[Tensor, ...]:
    y, z = x * 1, x * 2
    shared, apart = y.reshape(-1), z.transpose(0, 1).reshape(-1)
    shared.add_(1)
    apart.add_(1)
    return y, z


def shape_changed_in_place(x: Tensor) -> Tensor:
    return (x * 1).unsqueeze_(0).transpose_(0, 1).squeeze_(1).add_(1)


def element_type_is_kept(x: Tensor) -> Tensor:
    return (x * 1).add_(x.double())


def into_another_tensor(x: Tensor) -> tuple[Tensor, ...]:
    out = torch.empty_like(x)
    torch.add(x, 1, out=out)
    values, indices = torch.empty(2, 4), torch.empty(2, 4, dtype=torch.int64)
    torch.max(x, 1, out=(values, indices))
    return out, values, indices


def buffer_that_grows(x: Tensor) -> Tensor:
    rows = x.new_zeros(2, 2, 3, 4)
    for row in range(2):
        rows[row, :, row:].add_(x[:, row:])
    return rows


def parts_broadcast_together(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    left, right = torch.broadcast_tensors(y[0, 0, :1], y[1, 2, 3:])
    right.add_(1)
    left.mul_(3)
    return y, left, right


def elements_by_strides(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    picked = y.as_strided((2, 2), (1, 5), 3)
    picked.neg_()
    return y, picked


def writes_in_a_block_without_gradient(x: Tensor) -> tuple[Tensor, ...]:
    y = x * 1
    view = y[0]
    with torch.enable_grad():
        view.add_(1)
        with torch.no_grad():
            part = y[:, 1]
            part.mul_(2)
        part.sub_(3)
    return y, view, part


def write_through_a_rotation_of_dimensions(x: Tensor) -> tuple[Tensor, ...]:
    y, z = x * 1, x * 2
    view = y.permute(1, 2, 0)
    view.add_(1)
    view[0].mul_(3)
    z.permute(2, 0, 1)[1:].neg_()
    return y, view, z


PROGRAMS = [
    write_through_a_rotation_of_dimensions,
    base_seen_through_a_view,
    view_writes_to_its_base_and_its_sisters,
    write_through_a_chain_of_views,
    slice_and_fill,
    copy_between_parts,
    masked_writes,
    indexed_writes,
    diagonal_write,
    split_parts,
    dropout_gives_its_input,
    a_copy_is_apart,
    reshape_copies_only_when_it_must,
    shape_changed_in_place,
    element_type_is_kept,
    into_another_tensor,
    buffer_that_grows,
    parts_broadcast_together,
    elements_by_strides,
    writes_in_a_block_without_gradient,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program_that_writes_is_captured_exactly(program: Callable[[Tensor], object]) -> None:
    assert_captured_exactly(Written(program))


def test_a_write_to_a_whole_tensor_is_the_operator_itself() -> None:
    graph = capture(Written(lambda x: (x * x).relu_().sigmoid_()), (X,)).graph

    assert [node.op.name for node in graph.nodes] == ["mul", "relu", "sigmoid"]


def test_a_write_that_nobody_reads_is_dropped() -> None:
    graph = capture(Written(lambda x: ((x * 1).zero_(), x.abs())[1]), (X,)).graph

    assert [node.op.name for node in graph.nodes] == ["abs"]


class Overwritten(nn.Module):
    """A buffer that each call fills before it reads it, in one of several ways."""

    def __init__(self, fill: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.ones(4))
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.buffer, Tensor)
        self.fill(self.buffer, x)
        self.buffer.add_(1)
        return x * self.buffer


@pytest.mark.parametrize(
    "fill",
    [
        lambda buffer, x: buffer.copy_(x[0, 0]),
        lambda buffer, x: buffer.copy_(x[0, 0, :1]),
        lambda buffer, x: buffer.fill_(2.5),
        lambda buffer, x: buffer.zero_(),
    ],
)
def test_a_buffer_that_is_overwritten_before_it_is_read_is_no_state(
    fill: Callable[[Tensor, Tensor], object],
) -> None:
    assert_captured_exactly(Overwritten(fill))


def test_a_range_filled_is_a_concatenation() -> None:
    def fill_the_middle(x: Tensor) -> Tensor:
        y = x * x
        y[:, 1:2] = 0.5
        return y

    graph = capture(Written(fill_the_middle), (X,)).graph

    assert [node.op.name for node in graph.nodes] == ["mul", "expand", "slice", "slice", "concat"]


class Random(nn.Module):
    """Views and writes drawn at random, over tensors that share memory in every way torch offers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.steps = [
            (draw.random(), draw.randrange(len(VIEWS) + len(WRITES)), draw.random()) for _ in range(8)
        ]

    def forward(self, x: Tensor) -> list[Tensor]:
        tensors = [x * 1.0]
        for which, action, where in self.steps:
            tensor = tensors[int(which * len(tensors))]
            dim = int(where * tensor.ndim)
            if action >= len(VIEWS):
                WRITES[action - len(VIEWS)](tensor, where)
            elif tensor.ndim:
                tensors += VIEWS[action](tensor, dim)
        return [tensor.clone() for tensor in tensors]


VIEWS: list[Callable[[Tensor, int], list[Tensor]]] = [
    lambda t, d: [t.reshape(-1)],
    lambda t, d: [t.transpose(d, -1)],
    lambda t, d: [t.narrow(d, 0, (t.shape[d] + 1) // 2)],
    lambda t, d: [t.select(d, t.shape[d] - 1)],
    lambda t, d: [t.unsqueeze(d)],
    lambda t, d: list(t.chunk(2, d)),
    lambda t, d: [t[(slice(None),) * d + (slice(None, None, 2),)]],
    lambda t, d: [t.contiguous()],
    lambda t, d: [t.flatten(0, d)],
    lambda t, d: [t.diagonal(0, 0, 1) if t.ndim > 1 else t.detach()],
    lambda t, d: [t.squeeze(d)],
    lambda t, d: [t.clone()],
]
WRITES: list[Callable[[Tensor, float], object]] = [
    lambda t, a: t.mul_(a * 3),
    lambda t, a: t.add_(t.amax()),  # exact in any order, as a sum is not
    lambda t, a: t.copy_(t.flip(0).clone() if t.ndim else t * 2),
    lambda t, a: t.masked_fill_(t > a, 0.5),
    lambda t, a: t.fill_(a),
    lambda t, a: t.clamp_(-a, a),
]


@pytest.mark.parametrize("seed", range(40))
def test_views_and_writes_drawn_at_random_are_captured_exactly(seed: int) -> None:
    assert_captured_exactly(Random(seed))
