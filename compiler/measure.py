"""Measurement on data: signal-to-noise ratio of the integer graph against the float graph, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..ir import Graph, Value, run, run_integer
from .data import Samples, batches, snr_db, unrolled

_LAYER_SAMPLES = 16


def is_quantized(graph: Graph) -> bool:
    """True if any node computes on quantized values."""
    return any(v.type.is_quantized for node in graph.nodes for v in (*node.operands, *node.outputs))


def layer_snr(reference: Graph, integer: Graph, samples: Samples) -> Mapping[str, float]:
    """Signal-to-noise ratio in dB of each value that both graphs compute under the same name, on a few samples."""
    few = unrolled(reference, samples.first(_LAYER_SAMPLES))
    wanted = {v.name for v in integer.results if v.type.is_quantized}
    with torch.no_grad():
        floats = _values(reference, few, wanted, exact=False)
        integers = _values(integer, few, wanted & floats.keys(), exact=True)
    whole = [
        name for name in integers if floats[name].shape == integers[name].shape
    ]  # no channel was removed
    return {name: snr_db(floats[name], integers[name]) for name in whole}


def _values(graph: Graph, samples: Samples, wanted: set[str], *, exact: bool) -> dict[str, Tensor]:
    interpreter = run_integer if exact else run
    parts: dict[str, list[Tensor]] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value.name in wanted:
            grid = value.type.quantization if exact else None
            parts.setdefault(value.name, []).append(tensor if grid is None else grid.dequantize(tensor))

    for sized, inputs in batches(graph, samples, interpreter=interpreter):
        interpreter(sized, inputs, observe=observe)
    return {name: torch.cat([t.flatten() for t in tensors]) for name, tensors in parts.items()}
