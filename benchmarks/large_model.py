"""Resident memory and seconds to plan a language model that is never loaded, and to quantize one weight of it.

    python benchmarks/large_model.py [LAYERS]      # 32 layers: 6.7 billion parameters in bfloat16, 13.5 GB

The graph has the shapes of Llama 2 7B (Touvron et al., 2023). Its constants are lazy and refuse to be read: building,
verifying, dumping, parsing, rewriting and laying out the torch module use shapes and element types alone.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch

from fxpress.backends.torch_module import emit
from fxpress.compiler import text_table
from fxpress.ir import (
    Builder,
    DType,
    Encoding,
    Graph,
    LazyTensor,
    TensorType,
    Value,
    dump,
    parse,
    rewrite,
    verify,
)
from fxpress.ir.ops import Add, Attention, Embedding, Linear, Mul, Permute, Reshape, RmsNorm, Silu
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions

LAYERS, WIDTH, HIDDEN, HEADS, TOKENS, LENGTH = 32, 4096, 11008, 32, 32000, 16
GROUP = 32
Result = TypeVar("Result")


def llama(layers: int) -> Graph:
    """A decoder with the shapes of Llama 2 7B and lazy constants; rotary positions, which have none, are left out."""
    builder = Builder()
    x = builder.add(
        Embedding(),
        builder.input("tokens", TensorType((1, LENGTH), DType.I64)),
        _weight(builder, "embed.weight", TOKENS, WIDTH),
    )
    for index in range(layers):
        x = _block(builder, f"layers.{index}", x)
    x = builder.add(RmsNorm((WIDTH,), 1e-5), x, _weight(builder, "norm.weight", WIDTH))
    return builder.build([builder.add(Linear(), x, _weight(builder, "head.weight", TOKENS, WIDTH))])


def _block(builder: Builder, name: str, x: Value) -> Value:
    normed = builder.add(RmsNorm((WIDTH,), 1e-5), x, _weight(builder, f"{name}.attention_norm.weight", WIDTH))
    q, k, v = (_heads(builder, _linear(builder, f"{name}.{part}", normed, WIDTH, WIDTH)) for part in "qkv")
    mixed = builder.add(Attention(causal=True), q, k, v)
    joined = builder.add(Reshape((1, LENGTH, WIDTH)), builder.add(Permute((0, 2, 1, 3)), mixed))
    x = builder.add(Add(), x, _linear(builder, f"{name}.o", joined, WIDTH, WIDTH))
    normed = builder.add(RmsNorm((WIDTH,), 1e-5), x, _weight(builder, f"{name}.mlp_norm.weight", WIDTH))
    gate = builder.add(Silu(), _linear(builder, f"{name}.gate", normed, HIDDEN, WIDTH))
    up = _linear(builder, f"{name}.up", normed, HIDDEN, WIDTH)
    return builder.add(
        Add(), x, _linear(builder, f"{name}.down", builder.add(Mul(), gate, up), WIDTH, HIDDEN)
    )


def _linear(builder: Builder, name: str, x: Value, outputs: int, inputs: int) -> Value:
    return builder.add(Linear(), x, _weight(builder, f"{name}.weight", outputs, inputs))


def _heads(builder: Builder, x: Value) -> Value:
    split = builder.add(Reshape((1, LENGTH, HEADS, WIDTH // HEADS)), x)
    return builder.add(Permute((0, 2, 1, 3)), split)


def _weight(builder: Builder, name: str, *shape: int) -> Value:
    def unread() -> NoReturn:
        raise AssertionError(f"{name} is read")

    return builder.constant(name, LazyTensor(shape, torch.bfloat16, unread))


def main() -> None:
    torch.set_num_threads(1)
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else LAYERS
    rows = [("import", "", _resident())]
    graph = _measured(rows, "build", lambda: llama(layers))
    _measured(rows, "verify", lambda: verify(graph))
    text = _measured(rows, "dump", lambda: dump(graph))
    _measured(rows, "parse, compare", lambda: _hold(parse(text, params=graph.params) == graph))
    _measured(rows, "rewrite", lambda: rewrite(graph, lambda builder, node, operands: None))
    _measured(rows, "torch module", lambda: emit(graph))
    print(f"{graph.params.numel / 1e9:.2f} billion parameters, {len(graph.nodes)} nodes")
    print(text_table(("step", "seconds", "peak MB"), rows))
    for observer in ("minmax", "mse"):
        seconds, encoding = _one_layer(observer)
        print(
            f"weight_only of {WIDTH} x {HIDDEN}, int4 in groups of {GROUP}, {observer}: {seconds:.1f} s of one core, "
            f"{len(encoding.scale):,} scales in {encoding.scale.bytes / 1e6:.1f} MB"
        )


def _one_layer(observer: str) -> tuple[float, Encoding]:
    """Seconds to quantize one layer, and the encoding of its weight."""
    builder = Builder()
    weight = torch.randn(WIDTH, HIDDEN, generator=torch.Generator().manual_seed(0))
    x = builder.input("x", TensorType((1, HIDDEN)))
    graph = builder.build([builder.add(Linear(), x, builder.constant("weight", weight))])
    options = WeightOnlyOptions.model_validate({"weights": "int4", "group_size": GROUP, "observer": observer})
    start = time.process_time()
    after = weight_only(graph, options).graph
    encoding = after.constants[0].type.quantization
    assert encoding is not None
    return time.process_time() - start, encoding


def _measured(rows: list[tuple[str, str, str]], step: str, work: Callable[[], Result]) -> Result:
    start = time.process_time()
    result = work()
    rows.append((step, f"{time.process_time() - start:.2f}", _resident()))
    return result


def _hold(is_true: bool) -> None:
    assert is_true


def _resident() -> str:
    """Peak resident memory so far, in MB."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f}"


if __name__ == "__main__":
    main()
