"""Streamed networks give what the window network gives, from the first call on that has seen a whole window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import Builder, Graph, TensorType, Value, run, run_integer
from fxpress.ir.ops.activation import Relu, Sigmoid
from fxpress.ir.ops.binary import Add
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.pad import Pad
from fxpress.ir.ops.pool import AvgPool, MaxPool
from fxpress.ir.ops.reduce import Mean, ReduceMax
from fxpress.ir.ops.shape import Permute, Reshape
from fxpress.ir.ops.slicing import Concat, Select, Slice, Split
from fxpress.ir.testing import to_integers
from fxpress.passes import PassResult, stream
from fxpress.passes.stream import streamed_graph
from fxpress.passes.stream.time_track import StreamError

CALLS_BEYOND = 4


@dataclass
class Draft:
    """A network that grows; time is dimension `axis` of the values."""

    draw: Callable[[st.SearchStrategy[int]], int]
    axis: int
    builder: Builder
    generator: torch.Generator
    stride: int = 1

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def frames(self, x: Value) -> int:
        return x.type.shape[self.axis]

    def weight(self, *shape: int) -> Value:
        return self.builder.constant("w", torch.randn(shape, generator=self.generator) / max(1, shape[-1]))

    def along(self, x: Value, time: int, other: int) -> tuple[int, ...]:
        """Numbers for the spatial dimensions: `time` for that of time."""
        return tuple(time if axis == self.axis else other for axis in range(2, x.type.rank))

    def conv(
        self, x: Value, *, kernel: int, stride: int = 1, dilation: int = 1, ends: tuple[int, int] = (0, 0)
    ) -> Value:
        depthwise = self.number(0, 1)
        channels = x.type.shape[1]
        width = [1 + (n >= 3) * 2 for n in x.type.shape[2:]]
        kernels = [kernel if axis == self.axis else n for axis, n in enumerate(width, 2)]
        padding = [
            n for axis, n in enumerate(width, 2) for n in (ends if axis == self.axis else (n // 2, n // 2))
        ]
        out = channels if depthwise else self.number(1, 3)
        weight = self.weight(out, 1 if depthwise else channels, *kernels)
        op = Conv(
            self.along(x, stride, 1),
            tuple(padding),
            self.along(x, dilation, 1),
            channels if depthwise else 1,
        )
        return self.builder.add(op, x, weight, self.weight(out) if self.number(0, 1) else None)

    def plain_conv(self, x: Value) -> Value:
        kernel, dilation = self.number(1, 4), self.number(1, 2)
        fits = dilation * (kernel - 1) < self.frames(x)
        return self.conv(x, kernel=kernel, dilation=dilation) if fits else x

    def strided_conv(self, x: Value) -> Value:
        if self.stride > 2 or self.frames(x) < 4:
            return x
        stride = self.number(2, 3)
        self.stride *= stride
        return self.conv(x, kernel=self.number(1, 3), stride=stride)

    def relu(self, x: Value) -> Value:
        return self.builder.add(Relu() if self.number(0, 1) else Sigmoid(), x)

    def pool(self, x: Value) -> Value:
        kernel = self.number(1, 3)
        if kernel > self.frames(x):
            return x
        stride = self.number(1, 2) if self.stride < 3 else 1
        self.stride *= stride
        sizes = self.along(x, kernel, 1), self.along(x, stride, 1), (0,) * 2 * (x.type.rank - 2)
        return self.builder.add(
            MaxPool(*sizes, self.along(x, 1, 1)) if self.number(0, 1) else AvgPool(*sizes), x
        )

    def cut(self, x: Value, count: int) -> Value:
        """`count` frames of x, from the front, the middle or the end."""
        start = self.number(0, self.frames(x) - count)
        return self.builder.add(Slice(self.axis, start, start + count), x)

    def branch(self, x: Value) -> Value:
        """Two branches of different delay, joined by a sum or side by side."""
        a, b = self.plain_conv(x), self.plain_conv(self.relu(x))
        count = min(self.frames(a), self.frames(b))
        a, b = self.cut(a, count), self.cut(b, count)
        if a.type.shape == b.type.shape and self.number(0, 1):
            return self.builder.add(Add(), a, b)
        return self.builder.add(Concat(1), a, b)

    def halves(self, x: Value) -> Value:
        """The channels in two parts, one of them later than the other."""
        if x.type.shape[1] < 2 or self.frames(x) < 3:
            return x
        types = Split(1, (1, x.type.shape[1] - 1)).infer(x.type)
        a, b = self.builder.append(Split(1, (1, x.type.shape[1] - 1)), [x], types, names=["a", "b"])
        a = self.conv(a, kernel=2)
        return self.builder.add(Concat(1), a, self.cut(b, self.frames(a)))

    def every_second(self, x: Value) -> Value:
        if self.stride > 2 or self.frames(x) < 4:
            return x
        self.stride *= 2
        return self.builder.add(Slice(self.axis, self.number(0, 1), None, 2), x)

    def turned(self, x: Value) -> Value:
        """Time in another place, and back."""
        order = [0, *range(2, x.type.rank), 1]
        y = self.builder.add(Relu(), self.builder.add(Permute(tuple(order)), x))
        return self.builder.add(Permute(tuple(order.index(axis) for axis in range(x.type.rank))), y)

    def head(self, x: Value) -> Value:
        kind = self.number(0, 4)
        axes = tuple(range(2, x.type.rank))
        if kind == 0:
            return x
        if kind == 1:
            x = self.builder.add(Mean(axes), x)
        elif kind == 2:
            x = self.builder.add(ReduceMax(axes), x)
        elif kind == 3:
            x = self.builder.add(Select(self.axis, self.frames(x) - 1), x)
        x = self.builder.add(Reshape((1, x.type.numel)), x)
        return self.builder.add(Linear(), x, self.weight(2, x.type.numel))


STEPS = ("plain_conv", "strided_conv", "relu", "pool", "branch", "halves", "every_second", "turned")


@dataclass(frozen=True)
class Network:
    graph: Graph
    axis: int
    hop: int


@st.composite
def networks(draw: st.DrawFn, *, steps: Sequence[str] = STEPS) -> Network:
    """Window networks that can be streamed, with a hop that suits their strides."""
    rank = draw(st.integers(3, 4))
    axis = draw(st.integers(2, rank - 1))
    draft = Draft(draw, axis, Builder(), torch.Generator().manual_seed(draw(st.integers(0, 1000))))
    frames = draw(st.integers(9, 20))
    shape = [1, draw(st.integers(1, 3)), *[3] * (rank - 2)]
    shape[axis] = frames
    x = draft.builder.input("x", TensorType(tuple(shape)))
    y = x
    for name in draw(st.lists(st.sampled_from(steps), min_size=2, max_size=6)):
        y = getattr(draft, name)(y)
    outputs = [draft.head(y)]
    hop = draft.stride * draw(st.integers(1, max(1, min(3, frames // draft.stride))))
    assume(hop <= frames)
    graph = draft.builder.build(outputs)
    assume(graph.nodes)
    return Network(graph, axis, hop)


def recording(network: Network, calls: int) -> Tensor:
    (x,) = network.graph.inputs
    shape = list(x.type.shape)
    shape[network.axis] = network.hop * calls
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def check_equal(network: Network, *, is_integer: bool) -> PassResult:
    """Run the streamed network from zeros, and compare every call after the warm-up with its window."""
    result = stream(network.graph, axis=network.axis, hop=network.hop)
    interpret = run_integer if is_integer else run
    frames = network.graph.inputs[0].type.shape[network.axis]
    first = -(-frames // network.hop)
    calls = first + CALLS_BEYOND
    x = recording(network, calls)
    states = [torch.zeros(v.type.shape) for v in result.graph.inputs[1:]]
    (kind,) = {v.type.dtype for v in result.graph.inputs}
    assert kind.is_floating
    reported = dict(
        zip(result.report.table("stream").columns, result.report.table("stream").rows[0], strict=True)
    )
    first_equal = reported["equal_from_call"]
    assert isinstance(first_equal, int) and first_equal <= first
    padded = torch.cat([torch.randn(network.graph.inputs[0].type.shape), x], network.axis)
    for call in range(1, calls + 1):
        new = x.narrow(network.axis, (call - 1) * network.hop, network.hop)
        y, *states = interpret(result.graph, [new, *states])
        if call < first_equal:
            continue
        (expected,) = interpret(network.graph, [padded.narrow(network.axis, call * network.hop, frames)])
        if expected.shape != y.shape:
            (axis,) = (i for i, (n, m) in enumerate(zip(expected.shape, y.shape, strict=True)) if n != m)
            expected = expected.narrow(axis, expected.shape[axis] - y.shape[axis], y.shape[axis])
        if is_integer:
            assert torch.equal(y, expected), call
        else:
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    return result


def integers(network: Network) -> Network:
    (x,) = network.graph.inputs
    sample = torch.randn(x.type.shape, generator=torch.Generator().manual_seed(1))
    return Network(to_integers(network.graph, [sample]), network.axis, network.hop)


@given(networks())
def test_integer_networks_are_equal_byte_for_byte(network: Network) -> None:
    check_equal(integers(network), is_integer=True)


@given(networks())
def test_float_networks_are_equal(network: Network) -> None:
    check_equal(network, is_integer=False)


class PaddedDraft(Draft):
    """With layers that pad: in front alone, or at both ends with the end cut off again."""

    def causal(self, x: Value) -> Value:
        kernel = self.number(2, 3)
        before = kernel - 1
        if self.number(0, 1):
            return self.conv(x, kernel=kernel, ends=(before, 0))
        padding = tuple(
            n for axis in range(2, x.type.rank) for n in ((before, 0) if axis == self.axis else (0, 0))
        )
        return self.conv(self.builder.add(Pad(padding), x), kernel=kernel)

    def chomped(self, x: Value) -> Value:
        kernel = self.number(2, 3)
        y = self.conv(x, kernel=kernel, ends=(kernel - 1, kernel - 1))
        return self.builder.add(Slice(self.axis, 0, self.frames(x)), y)

    def trimmed(self, x: Value) -> Value:
        y = self.conv(x, kernel=3, ends=(1, 1))
        return self.builder.add(Slice(self.axis, 1, self.frames(x) - 1), y)


@st.composite
def padded_networks(draw: st.DrawFn) -> Network:
    """Networks with padding in time; where they read a window's first elements, they cannot be streamed."""
    draft = PaddedDraft(draw, 2, Builder(), torch.Generator().manual_seed(draw(st.integers(0, 1000))))
    y = draft.builder.input("x", TensorType((1, 2, 10)))
    for name in draw(
        st.lists(
            st.sampled_from(("causal", "chomped", "trimmed", "relu", "plain_conv")), min_size=1, max_size=4
        )
    ):
        y = getattr(draft, name)(y)
    y = draft.builder.add(Slice(2, draft.frames(y) - draft.number(1, 3)), y)
    return Network(draft.builder.build([draft.head(y)]), 2, draft.number(1, 3))


@given(padded_networks())
def test_padding_in_front_is_streamed_where_the_window_covers_all_that_is_read(network: Network) -> None:
    try:
        check_equal(integers(network), is_integer=True)
    except StreamError as err:
        assert "pads in front" in err.message
        assume(False)


def test_the_check_reports_a_streamed_network_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    original = streamed_graph._Emission._elements

    def late(self: streamed_graph._Emission, value: Value, start: int, stop: int, **options: int) -> Value:
        found = original(self, value, start, stop, **options)
        return self._builder.add(Relu(), found) if value.name == "x" else found

    monkeypatch.setattr(streamed_graph._Emission, "_elements", late)
    builder = Builder()
    x = builder.input("x", TensorType((1, 2, 9)))
    y = builder.add(Conv((1,), (0, 0), (1,)), x, builder.constant("w", torch.ones(1, 2, 3)))
    with pytest.raises(Exception, match="differs from the window network in output"):
        stream(builder.build([y]), axis=2)
