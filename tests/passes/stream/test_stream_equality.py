"""Streamed networks give the results of the window network, from the first call after a whole window on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from window_networks import Draft, Network, integers, networks

from fxpress.ir import Builder, TensorType, Value, run, run_integer
from fxpress.ir.ops.activation import Relu
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.pad import Pad
from fxpress.ir.ops.slicing import Slice
from fxpress.passes import PassResult, stream
from fxpress.passes.stream import streamed_graph
from fxpress.passes.stream.time_track import StreamError

CALLS_BEYOND = 4


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
        assert "pads at the start" in err.message
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
