"""Every operator's C computes what the interpreter computes: integers exactly, floats within rounding."""

from __future__ import annotations

import pytest

from fxpress.backends.c.kernels import kernels
from fxpress.ir import OPERATORS, parse, verify

Q = "<scale=0.05, zero=-3>"
QY = "<scale=0.07, zero=6>"


def one(shape: str, result: str, op: str, *, constants: str = "", operands: str = "", quantized: bool) -> str:
    """A graph of one node on int8 or on float; `operands` follow the operand %x."""
    x, y = (f"i8[{shape}]{Q}", f"i8[{result}]{QY}") if quantized else (f"f32[{shape}]", f"f32[{result}]")
    return f"graph(%x: {x}) {{\n{constants}\n  %y: {y} = {op}(%x{operands})\n  return y: %y\n}}"


def weights(*, quantized: bool, shape: str, bias: int | None) -> str:
    """Constants %w and %b."""
    if not quantized:
        return f"const %w: f32[{shape}]" + (f"\nconst %b: f32[{bias}]" if bias else "")
    w = f"const %w: i8[{shape}]<scale=0.01, zero=0>"
    return w + (f"\nconst %b: i32[{bias}]<scale=0.0005, zero=0>" if bias else "")


CONVOLUTIONS = {
    "3x3": ("1x3x8x8", "1x5x8x8", "conv{padding=(1, 1, 1, 1)}", "5x3x3x3", 5),
    "3x3 relu": ("1x3x8x8", "1x5x8x8", "conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}", "5x3x3x3", 5),
    "3x3 relu6": ("1x3x8x8", "1x5x8x8", "conv{padding=(1, 1, 1, 1), clamp=(0.0, 1.0)}", "5x3x3x3", 5),
    "stride, uneven padding": (
        "1x3x9x7",
        "1x4x5x3",
        "conv{stride=(2, 3), padding=(1, 2, 0, 1)}",
        "4x3x3x2",
        None,
    ),
    "dilation": ("1x2x9x9", "1x4x5x5", "conv{dilation=(2, 2)}", "4x2x3x3", 4),
    "1x1": ("1x6x5x5", "1x7x5x5", "conv", "7x6x1x1", 7),
    "groups": ("1x6x7x7", "1x4x5x5", "conv{groups=2}", "4x3x3x3", 4),
    "depthwise": ("1x6x7x7", "1x6x7x7", "conv{padding=(1, 1, 1, 1), groups=6}", "6x1x3x3", 6),
    "depthwise stride 2": (
        "1x6x8x8",
        "1x6x4x4",
        "conv{stride=(2, 2), padding=(0, 1, 0, 1), groups=6}",
        "6x1x3x3",
        6,
    ),
    "depthwise multiplier": ("1x3x7x7", "1x6x5x5", "conv{groups=3}", "6x1x3x3", 6),
    "one dimension": ("1x3x20", "1x5x10", "conv{stride=(2,), padding=(1, 1), dilation=(1,)}", "5x3x3", 5),
    "depthwise one dimension": (
        "1x4x20",
        "1x4x18",
        "conv{stride=(1,), padding=(0, 0), dilation=(1,), groups=4}",
        "4x1x3",
        4,
    ),
    "transposed": ("1x3x4x4", "1x5x9x9", "conv_transpose{stride=(2, 2)}", "3x5x3x3", 5),
    "transposed, groups": (
        "1x4x4x5",
        "1x6x8x9",
        "conv_transpose{stride=(2, 2), padding=(1, 1, 1, 1), output_padding=(1, 0), groups=2}",
        "4x3x3x3",
        6,
    ),
    "linear": ("1x20", "1x7", "linear", "7x20", 7),
    "linear rows": ("1x5x20", "1x5x7", "linear{clamp=(0.0, inf)}", "7x20", None),
}


