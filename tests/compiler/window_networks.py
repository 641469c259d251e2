"""Random networks over a window of frames that can be streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import assume
from hypothesis import strategies as st

from fxpress.ir import Builder, Graph, TensorType, Value
from fxpress.ir.ops.activation import Relu, Sigmoid
from fxpress.ir.ops.binary import Add
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.pool import AvgPool, MaxPool
from fxpress.ir.ops.reduce import Mean, ReduceMax
from fxpress.ir.ops.shape import Permute, Reshape
from fxpress.ir.ops.slicing import Concat, Select, Slice, Split
from fxpress.ir.testing import to_integers


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


def integers(network: Network) -> Network:
    (x,) = network.graph.inputs
    sample = torch.randn(x.type.shape, generator=torch.Generator().manual_seed(1))
    return Network(to_integers(network.graph, [sample]), network.axis, network.hop)
