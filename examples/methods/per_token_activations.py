"""Scales of activations for each token (ZeroQuant, Yao et al., NeurIPS 2022) against one scale from calibration.

Weights have 8 bits in both. The metric is the signal-to-noise ratio of the scores against the float model, in dB.
"""

import torch
from story_texts import SPEC, drawn
from torch import Tensor

from fxpress.compiler import compile_model, snr_db
from fxpress.ir import Builder, Encoding, Graph, Node, Value, rewrite, run
from fxpress.ir.ops import Dequantize, FakeQuantizePerToken, Quantize


def measure(variant: str, seed: int, on: str) -> float:
    """Signal-to-noise ratio over texts of the float model, in dB."""
    compiled = compile_model(SPEC, overrides=["passes[1].weights=int8"])
    graph = compiled.graph
    if variant == "baseline":
        graph = with_static_scales(graph, drawn("calibration", seed))
    texts = drawn(on, seed)
    return snr_db(outputs(compiled.session.captured, texts), outputs(graph, texts))


def outputs(graph: Graph, texts: Tensor) -> Tensor:
    """Scores of all texts."""
    with torch.no_grad():
        return torch.cat([run(graph, [text[None]])[0] for text in texts])


def with_static_scales(graph: Graph, texts: Tensor) -> Graph:
    """The graph with the inputs of layers rounded to one scale and zero point each, the range of these texts."""
    ends: dict[str, list[float]] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value.name in rounded:
            low, high = ends.get(value.name, [0.0, 0.0])
            ends[value.name] = [min(low, float(tensor.min())), max(high, float(tensor.max()))]

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        if not isinstance(node.op, FakeQuantizePerToken):
            return None
        low, high = ends[node.operand("x").name]
        scale = (high - low) / 255
        encoding = Encoding((scale,), (round(-128 - low / scale),), bits=8)
        integers = builder.add(Quantize(), *operands, quantization=encoding, source=node.source)
        return builder.add(Dequantize(), integers, source=node.source)

    rounded = {node.operand("x").name for node in graph.nodes if isinstance(node.op, FakeQuantizePerToken)}
    with torch.no_grad():
        for text in texts:
            run(graph, [text[None]], observe=observe)
    return rewrite(graph, visit)