@pytest.mark.parametrize("quantized", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_accumulating_operators(case, quantized, fill, assert_equal_to_interpreter):
    shape, result, op, weight, bias = CONVOLUTIONS[case]
    operands = ", %w, %b" if bias else ", %w"
    constants = weights(quantized=quantized, shape=weight, bias=bias)
    text = one(shape, result, op, constants=constants, operands=operands, quantized=quantized)
    assert_equal_to_interpreter(verify(parse(text, fill=fill)))


COMPUTED = {
    "avg_pool": ("1x3x8x8", "1x3x4x4", "avg_pool"),
    "avg_pool with borders": (
        "1x3x7x7",
        "1x3x4x4",
        "avg_pool{kernel=(3, 3), padding=(1, 1, 1, 1), count_padding=False}",
    ),
    "avg_pool that counts padding": ("1x3x7x7", "1x3x4x4", "avg_pool{kernel=(3, 3), padding=(1, 1, 1, 1)}"),
    "avg_pool in one dimension": ("1x3x9", "1x3x4", "avg_pool{kernel=(2,), stride=(2,), padding=(0, 0)}"),
    "adaptive even": ("1x3x8x8", "1x3x2x2", "adaptive_avg_pool{size=(2, 2)}"),
    "adaptive uneven": ("1x3x7x5", "1x3x3x2", "adaptive_avg_pool{size=(3, 2)}"),
    "mean of space": ("1x5x4x3", "1x5", "mean{axes=(2, 3)}"),
    "mean kept": ("1x5x4x3", "1x1x4x1", "mean{axes=(1, 3), keepdim=True}"),
    "mean of everything": ("1x5x4", "", "mean"),
    "sum": ("1x3x4", "1x4", "sum{axes=(1,)}"),
    "resize bilinear": ("1x3x4x5", "1x3x8x7", "resize_linear{size=(8, 7)}"),
    "resize aligned": ("1x3x4x5", "1x3x8x7", "resize_linear{size=(8, 7), align_corners=True}"),
    "resize one dimension": ("1x3x5", "1x3x10", "resize_linear{factor=(2.0,)}"),
}
ELEMENTWISE = [
    "relu",
    "clamp{low=-0.5, high=1.0}",
    "leaky_relu{slope=0.1}",
    "elu",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "log_sigmoid",
    "tanh",
    "gelu",
    'gelu{approximate="tanh"}',
    "silu",
    "mish",
    "softplus",
    "abs",
    "neg",
    "exp",
    "pow{exponent=2.0}",
    "pow{exponent=3.0}",
    "sin",
    "cos",
    "erf",
    "floor",
    "round",
]
COMPUTED |= {op: ("1x4x5x3", "1x4x5x3", op) for op in ELEMENTWISE}


@pytest.mark.parametrize("quantized", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize("case", COMPUTED)
def test_computing_operators(case, quantized, fill, assert_equal_to_interpreter):
    shape, result, op = COMPUTED[case]
    assert_equal_to_interpreter(verify(parse(one(shape, result, op, quantized=quantized), fill=fill)))


MOVED = {
    "max_pool": ("1x3x8x8", "1x3x4x4", "max_pool"),
    "max_pool with borders": ("1x3x7x7", "1x3x4x4", "max_pool{kernel=(3, 3), padding=(1, 1, 1, 1)}"),
    "max_pool dilated": ("1x3x9x9", "1x3x3x3", "max_pool{kernel=(3, 3), dilation=(2, 2)}"),
    "max_pool in one dimension": (
        "1x3x9",
        "1x3x4",
        "max_pool{kernel=(2,), stride=(2,), padding=(0, 0), dilation=(1,)}",
    ),
    "reduce_max": ("1x5x4x3", "1x5", "reduce_max{axes=(2, 3)}"),
    "reshape": ("1x6x4x5", "1x2x3x20", "reshape{shape=(1, 2, 3, 20)}"),
    "reshape across channels": ("1x6x4x5", "1x4x6x5", "reshape{shape=(1, 4, 6, 5)}"),
    "reshape without common sizes": ("1x2x3", "1x3x2", "reshape{shape=(1, 3, 2)}"),
    "flatten": ("1x6x4x5", "1x120", "reshape{shape=(-1, 120)}"),
    "permute": ("1x6x4x5", "1x5x6x4", "permute{order=(0, 3, 1, 2)}"),
    "expand": ("1x1x4x1", "1x3x4x5", "expand{shape=(1, 3, 4, 5)}"),
    "copy": ("1x3x4x5", "1x3x4x5", "copy"),
    "slice of channels": ("1x6x4x5", "1x3x4x5", "slice{axis=1, start=2, stop=5}"),
    "slice of rows": ("1x6x4x5", "1x6x2x5", "slice{axis=2, start=1, stop=3}"),
    "slice with step": ("1x6x4x5", "1x6x4x3", "slice{axis=3, step=2}"),
    "select": ("1x6x4x5", "1x6x5", "select{axis=2, index=1}"),
    "flip": ("1x6x4x5", "1x6x4x5", "flip{axes=(1, 3)}"),
    "roll": ("1x6x4x5", "1x6x4x5", "roll{axes=(1, 3), shifts=(2, -1)}"),
    "tile": ("1x2x3", "1x4x9", "tile{repeats=(1, 2, 3)}"),
    "pad": ("1x3x4x5", "1x3x7x6", "pad{padding=(1, 2, 0, 1)}"),
    "pad with a value, and cut": ("1x3x4x5", "1x3x5x4", "pad{padding=(2, -1, -1, 0), value=0.4}"),
    "pad reflect": ("1x3x4x5", "1x3x7x6", 'pad{padding=(1, 2, 0, 1), mode="reflect"}'),
    "pad replicate": ("1x3x4x5", "1x3x7x6", 'pad{padding=(1, 2, 0, 1), mode="replicate"}'),
    "pad circular": ("1x3x4x5", "1x3x7x6", 'pad{padding=(1, 2, 0, 1), mode="circular"}'),
    "resize_nearest": ("1x3x4x5", "1x3x8x7", "resize_nearest{size=(8, 7)}"),
}


@pytest.mark.parametrize("quantized", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize("case", MOVED)
def test_data_movement(case, quantized, fill, assert_equal_to_interpreter):
    shape, result, op = MOVED[case]
    text = one(shape, result, op, quantized=quantized).replace(QY, Q)
    assert_equal_to_interpreter(verify(parse(text, fill=fill)))


BINARY = {
    "same shapes": ("1x3x4x5", "1x3x4x5"),
    "a number for each channel": ("1x3x4x5", "1x3x1x1"),
    "a row": ("1x3x4x5", "5"),
    "a number": ("1x3x4x5", ""),
    "both broadcast": ("1x3x1x5", "1x1x4x1"),
}


@pytest.mark.parametrize("operator", ["add", "sub", "mul", "add{clamp=(0.0, inf)}", "mul{clamp=(-1.0, 0.5)}"])
@pytest.mark.parametrize("shapes", BINARY)
@pytest.mark.parametrize("quantized", [True, False], ids=["int8", "float"])
def test_arithmetic_on_two_operands(operator, shapes, quantized, fill, assert_equal_to_interpreter):
    a, b = BINARY[shapes]
    result = "1x3x4x5"
    kinds = (f"i8[{{}}]{Q}", f"i8[{{}}]{QY}") if quantized else ("f32[{}]", "f32[{}]")
    text = f"""graph(%a: {kinds[0].format(a)}, %b: {kinds[1].format(b)}) {{
      %y: {kinds[1].format(result)} = {operator}(%a, %b)
      return y: %y
    }}"""
    assert_equal_to_interpreter(verify(parse(text, fill=fill)))


GRAPHS = {
    "div": """graph(%a: f32[1x3x4], %b: f32[1x3x4]) {
      %y: f32[1x3x4] = div(%a, %b)
      return y: %y }""",
    "maximum": """graph(%a: f32[1x3x4], %b: f32[4]) {
      %y: f32[1x3x4] = maximum(%a, %b)
      return y: %y }""",
    "minimum": """graph(%a: f32[1x3x4], %b: f32[4]) {
      %y: f32[1x3x4] = minimum(%a, %b)
      return y: %y }""",
    "constant operand": """graph(%a: f32[1x3x4x5]) {
      const %c: f32[1x3x4x5]
      %y: f32[1x3x4x5] = sub(%c, %a)
      return y: %y }""",
    "positive": """graph(%a: f32[1x12]) {
      %p: f32[1x12] = exp(%a)
      %l: f32[1x12] = log(%p)
      %m: f32[1x12] = log1p(%p)
      %s: f32[1x12] = sqrt(%p)
      %r: f32[1x12] = rsqrt(%p)
      %q: f32[1x12] = reciprocal(%p)
      return l: %l, m: %m, s: %s, r: %r, q: %q }""",
    "softmax": """graph(%a: f32[1x3x4x5]) {
      %y: f32[1x3x4x5] = softmax{axis=1}(%a)
      %z: f32[1x3x4x5] = log_softmax{axis=3}(%a)
      return y: %y, z: %z }""",
    "softmax int8": f"""graph(%a: i8[1x3x4x5]{Q}) {{
      %y: i8[1x3x4x5]<scale=0.00390625, zero=-128> = softmax{{axis=1}}(%a)
      %z: i8[1x3x4x5]<scale=0.00390625, zero=-128> = softmax{{axis=3}}(%a)
      return y: %y, z: %z }}""",
    "batch_norm": """graph(%a: f32[1x3x4x5]) {
      const %w: f32[3]
      const %b: f32[3]
      const %m: f32[3]
      const %positive: f32[3]
      %y: f32[1x3x4x5] = batch_norm(%a, %w, %b, %m, %positive)
      %z: f32[1x3x4x5] = batch_norm(%y, none, none, %m, %positive)
      return z: %z }""",
    "layer_norm": """graph(%a: f32[1x3x4x5]) {
      const %w: f32[4x5]
      const %b: f32[4x5]
      %y: f32[1x3x4x5] = layer_norm{shape=(4, 5)}(%a, %w, %b)
      %z: f32[1x3x4x5] = layer_norm{shape=(5,)}(%y)
      return z: %z }""",
    "rms_norm": """graph(%a: f32[1x3x5]) {
      const %w: f32[5]
      %y: f32[1x3x5] = rms_norm{shape=(5,)}(%a, %w)
      return y: %y }""",
    "group_norm": """graph(%a: f32[1x6x4x5]) {
      const %w: f32[6]
      const %b: f32[6]
      %y: f32[1x6x4x5] = group_norm{groups=2}(%a, %w, %b)
      %z: f32[1x6x4x5] = instance_norm(%y, %w)
      return z: %z }""",
    "prelu": """graph(%a: f32[1x6x4x5]) {
      const %w: f32[6]
      const %v: f32[1]
      %y: f32[1x6x4x5] = prelu(%a, %w)
      %z: f32[1x6x4x5] = prelu(%y, %v)
      return z: %z }""",
    "prelu int8": f"""graph(%a: i8[1x6x4x5]{Q}) {{
      const %w: i8[6]<scale=0.01, zero=0>
      %y: i8[1x6x4x5]{QY} = prelu(%a, %w)
      return y: %y }}""",
    "matmul": """graph(%a: f32[1x3x4x5], %b: f32[1x3x5x2], %v: f32[5]) {
      %y: f32[1x3x4x2] = matmul(%a, %b)
      %z: f32[1x3x4] = matmul(%a, %v)
      return y: %y, z: %z }""",
    "matmul int8": f"""graph(%a: i8[1x3x4x5]{Q}, %b: i8[1x1x5x2]{QY}) {{
      %y: i8[1x3x4x2]{Q} = matmul(%a, %b)
      return y: %y }}""",
    "attention": """graph(%q: f32[1x2x4x6], %k: f32[1x2x5x6], %v: f32[1x2x5x3], %m: f32[4x5]) {
      %y: f32[1x2x4x3] = attention(%q, %k, %v, %m)
      return y: %y }""",
    "causal attention": """graph(%q: f32[1x4x5x6], %k: f32[1x2x5x6], %v: f32[1x2x5x3]) {
      %y: f32[1x4x5x3] = attention{causal=True, grouped=True, scale=0.5}(%q, %k, %v)
      return y: %y }""",
    "concat": f"""graph(%a: i8[1x2x4x4]{Q}, %b: i8[1x3x4x4]{Q}) {{
      %r: i8[1x2x4x4]{Q} = relu(%a)
      %y: i8[1x5x4x4]{Q} = concat{{axis=1}}(%r, %b)
      %z: i8[1x5x8x4]{Q} = concat{{axis=2}}(%y, %y)
      return z: %z }}""",
    "concat in place": """graph(%a: f32[1x6]) {
      %r: f32[1x6] = relu(%a)
      %s: f32[1x6] = neg(%a)
      %y: f32[1x12] = concat{axis=1}(%r, %s)
      %z: f32[1x12] = exp(%y)
      return z: %z }""",
    "split": """graph(%a: f32[1x6x2x2]) {
      %r, %s: f32[1x2x2x2], %t: f32[1x3x2x2] = split{axis=1, sizes=(1, 2, 3)}(%a)
      return s: %s, t: %t }""".replace("%r,", "%r: f32[1x1x2x2],"),
    "embedding": """graph(%i: i32[1x4]) {
      const %w: f32[10x3]
      %y: f32[1x4x3] = embedding(%i, %w)
      return y: %y }""",
    "requantize": f"""graph(%a: i8[1x6]{Q}) {{
      %y: i8[1x6]{QY} = requantize(%a)
      return y: %y }}""",
    "float in the middle": f"""graph(%a: i8[1x6x2x2]{Q}) {{
      %f: f32[1x6x2x2] = dequantize(%a)
      %s: f32[1x6x2x2] = neg(%f)
      %q: i8[1x6x2x2]{QY} = quantize(%s)
      %y: i8[1x6x2x2]{QY} = relu(%q)
      return y: %y }}""",
    "channel shuffle": f"""graph(%a: i8[1x6x4x4]{Q}) {{
      const %w: i8[6x6x1x1]<scale=0.01, zero=0>
      %c: i8[1x6x4x4]{Q} = conv(%a, %w)
      %r: i8[1x2x3x4x4]{Q} = reshape{{shape=(1, 2, 3, 4, 4)}}(%c)
      %p: i8[1x3x2x4x4]{Q} = permute{{order=(0, 2, 1, 3, 4)}}(%r)
      %s: i8[1x6x4x4]{Q} = reshape{{shape=(1, 6, 4, 4)}}(%p)
      %d: i8[1x6x4x4]{Q} = conv(%s, %w)
      return d: %d }}""",
    "residual that is the input too": f"""graph(%a: i8[1x4x5x5]{Q}) {{
      const %w: i8[4x4x3x3]<scale=0.01, zero=0>
      %r: i8[1x4x5x5]{Q} = relu(%a)
      %c: i8[1x4x5x5]{QY} = conv{{padding=(1, 1, 1, 1)}}(%r, %w, none, %r)
      return c: %c }}""",
    "an input that is an output": f"""graph(%a: i8[1x4x5x5]{Q}) {{
      const %c: f32[3]
      %r: i8[1x4x5x5]{Q} = relu(%a)
      return a: %a, r: %r, again: %r, c: %c }}""",
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs(case, fill, assert_equal_to_interpreter):
    def positive(value):
        return fill(value).abs() if value.name == "positive" else fill(value)

    assert_equal_to_interpreter(verify(parse(GRAPHS[case], fill=positive)))


REFUSED = {"torch_call", "rnn", "gru", "lstm"}


def test_every_operator_has_a_kernel_or_a_named_reason_for_having_none():
    assert OPERATORS.keys() - kernels().keys() == REFUSED
