"""Layers one by one: streamed layers, layers refused with name and reason, and the cost of a state."""

from __future__ import annotations

import re

import pytest
import torch

from fxpress.ir import Graph, Value, parse, run
from fxpress.ir.testing import drawn_constant
from fxpress.passes import Context, stream
from fxpress.passes.stream.time_track import StreamError

CONV = "conv{stride=(1,), padding=(0, 0), dilation=(1,)}"
TRANSPOSED = "conv_transpose{stride=(1,), padding=(0, 0), output_padding=(0,), dilation=(1,)}"


def network(body: str, *, shape: str = "1x4x12") -> Graph:
    """A graph with the input x, time on dimension 2, and the output y; constants are written `w: shape`."""
    constants = "\n".join(
        f"  const %{name}: f32[{size}]" for name, size in re.findall(r"<(\w+): ([\dx]+)>", body)
    )
    nodes = re.sub(r"<(\w+): [\dx]+>", r"%\1", body).strip()
    nodes = nodes.replace("TRANSPOSED", TRANSPOSED).replace(
        "DOUBLED", TRANSPOSED.replace("stride=(1,)", "stride=(2,)")
    )
    lines = "\n".join(f"  {line.strip()}" for line in nodes.splitlines())
    text = f"graph(%x: f32[{shape}]) {{\n{constants}\n{lines}\n  return output: %y\n}}"
    return parse(text, fill=constant)


def constant(value: Value) -> torch.Tensor:
    """Random elements; the same for all frames in constants called `bias`."""
    drawn = drawn_constant(value)
    return torch.ones_like(drawn) if value.name == "bias" else drawn


