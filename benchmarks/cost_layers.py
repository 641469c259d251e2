"""Layers whose instructions are counted for the costs of kernels: every kind in two sizes, as graphs in text form.

Layers with weights have weights of 8, 4 and 2 bits, with activations of 8 and of 16 bits, and in float; layers
without weights have activations of 8 and 16 bits, and floats. Recurrent layers have weights of 8 bits on integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fxpress.ir import Graph, Params


@dataclass(frozen=True, slots=True)
class Form:
    """Storage of operands `x`, weights `w` and results `y` of a layer: element type, then quantization."""

    x: tuple[str, str]
    w: tuple[str, str]
    y: tuple[str, str]


_I8, _I8_RESULT = ("i8", "<scale=0.05, zero=-3>"), ("i8", "<scale=0.5, zero=6>")
FORMS = {
    "int8": Form(_I8, ("i8", "<scale=0.01, zero=0>"), _I8_RESULT),
    "int4": Form(_I8, ("i8", "<bits=4, scale=0.125, zero=0>"), _I8_RESULT),
    "int2": Form(_I8, ("i8", "<bits=2, scale=0.25, zero=0>"), _I8_RESULT),
    "int16": Form(
        ("i16", "<scale=0.0005, zero=0>"), ("i8", "<scale=0.01, zero=0>"), ("i16", "<scale=0.005, zero=0>")
    ),
    "float": Form(("f32", ""), ("f32", ""), ("f32", "")),
}
_CODED = ("conv 3x3", "wide conv 1x1", "depthwise 3x3", "long linear", "linear")
_SIXTEEN = ("int16", "<scale=0.0005>", "<scale=0.005>")
_SPREADS = (0.7, 2.0, 6.0, 24.0)  # standard deviations of coded weights, in steps
_NONZERO = (0.02, 0.05, 0.1, 0.2)  # shares of the weights of sparse layers
_BLOCK = 4
_NONZERO_BLOCKS = (0.05, 0.4, 0.1, 0.2)  # shares of the blocks of layers that skip blocks
_INTEGERS = ("int8", "int4", "int2", "int16")
_UNWEIGHTED = ("int8", "int16", "float")
_SIZES = ((8, 10), (16, 8))  # channels, and rows and columns
_THREES = ((8, 12), (16, 6))  # pixels in threes, as in the DSP kernels
_LARGE = ((16, 24), (16, 32))  # where Winograd's transform is faster


def layers() -> Iterator[tuple[str, str]]:
    """Names and texts of all layers."""
    for c, n in _SIZES:
        for form, types in FORMS.items():
            for name, x, w, y, op in _weighted(c, n):
                yield f"{name} {c} {form}", _with_weights(types, x, w, y, op)
        for form in _UNWEIGHTED:
            for name, x, y, op in _unweighted(c, n, form):
                yield f"{name} {c} {form}", _plain(FORMS[form], x, y, op)
        yield from ((f"{name} {c}", text) for name, text in _float(c, n))
        yield from _recurrent(c, n)
    for c, n in _THREES:
        for form in _INTEGERS:
            for name, x, w, y, op in _weighted(c, n):
                if "conv" in name and "depthwise" not in name:
                    yield f"{name} {c}x{n} {form}", _with_weights(FORMS[form], x, w, y, op)
    for c, n in _LARGE:
        for form in _INTEGERS:
            for name, w, y, op in _large_depthwise(c, n):
                yield f"large {name} {n} {form}", _with_weights(FORMS[form], f"1x{c}x{n}x{n}", w, y, op)
        for form in ("int8", "int4"):
            op = "conv{padding=(1, 1, 1, 1)}"
            text = _with_weights(FORMS[form], f"1x{c}x{n}x{n}", f"{c}x{c}x3x3", f"1x{c}x{n}x{n}", op)
            yield f"large conv 3x3 {n} {form}", text


def coded_layers() -> Iterator[tuple[str, str]]:
    """Names and texts of layers whose weights are stored as Huffman codes."""
    for c, n in _SIZES:
        for form in ("int8", "int4"):
            for name, x, w, y, op in _weighted(c, n):
                if name in _CODED:
                    for repeat in range(len(_SPREADS)):
                        yield f"{name} {c} {form} {repeat}", _with_weights(FORMS[form], x, w, y, op)


def sparse_layers() -> Iterator[tuple[str, str]]:
    """Names and texts of layers with many zeros, whose nonzero weights are stored as Huffman codes."""
    for inputs, outputs in ((256, 64), (784, 100)):
        for form in ("int8", "int4", "int16"):
            for repeat in range(len(_NONZERO)):
                text = _with_weights(
                    FORMS[form], f"1x{inputs}", f"{outputs}x{inputs}", f"1x{outputs}", "linear"
                )
                yield f"sparse linear {inputs} {form} {repeat}", text


def with_zeros(graph: Graph) -> Graph:
    """The graph with random integer weights of at most 16 values, most of them zero."""
    generator, params = torch.Generator().manual_seed(0), dict(graph.params)
    for number, value in enumerate(v for v in graph.constants if v.type.rank > 1 and v.type.quantization):
        q = value.type.quantization
        assert q is not None
        drawn = torch.randint(-7, 8, value.type.shape, generator=generator) * (q.qmax // 7)
        kept = torch.rand(value.type.shape, generator=generator) < _NONZERO[number % len(_NONZERO)]
        params[value.name] = (drawn * kept).to(value.type.dtype.torch)
    return replace(graph, params=Params(params))


def block_sparse_layers() -> Iterator[tuple[str, str]]:
    """Names and texts of layers whose weights are zero in blocks."""
    linear, conv = "linear", "conv{padding=(1, 1, 1, 1)}"
    shapes = (
        *(("linear", f"1x{n}", f"{m}x{n}", f"1x{m}", linear) for n, m in ((256, 64), (512, 48), (255, 33))),
        *(("rows", f"1x{r}x{n}", f"{m}x{n}", f"1x{r}x{m}", linear) for r, n, m in ((8, 64, 48), (5, 96, 32))),
        *(("conv 1x1", f"1x{c}x{n}x{n}", f"{d}x{c}x1x1", f"1x{d}x{n}x{n}", "conv")
          for c, d, n in ((64, 64, 4), (32, 48, 6), (30, 32, 5))),
        *(("conv 3x3", f"1x{c}x{n}x{n}", f"{d}x{c}x3x3", f"1x{d}x{n}x{n}", conv)
          for c, d, n in ((16, 24, 6), (32, 16, 5), (8, 16, 7))),
    )  # fmt: skip
    for number, (name, x, w, y, op) in enumerate(shapes):
        for repeat in range(2):
            yield f"block_sparse {name} {number} {repeat}", _with_weights(FORMS["int8"], x, w, y, op)


def with_zero_blocks(graph: Graph) -> Graph:
    """The graph with random integer weights, most blocks of which along the input channels are zero."""
    generator, params = torch.Generator().manual_seed(0), dict(graph.params)
    for number, value in enumerate(v for v in graph.constants if v.type.rank > 1 and v.type.quantization):
        outputs, inputs, *taps = value.type.shape
        shares = torch.rand(outputs, -(-inputs // _BLOCK), *taps, generator=generator)
        kept = shares < _NONZERO_BLOCKS[number % len(_NONZERO_BLOCKS)]
        drawn = torch.randint(-128, 128, value.type.shape, generator=generator)
        params[value.name] = (drawn * kept.repeat_interleave(_BLOCK, dim=1)[:, :inputs]).to(torch.int8)
    return replace(graph, params=Params(params))


def with_few_values(graph: Graph) -> Graph:
    """The graph with normally distributed integer weights, of a few values or of many."""
    generator, params = torch.Generator().manual_seed(0), dict(graph.params)
    for number, value in enumerate(v for v in graph.constants if v.type.rank > 1 and v.type.quantization):
        q = value.type.quantization
        assert q is not None
        drawn = torch.randn(value.type.shape, generator=generator) * _SPREADS[number % len(_SPREADS)]
        params[value.name] = drawn.round().clamp(q.qmin, q.qmax).to(value.type.dtype.torch)
    return replace(graph, params=Params(params))


def _with_weights(form: Form, x: str, w: str, y: str, op: str) -> str:
    bias = (
        ""
        if form.x[0] != "f32"
        else f"\n  const %b: f32[{y.split('x')[1] if 'conv' in op else w.split('x', maxsplit=1)[0]}]"
    )
    third = ", %b" if bias else ""
    return (
        f"graph(%x: {form.x[0]}[{x}]{form.x[1]}) {{\n  const %w: {form.w[0]}[{w}]{form.w[1]}{bias}\n"
        f"  %y: {form.y[0]}[{y}]{form.y[1]} = {op}(%x, %w{third})\n  return y: %y\n}}"
    )


def _plain(form: Form, x: str, y: str, op: str) -> str:
    second = f", %b: {form.x[0]}[{x}]{form.x[1]}" if "%b" in op else ""
    name = op.partition("{")[0]
    _, result = form.x if name in ("max_pool", "permute") else form.y
    if name == "softmax" and result:
        result = "<scale=0.00390625, zero=-128>" if form.y[0] == "i8" else "<scale=3.0517578125e-05>"
    return (
        f"graph(%a: {form.x[0]}[{x}]{form.x[1]}{second}) {{\n"
        f"  %y: {form.y[0]}[{y}]{result} = {op}\n  return y: %y\n}}"
    )


def _weighted(c: int, n: int) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, shapes of operand, weights and result, and operator."""
    image, half, d = f"1x{c}x{n}x{n}", n // 2, 2 * c
    yield "conv 3x3", image, f"{d}x{c}x3x3", f"1x{d}x{n}x{n}", "conv{padding=(1, 1, 1, 1)}"
    stride = "stride=(2, 2), padding=(1, 0, 1, 0)"
    yield "conv 3x3 stride 2", image, f"{d}x{c}x3x3", f"1x{d}x{half}x{half}", f"conv{{{stride}}}"
    first = "conv{stride=(2, 2), padding=(1, 0, 1, 0)}"
    yield "first conv 3x3", f"1x3x{2 * n}x{2 * n}", f"{c}x3x3x3", f"1x{c}x{n}x{n}", first
    yield "conv 5x5", f"1x1x{2 * n}x{n}", f"{c}x1x5x5", f"1x{c}x{2 * n - 4}x{n - 4}", "conv"
    yield "conv 1x1", image, f"{d}x{c}x1x1", f"1x{d}x{n}x{n}", "conv"
    yield (
        "wide conv 1x1",
        f"1x{4 * c}x{half}x{half}",
        f"{5 * c}x{4 * c}x1x1",
        f"1x{5 * c}x{half}x{half}",
        "conv",
    )
    yield (
        "conv of 2 groups",
        image,
        f"{d}x{c // 2}x3x3",
        f"1x{d}x{n}x{n}",
        "conv{padding=(1, 1, 1, 1), groups=2}",
    )
    yield "dilated conv", image, f"{c}x{c}x3x3", f"1x{c}x{n - 4}x{n - 4}", "conv{dilation=(2, 2)}"
    yield (
        "conv 9",
        f"1x{c}x{5 * n}",
        f"{d}x{c}x9",
        f"1x{d}x{5 * n - 8}",
        "conv{stride=(1,), padding=(0, 0), dilation=(1,)}",
    )
    for k in (3, 5, 7):
        p = k // 2
        yield (
            f"depthwise {k}x{k}",
            image,
            f"{c}x1x{k}x{k}",
            image,
            f"conv{{padding=({p}, {p}, {p}, {p}), groups={c}}}",
        )
    yield "depthwise stride 2", image, f"{c}x1x3x3", f"1x{c}x{half}x{half}", f"conv{{{stride}, groups={c}}}"
    yield (
        "dilated depthwise",
        image,
        f"{c}x1x3x3",
        f"1x{c}x{n - 4}x{n - 4}",
        f"conv{{dilation=(2, 2), groups={c}}}",
    )
    yield (
        "depthwise 9",
        f"1x{c}x{5 * n}",
        f"{c}x1x9",
        f"1x{c}x{5 * n - 8}",
        f"conv{{stride=(1,), padding=(0, 0), dilation=(1,), groups={c}}}",
    )
    yield (
        "transposed conv",
        image,
        f"{c}x{c // 2}x2x2",
        f"1x{c // 2}x{2 * n}x{2 * n}",
        "conv_transpose{stride=(2, 2)}",
    )
    yield "linear", f"1x{c * n}", f"{4 * c}x{c * n}", f"1x{4 * c}", "linear"
    yield "long linear", f"1x{40 * c}", f"10x{40 * c}", "1x10", "linear"
    yield "linear rows", f"1x{n}x{4 * c}", f"{d}x{4 * c}", f"1x{n}x{d}", "linear"


