"""Every kind of layer x rank x groups x per-channel x bits x layouts x targets, compiled, run and compared.

    python benchmarks/layer_table.py --jobs 2               # make layer-table: all of them
    python benchmarks/layer_table.py --every 50             # a sample
    python benchmarks/layer_table.py --only conv_transpose

Each row of the product is one compilation through the command line. Its C runs on this machine or on a simulated
core and must give the integers of the graph exactly; the graph is compared with torch by its signal-to-noise ratio.
Prints how many are right, how many are refused and with which code, and each that is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

import torch
from whole_compilation import FLOAT_DB, FLOAT_PASSES, KINDS, Recipe, Verdict, attempt, quantized_passes

from fxpress.ir.testing import ModuleSource, module_source

Shape = tuple[int, ...]

_SPATIAL: Mapping[int, Shape] = {1: (9,), 2: (7, 6), 3: (5, 5, 5)}
_CHANNELS = 4
_PROGRESS = 100


@dataclass(frozen=True)
class Layer:
    """An expression of values x, y and of a layer `self.m`, and the shapes of its inputs."""

    name: str
    call: str
    shapes: Sequence[Shape]
    make: str | None = None
    dtype: torch.dtype = torch.float32

    def module(self) -> ModuleSource:
        """A module that computes only this layer."""
        inputs = {name: (shape, self.dtype) for name, shape in zip("xy", self.shapes, strict=False)}
        init = [] if self.make is None else [f"self.m = {self.make}"]
        return ModuleSource(module_source([f"return {self.call}"], inputs, init=init), inputs)

    @property
    def has_weights(self) -> bool:
        """True if the layer depends on bits of weights."""
        return self.make is not None and any(word in self.make for word in ("Conv", "Linear", "Attention"))

    @property
    def has_layouts(self) -> bool:
        """True if an input has axes that the C may store in another order."""
        return any(len(shape) == 4 for shape in self.shapes)


def layers() -> Iterator[Layer]:
    """All kinds of layers, in each rank that they support."""
    for d, spatial in _SPATIAL.items():
        yield from _convolutions(d, (1, _CHANNELS, *spatial))
        yield from _pools(d, (1, _CHANNELS, *spatial))
        yield from _norms(d, (1, _CHANNELS, *spatial))
    for shape in ((1, 6), (1, 5, 6), (1, 3, 5, 6), (1, 2, 3, 2, 6)):
        rank = f"rank {len(shape)}"
        for bias in (True, False):
            yield Layer(f"linear {rank} bias={bias}", "self.m(x)", [shape], f"nn.Linear(6, 5, bias={bias})")
        yield from (Layer(f"{call} {rank}", call, [shape]) for call in _functions(len(shape)))
        yield from (Layer(f"{call} {rank}", call, [shape, shape]) for call in _JOINS)
        broadcast = (*shape[:-1], 1)
        yield from (
            Layer(f"{call} {rank} broadcast", call, [shape, broadcast])
            for call in ("x + y", "x * y", "x - y")
        )
        for norm in ("LayerNorm", "RMSNorm"):
            yield Layer(f"{norm} {rank}", "self.m(x)", [shape], f"nn.{norm}({shape[-1]})")
    yield Layer("batch_norm rank 2", "self.m(x)", [(1, 6)], "nn.BatchNorm1d(6)")
    for left, right in (((1, 4, 6), (1, 6, 3)), ((1, 2, 4, 6), (1, 2, 6, 3))):
        yield Layer(f"matmul rank {len(left)}", "x @ y", [left, right])
    for kind, extra in product(("GRU", "LSTM", "RNN"), ("", ", bidirectional=True", ", num_layers=2")):
        make = f"nn.{kind}(6, 4, batch_first=True{extra})"
        yield Layer(f"{kind}{extra}", "self.m(x)[0]", [(1, 5, 6)], make)
    for heads in (1, 2):
        make = f"nn.MultiheadAttention(6, {heads}, batch_first=True)"
        yield Layer(f"attention heads={heads}", "self.m(x, x, x, need_weights=False)[0]", [(1, 5, 6)], make)
    yield Layer("embedding", "self.m(x)", [(1, 5)], "nn.Embedding(11, 6)", torch.int64)


def _convolutions(d: int, shape: Shape) -> Iterator[Layer]:
    c = shape[1]
    for groups, extra in product((1, 2, c), _lines(_CONVOLUTION_OPTIONS)):
        if d < 3 or "reflect" not in extra:
            make = f"nn.Conv{d}d({c}, {c if groups == c else 2 * c}, {extra}, groups={groups})"
            yield Layer(f"conv{d}d groups={groups} {extra}", "self.m(x)", [shape], make)
    make = f"nn.Conv{d}d({c}, {3 * c}, 3, groups={c}, bias=False)"
    yield Layer(f"conv{d}d depth multiplier 3", "self.m(x)", [shape], make)
    for groups, out, extra in product((1, 2, c), (c, 2 * c), _lines(_TRANSPOSED_OPTIONS)):
        make = f"nn.ConvTranspose{d}d({c}, {out}, {extra}, groups={groups})"
        yield Layer(f"conv_transpose{d}d groups={groups} out={out} {extra}", "self.m(x)", [shape], make)


def _pools(d: int, shape: Shape) -> Iterator[Layer]:
    linear = ("linear", "bilinear", "trilinear")[d - 1]
    for call in _lines(_POOLS):
        filled = call.format(d=d, linear=linear, axes=tuple(range(2, 2 + d)))
        yield Layer(f"{filled} rank {2 + d}", filled, [shape])


def _norms(d: int, shape: Shape) -> Iterator[Layer]:
    for make in (
        f"nn.BatchNorm{d}d(4)",
        "nn.GroupNorm(2, 4)",
        f"nn.InstanceNorm{d}d(4, affine=True)",
        f"nn.LayerNorm({list(shape[1:])})",
    ):
        yield Layer(f"{make} rank {2 + d}", "self.m(x)", [shape], make)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


_CONVOLUTION_OPTIONS = """
3
1
3, padding=1
3, stride=2, padding=1
1, stride=2
3, dilation=2
3, padding="same"
3, padding=1, padding_mode="reflect"
"""
_TRANSPOSED_OPTIONS = """
3
3, stride=2
3, stride=2, padding=1, output_padding=1
3, dilation=2
3, bias=False
"""
_POOLS = """
F.max_pool{d}d(x, 2)
F.max_pool{d}d(x, 3, stride=2, padding=1)
F.max_pool{d}d(x, 2, stride=1)
F.max_pool{d}d(x, 2, ceil_mode=True)
F.avg_pool{d}d(x, 2)
F.avg_pool{d}d(x, 3, stride=2, padding=1)
F.avg_pool{d}d(x, 2, ceil_mode=True)
F.avg_pool{d}d(x, 3, stride=2, padding=1, count_include_pad=False)
F.adaptive_avg_pool{d}d(x, 1)
F.adaptive_avg_pool{d}d(x, 2)
x.mean({axes})
F.interpolate(x, scale_factor=2)
F.interpolate(x, scale_factor=2, mode="{linear}")
"""
_JOINS = _lines("""
x + y
x * y
x - y
torch.cat([x, y], 1)
torch.cat([x, y], -1)
torch.maximum(x, y)
x / (y.abs() + 1)
""")
_POINTWISE = _lines("""
F.relu(x)
F.relu6(x)
torch.sigmoid(x)
torch.tanh(x)
F.hardswish(x)
F.silu(x)
F.gelu(x)
F.elu(x)
F.leaky_relu(x, 0.2)
x.clamp(-0.5, 0.8)
x.abs()
x * 0.3 + 1
torch.exp(x)
torch.sqrt(x.abs() + 1)
F.softplus(x)
""")
_MOVES = _lines("""
x.flatten(1)
x.transpose(1, -1)
x[:, 1:]
x[..., ::2]
F.pad(x, (1, 2))
x.flip(-1)
x.unsqueeze(1)
x.mean(-1)
x.amax(-1)
x.sum(1, keepdim=True)
torch.softmax(x, -1)
torch.softmax(x, 1)
F.log_softmax(x, -1)
""")


def _functions(rank: int) -> tuple[str, ...]:
    return (*(_POINTWISE if rank in (2, 4) else _POINTWISE[:5]), *_MOVES)


@dataclass(frozen=True)
class Row:
    """A layer with a recipe."""

    layer: Layer
    options: str
    recipe: Recipe


_CORES: Mapping[str, Sequence[str]] = {
    "cortex-m4f": ("host", "cortex-m4"),
    "cortex-m0plus": ("cortex-m0plus",),
    "cortex-m7": ("cortex-m7",),
    "cortex-m33": ("cortex-m33",),
}


def rows() -> Iterator[Row]:
    """The whole product; options without effect on a layer occur once."""
    for layer in layers():
        layouts = ("nhwc", "nchw") if layer.has_layouts else ("nhwc",)
        yield from (_row(layer, "int8", "int8", target) for target in _CORES)
        for target in ("cortex-m4f", "cortex-m0plus"):
            yield from (_row(layer, "float32", "float32", target, layout) for layout in layouts)
            yield from (_row(layer, "int8", "int8", target, layout) for layout in layouts[1:])
            yield _row(layer, "int8", "int16", target)
            if layer.has_weights:
                yield from (
                    _row(layer, w, a, target) for w, a in product(("int4", "int2"), ("int8", "int16"))
                )
                yield from (_row(layer, "int8", a, target, per_channel=False) for a in ("int8", "int16"))


_LEAST_DB = {"float32": FLOAT_DB, "int8": 20.0, "int4": 5.0, "int2": -5.0}


def _row(
    layer: Layer,
    weights: str,
    activations: str,
    target: str,
    layout: str = "nhwc",
    *,
    per_channel: bool = True,
) -> Row:
    c: dict[str, object] = {"name": "net", "self_test": 1}
    if layout == "nchw":
        c["layouts"] = {n: layout for n, shape in zip("xy", layer.shapes, strict=False) if len(shape) == 4}
    bits = {"weights": weights, "activations": activations, "per_channel": per_channel}
    passes = FLOAT_PASSES if weights == "float32" else quantized_passes(**bits)
    recipe = Recipe(passes, {"c": c}, target, _CORES[target], _LEAST_DB[weights])
    return Row(layer, " ".join(map(str, (*bits.values(), target, layout))), recipe)


def judge(row: Row) -> Verdict:
    """Outcome of a row."""
    return attempt(row.layer.module(), row.recipe)


def main() -> int:
    """The command; returns 1 if a combination failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="of the whole product, each so many-th")
    parser.add_argument("--only", default="", help="layers with this in their name")
    options = parser.parse_args()
    chosen = [row for row in rows() if options.only in row.layer.name][:: options.every]
    began, verdicts, reasons = time.monotonic(), Counter[str](), Counter[str]()
    with ProcessPoolExecutor(options.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for row, verdict in zip(chosen, pool.map(judge, chosen, chunksize=4), strict=True):
            verdicts[verdict.kind] += 1
            if verdicts.total() % _PROGRESS == 0:
                print(f"{verdicts.total()} of {len(chosen)}: {dict(verdicts)}", file=sys.stderr, flush=True)
            if verdict.kind == "refused":
                reasons[f"{verdict.fact.split()[0]} {row.layer.name.split()[0].split('(')[0]}"] += 1
            if verdict.fails:
                print(f"{row.layer.name}; {row.options}: {verdict.kind}: {verdict.fact}", flush=True)
    print("refused by name:", ", ".join(f"{reason} {n}" for reason, n in reasons.most_common()) or "none")
    counts = {kind: verdicts[kind] for kind in KINDS}
    print(f"{len(chosen)} combinations: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(verdicts["wrong"] + verdicts["internal"] > 0)


if __name__ == "__main__":
    sys.exit(main())