def check_streams(graph: Graph, *, hop: int = 1, axis: int = 2) -> int:
    """Run from zeros and compare with each window; the number of rings."""
    result = stream(graph, axis=axis, hop=hop)
    frames = graph.inputs[0].type.shape[axis]
    calls = -(-frames // hop) + 3
    shape = list(graph.inputs[0].type.shape)
    shape[axis] = calls * hop
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    states = [torch.zeros(v.type.shape) for v in result.graph.inputs[1:]]
    for call in range(1, calls + 1):
        y, *states = run(result.graph, [x.narrow(axis, (call - 1) * hop, hop), *states])
        if call * hop >= frames:
            (expected,) = run(graph, [x.narrow(axis, call * hop - frames, frames)])
            if expected.shape != y.shape:
                (at,) = (i for i, (n, m) in enumerate(zip(expected.shape, y.shape, strict=True)) if n != m)
                expected = expected.narrow(at, expected.shape[at] - y.shape[at], y.shape[at])
            torch.testing.assert_close(y, expected)
    return len(result.state)


STREAMED = {
    "frames as channels": """
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %y: f32[1x3x4] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%p, <w: 3x12x1>)""",
    "a transposed convolution of each frame": """
        %y: f32[1x3x12] = TRANSPOSED(%x, <w: 4x3x1>)""",
    "a convolution for each element of the batch": """
        %q: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %p: f32[12x1x4] = reshape{shape=(12, 1, 4)}(%q)
        %c: f32[12x2x2] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%p, <w: 2x1x3>)
        %y: f32[12x2x2] = relu(%c)""",
    "a linear layer for each frame": """
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %y: f32[1x12x3] = linear(%p, <w: 3x4>)""",
    "a linear layer over all frames": f"""
        %c: f32[1x3x10] = {CONV}(%x, <w: 3x4x3>)
        %y: f32[1x3x5] = linear(%c, <v: 5x10>)""",
    "flattened, then linear": f"""
        %c: f32[1x3x10] = {CONV}(%x, <w: 3x4x3>)
        %f: f32[1x30] = reshape{{shape=(-1, 30)}}(%c)
        %y: f32[1x5] = linear(%f, <v: 5x30>)""",
    "adaptive pooling to one": """
        %y: f32[1x4x1] = adaptive_avg_pool{size=(1,)}(%x)""",
    "adaptive pooling of pairs": """
        %r: f32[1x4x12] = relu(%x)
        %y: f32[1x4x6] = adaptive_avg_pool{size=(6,)}(%r)""",
    "a mean over channels": """
        %m: f32[1x12] = mean{axes=(1,)}(%x)
        %y: f32[1x12] = relu(%m)""",
    "an index of the largest frame": """
        %a: i64[1x4] = argmax{axis=2}(%x)
        %y: f32[1x4] = cast(%a)""",
    "a product with a matrix": """
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %y: f32[1x12x3] = matmul(%p, <w: 4x3>)""",
    "a sum with what is the same for all frames": """
        %y: f32[1x4x12] = add(%x, <bias: 1x4x12>)""",
    "channels of a constant beside it": f"""
        %j: f32[1x5x12] = concat{{axis=1}}(%x, <bias: 1x1x12>)
        %y: f32[1x2x10] = {CONV}(%j, <w: 2x5x3>)""",
    "a softmax and a norm of each frame": """
        %s: f32[1x4x12] = softmax{axis=1}(%x)
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%s)
        %y: f32[1x12x4] = layer_norm{shape=(4,)}(%p)""",
    "zeros in front, written as a join": f"""
        %j: f32[1x4x14] = concat{{axis=2}}(<zeros: 1x4x2>, %x)
        %c: f32[1x4x12] = {CONV}(%j, <w: 4x4x3>)
        %y: f32[1x4x4] = slice{{axis=2, start=8}}(%c)""",
    "a frame of the middle": """
        %s: f32[1x4] = select{axis=2, index=5}(%x)
        %y: f32[1x2] = linear(%s, <w: 2x4>)""",
    "batch norm": """
        %b: f32[1x4x12] = batch_norm(%x, <g: 4>, <h: 4>, <m: 4>, <bias: 4>)
        %y: f32[1x4x12] = relu(%b)""",
    "a residual of the convolution": f"""
        %c: f32[1x4x10] = {CONV}(%x, <w: 4x4x3>)
        %s: f32[1x4x10] = slice{{axis=2, start=1, stop=11}}(%x)
        %y: f32[1x4x10] = conv{{stride=(1,), padding=(0, 0), dilation=(1,)}}(%c, <v: 4x4x1>, none, %s)""",
    "padding at both ends of one frame alone": f"""
        %c: f32[1x4x1] = {CONV}(%x, <w: 4x4x12>)
        %y: f32[1x4x1] = conv{{stride=(1,), padding=(1, 1), dilation=(1,)}}(%c, <v: 4x4x3>)""",
    "a stride to a single frame": f"""
        %c: f32[1x4x2] = {CONV}(%x, <w: 4x4x11>)
        %y: f32[1x4x1] = conv{{stride=(2,), padding=(1, 0), dilation=(1,)}}(%c, <v: 4x4x3>)""",
    "a later layer that reads far back": f"""
        %a: f32[1x4x10] = {CONV}(%x, <w: 4x4x3>)
        %b: f32[1x4x8] = {CONV}(%a, <v: 4x4x3>)
        %s: f32[1x4x8] = slice{{axis=2, stop=8}}(%x)
        %y: f32[1x4x8] = add(%b, %s)""",
}


@pytest.mark.parametrize("layer", STREAMED)
@pytest.mark.parametrize("hop", [1, 2, 4])
def test_a_layer_is_streamed(layer: str, hop: int) -> None:
    if layer == "adaptive pooling of pairs":
        hop *= 2
    check_streams(network(STREAMED[layer]), hop=hop)


REFUSED = {
    "attention": (
        """
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %y: f32[1x12x4] = attention(%p, %p, %p)   # "block.attention", "" """,
        r"%y \(block.attention\) is attention over time: it needs the whole window",
    ),
    "attention in parts": (
        """
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %y: f32[1x12x12] = matmul(%p, %x)""",
        "%y multiplies frames by frames, as attention over time does",
    ),
    "softmax": (
        "%y: f32[1x4x12] = softmax{axis=2}(%x)",
        "%y is a softmax over time: it needs the whole window",
    ),
    "reversed": ("%y: f32[1x4x12] = flip{axes=(2,)}(%x)", "%y reorders the frames, such as in reversed"),
    "same padding": (
        """
        %c: f32[1x4x12] = conv{stride=(1,), padding=(1, 1), dilation=(1,)}(%x, <w: 4x4x3>)   # "stem", ""
        %y: f32[1x4] = mean{axes=(2,)}(%c)""",
        r"%y reads the first 1 elements of %c in time, which %c \(stem\) pads at the start",
    ),
    "padding behind": (
        """
        %c: f32[1x4x12] = conv{stride=(1,), padding=(0, 2), dilation=(1,)}(%x, <w: 4x4x3>)   # "stem", ""
        %r: f32[1x4x12] = relu(%c)
        %y: f32[1x4] = select{axis=2, index=11}(%r)""",
        r"%y reads the last 2 elements of %r in time, which depend on the padding of %c \(stem\) after the last frame",
    ),
    "a hop of less than the strides": (
        """
        %a: f32[1x4x6] = max_pool{kernel=(2,), stride=(2,), padding=(0, 0), dilation=(1,)}(%x)
        %y: f32[1x4x3] = max_pool{kernel=(2,), stride=(2,), padding=(0, 0), dilation=(1,)}(%a)   # "pool2", "" """,
        r"%a computes one element from 2 frames, the product of strides, but the hop 1 is not a multiple; set `hop: 4`",
    ),
    "squeeze and excitation": (
        """
        %m: f32[1x4x1] = mean{axes=(2,), keepdim=True}(%x)
        %y: f32[1x4x12] = mul(%x, %m)   # "se", "" """,
        r"%y \(se\) joins frames with %m, which can differ at each call",
    ),
    "numbered frames": (
        "%y: f32[1x4x12] = add(%x, <position: 1x4x12>)",
        "%y reads the constant %position, which differs between frames",
    ),
    "frames joined": ("%y: f32[1x4x24] = concat{axis=2}(%x, %x)", "%y joins two values along time"),
    "statistics over time": (
        "%y: f32[1x4x12] = instance_norm(%x)",
        "%y computes statistics over time: it needs the whole window",
    ),
    "frames that do not correspond": (
        """
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %r: f32[1x4x12] = reshape{shape=(1, 4, 12)}(%p)
        %y: f32[1x4x12] = add(%r, %x)""",
        "%y joins frames with %r",
    ),
    "frames between frames": (
        """
        %y: f32[1x3x24] = DOUBLED(%x, <w: 4x3x2>)""",
        "%y is a transposed convolution along time, which inserts frames between frames",
    ),
    "parameters of frames": (
        """
        %p: f32[1x12x4] = permute{order=(0, 2, 1)}(%x)
        %y: f32[1x12x4] = prelu(%p, <slope: 12>)""",
        "%y has separate parameters for each frame",
    ),
}


@pytest.mark.parametrize("layer", REFUSED)
def test_a_layer_that_needs_the_window_is_refused_by_name(layer: str) -> None:
    body, message = REFUSED[layer]
    with pytest.raises(StreamError, match=message):
        stream(network(body), axis=2)


def test_all_refused_layers_are_named_at_once() -> None:
    body = """
        %a: f32[1x4x12] = softmax{axis=2}(%x)
        %b: f32[1x4x12] = flip{axes=(2,)}(%x)
        %y: f32[1x4x12] = add(%a, %b)"""
    with pytest.raises(StreamError, match=r"%a is a softmax over time.*; %b reorders the frames"):
        stream(network(body), axis=2)


GRU = """
graph(%x: f32[1x12x3]) {
  const %a: f32[6x3]
  const %b: f32[6x2]
  %y: f32[1x12xN], %h: f32[Dx1x2] = gru{FLAGS}(%x, none, WEIGHTS)
  return output: %y
}"""


@pytest.mark.parametrize(
    ("directions", "message"), [(1, "starts again in each window"), (2, "in reversed direction")]
)
def test_recurrent_layers_are_refused_with_what_to_do(directions: int, message: str) -> None:
    flags = "bias=False, batch_first=True" + ", bidirectional=True" * (directions == 2)
    weights = ", ".join(["%a, %b"] * directions)
    text = GRU.replace("N", str(2 * directions)).replace("D", str(directions)).replace("FLAGS", flags)
    with pytest.raises(StreamError, match=message):
        stream(parse(text.replace("WEIGHTS", weights), fill=drawn_constant), axis=1)


TWO_INPUTS = """
graph(%x: f32[1x4x12], %s: f32[1x4x1]) {
  const %w: f32[4x4x3]
  const %v: f32[2x4]
  %c: f32[1x4x10] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%x, %w)
  %m: f32[1x4x1] = mean{axes=(2,), keepdim=True}(%c)
  %a: f32[1x4x1] = add(%m, %s)
  %y: f32[1x4x1] = relu(%a)
  return output: %y
}"""


def test_an_input_without_time_is_passed_at_each_call() -> None:
    result = stream(parse(TWO_INPUTS, fill=drawn_constant), axis={"x": 2})
    assert [(v.name, v.type.shape) for v in result.graph.inputs] == [
        ("x", (1, 4, 1)),
        ("s", (1, 4, 1)),
        ("x_past", (1, 4, 2)),
        ("c_past", (1, 4, 9)),
    ]
    assert result.state == {"x_past": "x_past_out", "c_past": "c_past_out"}


WRONG = {
    "one number for two inputs": (TWO_INPUTS, 2, 1, r"write it by name, as \{x: 2\}"),
    "no such input": (TWO_INPUTS, {"z": 2}, 1, "`axis` names z, which is not an input; there are x, s"),
    "no such dimension": (
        TWO_INPUTS,
        {"x": 3},
        1,
        r"the input x has no dimension 3: its shape is \[1, 4, 12\]",
    ),
    "hop": (TWO_INPUTS, {"x": 2}, 13, "the hop 13 is longer than the window of 12 frames"),
    "lengths": (TWO_INPUTS, {"x": 2, "s": 2}, 1, "windows of different lengths"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_named(case: str) -> None:
    text, axis, hop, message = WRONG[case]
    with pytest.raises(StreamError, match=message):
        stream(parse(text, fill=drawn_constant), axis=axis, hop=hop)


def test_a_model_with_states_is_refused() -> None:
    with pytest.raises(StreamError, match="the model has states already: s"):
        stream(parse(TWO_INPUTS, fill=drawn_constant), axis={"x": 2}, context=Context(state={"s": "output"}))


def test_a_ring_has_one_frame_less_than_the_kernel_and_is_shared() -> None:
    body = f"""
        %a: f32[1x4x10] = {CONV}(%x, <w: 4x4x3>)
        %b: f32[1x4x8] = {CONV}(%x, <v: 4x4x5>)
        %c: f32[1x4x8] = slice{{axis=2, start=2}}(%a)
        %y: f32[1x4x8] = add(%b, %c)"""
    result = stream(network(body), axis=2)
    assert [v.type.shape for v in result.graph.inputs[1:]] == [(1, 4, 4)]
    row = dict(zip(result.report.table("stream").columns, result.report.table("stream").rows[0], strict=True))
    assert row == {
        "window_frames": 12,
        "hop_frames": 1,
        "receptive_field_frames": 5,
        "delay_frames": 0,
        "equal_from_call": 5,
        "state_bytes": 64,
        "macs_per_call": 4 * 4 * 3 + 4 * 4 * 5,
        "macs_of_window": 4 * 4 * 3 * 10 + 4 * 4 * 5 * 8,
    }


def test_frames_that_come_late_are_a_delay() -> None:
    body = """
        %s: f32[1x4x9] = slice{axis=2, stop=9}(%x)
        %y: f32[1x4x9] = relu(%s)"""
    result = stream(network(body), axis=2)
    row = dict(zip(result.report.table("stream").columns, result.report.table("stream").rows[0], strict=True))
    assert (row["receptive_field_frames"], row["delay_frames"]) == (4, 3)


@pytest.mark.parametrize("dtype", ["u8", "i64"])
def test_an_input_of_whole_numbers_becomes_floats(dtype: str) -> None:
    text = f"""graph(%x: {dtype}[1x4x12]) {{
        const %w: f32[8x4x3]
        const %b: f32[8]
        %f: f32[1x4x12] = cast{{dtype='f32'}}(%x)
        %y: f32[1x8x10] = {CONV}(%f, %w, %b)
        return output: %y
    }}"""
    result = stream(parse(text, fill=drawn_constant), axis=2)
    assert len(result.state) == 1