def _large_depthwise(c: int, n: int) -> Iterator[tuple[str, str, str, str]]:
    """Name, shapes of weights and result, and operator of layers whose rows are too long to be unrolled."""
    half, stride = n // 2, "stride=(2, 2), padding=(1, 0, 1, 0)"
    yield (
        "depthwise 3x3",
        f"{c}x1x3x3",
        f"1x{c}x{n}x{n}",
        f"conv{{padding=(1, 1, 1, 1), groups={c}}}",
    )
    yield "depthwise stride 2", f"{c}x1x3x3", f"1x{c}x{half}x{half}", f"conv{{{stride}, groups={c}}}"


def _unweighted(c: int, n: int, form: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, shapes of operands and result, and node."""
    image, half = f"1x{c}x{n}x{n}", n // 2
    halved = f"1x{c}x{half}x{half}"
    yield "avg_pool", image, halved, "avg_pool{kernel=(2, 2), stride=(2, 2)}(%a)"
    yield "avg_pool 3x3", image, image, "avg_pool{kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1)}(%a)"
    yield "mean of space", image, f"1x{c}", "mean{axes=(2, 3)}(%a)"
    yield "max_pool", image, halved, "max_pool{kernel=(2, 2), stride=(2, 2)}(%a)"
    yield "max_pool 3x3", image, image, "max_pool{kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1)}(%a)"
    yield "add", image, image, "add(%a, %b)"
    yield "mul", image, image, "mul(%a, %b)"
    yield "sum", image, f"1x{c}x{n}", "sum{axes=(3,)}(%a)"
    yield "permute", f"1x{c}x{n}x{n}", f"1x{n}x{n}x{c}", "permute{order=(0, 2, 3, 1)}(%a)"
    yield "relu", image, image, "relu(%a)"
    for op in ("hardswish", "sigmoid", "tanh", "gelu", "silu"):
        yield f"interpolated {op}" if form == "int16" else op, image, image, f"{op}(%a)"
    yield "resize", image, f"1x{c}x{2 * n}x{2 * n}", f"resize_linear{{size=({2 * n}, {2 * n})}}(%a)"
    yield "softmax", f"1x{n}x{2 * c}", f"1x{n}x{2 * c}", "softmax{axis=2}(%a)"


def _recurrent(c: int, n: int) -> Iterator[tuple[str, str]]:
    """Recurrent layers on integers, with few and with many units."""
    unit = "<scale=3.0517578125e-05, zero=0>"
    for form in ("int8", "int16"):
        (dtype, x), (_, w) = FORMS[form].x, FORMS["int8"].w
        for kind, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
            for inputs, hidden, steps in ((2 * c, c, n), (c, 5 * c, n // 2), (9 * c, 9 * c, 1)):
                states = f"%y: i16[{steps}x1x{hidden}]{unit}, %s: i16[1x1x{hidden}]{unit}"
                states += f", %m: i16[1x1x{hidden}]<scale=0.001953125, zero=0>" if kind == "lstm" else ""
                absent = "none, none" if kind == "lstm" else "none"
                yield (
                    f"recurrent {kind} {inputs} {hidden} {form}",
                    (
                        f"graph(%x: {dtype}[{steps}x1x{inputs}]{x}) {{\n"
                        f"  const %wi: i8[{gates * hidden}x{inputs}]{w}\n"
                        f"  const %wh: i8[{gates * hidden}x{hidden}]{w}\n"
                        f"  {states} = {kind}{{bias=False}}(%x, {absent}, %wi, %wh)\n  return y: %y\n}}"
                    ),
                )


def _float(c: int, n: int) -> Iterator[tuple[str, str]]:
    """Operators on floats only, and between floats and integers."""
    for kind, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        rows = gates * c
        states = f"%y: f32[{n}x1x{c}], %s: f32[1x1x{c}]" + (f", %m: f32[1x1x{c}]" if kind == "lstm" else "")
        absent = "none, none" if kind == "lstm" else "none"
        yield (
            kind,
            (
                f"graph(%x: f32[{n}x1x{2 * c}]) {{\n  const %wi: f32[{rows}x{2 * c}]\n  const %wh: f32[{rows}x{c}]\n"
                f"  const %bi: f32[{rows}]\n  const %bh: f32[{rows}]\n"
                f"  {states} = {kind}(%x, {absent}, %wi, %wh, %bi, %bh)\n"
                "  return y: %y\n}"
            ),
        )
    tokens = f"1x{n}x{4 * c}"
    for name, heads in (("attention", f"1x2x{2 * n}x{c}"), ("wide attention", f"1x2x{n}x{3 * c}")):
        for causal in ("", "{causal=True}"):
            yield (
                f"{name} {causal}",
                (
                    f"graph(%q: f32[{heads}], %k: f32[{heads}], %v: f32[{heads}]) {{\n"
                    f"  %y: f32[{heads}] = attention{causal}(%q, %k, %v)\n  return y: %y\n}}"
                ),
            )
    for length in (n, 3 * n):
        for kind, masked in (("", ""), ("{causal=True}", ""), ("", ", %m")):
            q, m = f"i8[1x2x{length}x{2 * c}]", f"bool[1x1x1x{length}]"
            yield (
                f"attention {length} {kind}{masked} int8",
                (
                    f"graph(%q: {q}<scale=0.05>, %k: {q}<scale=0.05, zero=-3>, %v: {q}<scale=0.03>, %m: {m}) {{\n"
                    f"  %y: {q}<scale=0.03, zero=6> = attention{kind}(%q, %k, %v{masked})\n  return y: %y\n}}"
                ),
            )
    for depth in (c, 2 * c, 5 * c):
        yield (
            f"matmul {depth}",
            (
                f"graph(%a: f32[1x{n}x{depth}], %b: f32[1x{depth}x{c}]) {{\n"
                f"  %y: f32[1x{n}x{c}] = matmul(%a, %b)\n  return y: %y\n}}"
            ),
        )
        for form, x, y in (("int8", "<scale=0.05, zero=-3>", "<scale=0.5, zero=6>"), _SIXTEEN):
            e = "i8" if form == "int8" else "i16"
            yield (
                f"matmul {depth} {form}",
                (
                    f"graph(%a: {e}[1x{n}x{depth}]{x}, %b: {e}[1x{depth}x{c}]{x}) {{\n"
                    f"  %y: {e}[1x{n}x{c}]{y} = matmul(%a, %b)\n  return y: %y\n}}"
                ),
            )
    yield (
        "layer_norm",
        (
            f"graph(%a: f32[{tokens}]) {{\n  const %w: f32[{4 * c}]\n  const %b: f32[{4 * c}]\n"
            f"  %y: f32[{tokens}] = layer_norm{{shape=({4 * c},)}}(%a, %w, %b)\n  return y: %y\n}}"
        ),
    )
    for form, x, y in (("int8", "<scale=0.05, zero=3>", "<scale=0.02, zero=-5>"), _SIXTEEN):
        for width in (2 * c, 4 * c, 16 * c):
            group = f"{'i8' if form == 'int8' else 'i16'}[1x{n}x{width}]"
            norms = (("layer_norm", ", %b"), ("rms_norm", ""))
            for name, bias in norms:
                yield (
                    f"{name} {width} {form}",
                    (
                        f"graph(%a: {group}{x}) {{\n  const %w: f32[{width}]\n  const %b: f32[{width}]\n"
                        f"  %y: {group}{y} = {name}{{shape=({width},)}}(%a, %w{bias})\n  return y: %y\n}}"
                    ),
                )
        channels = f"{'i8' if form == 'int8' else 'i16'}[1x{c}x{n}x{n}]"
        yield (
            f"group_norm {form}",
            (
                f"graph(%a: {channels}{x}) {{\n  const %w: f32[{c}]\n  const %b: f32[{c}]\n"
                f"  %y: {channels}{y} = group_norm{{groups=2}}(%a, %w, %b)\n  return y: %y\n}}"
            ),
        )
    yield (
        "quantize",
        (
            f"graph(%x: f32[{tokens}]) {{\n  %q: i8[{tokens}]<scale=0.05, zero=-3> = quantize(%x)\n"
            f"  %y: f32[{tokens}] = dequantize(%q)\n  return y: %y\n}}"
        ),
    )
