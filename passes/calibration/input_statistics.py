"""Statistics of the inputs x of linear layers over calibration samples: sum x^T x, and the mean of |x| by channel.

Samples are in a fixed number of shards, whose sums are added in order in float64: any number of processes (`workers`)
gets the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, Value, run
from ...ir.ops.linear import Linear
from ..errors import PassError
from ..progress_callback import Progress
from ..workers import ALONE, Workers, make_shards
from .calibrate import Batch, check_samples


@dataclass(frozen=True)
class InputStatistics:
    """Second moments [in, in], sum of x^T x, and the mean of |x| [in] of the inputs of a weight's linear layers."""

    hessian: Tensor
    mean_magnitude: Tensor


def collect_inputs(
    graph: Graph,
    weights: Collection[str],
    samples: Sequence[Batch],
    *,
    workers: Workers = ALONE,
    progress: Progress,
) -> dict[str, InputStatistics]:
    """Statistics over all linear layers that read each of these weights; weights of other operators are left out."""
    check_samples(graph, samples)
    read: dict[str, list[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Linear) and node.operand("weight").name in weights:
            read.setdefault(node.operand("x").name, []).append(node.operand("weight").name)
    shards = make_shards(len(samples))
    sums = workers.total(
        shards,
        lambda shard: _sums(graph, read.keys(), [samples[index] for index in shard]),
        lambda done: progress("calibration", done, len(shards)),
    )
    found: dict[str, list[str]] = {}
    for value, names in read.items():
        for name in names:
            found.setdefault(name, []).append(value)
    return {name: _joined(sums, values) for name, values in found.items()}


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper factor U [in, in] of the damped inverse, U^T U = (H + damping * mean(diag H) * I)^-1, as float32.

    Inputs that are always zero count as uncorrelated.
    """
    damped = hessian.double().clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += damping * mean if mean > 0 else 1.0
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except RuntimeError as err:
        fact = "the inputs of a layer are too large or too alike to be inverted"
        raise PassError(f"{fact}; raise `damping`, or leave this layer out") from err
    return factor.float()


def _sums(graph: Graph, values: Collection[str], samples: Sequence[Batch]) -> dict[str, Tensor]:
    """For each value the sum of x^T x, below it the sum of |x| and the number of rows: [in + 2, in], float64."""
    sums: dict[str, Tensor] = {}

    def observe(value: Value, x: Tensor) -> None:
        if value.name in values:
            rows = x.reshape(-1, x.shape[-1]).float()
            count = torch.full((1, rows.shape[1]), float(len(rows)), dtype=torch.float64)
            parts = (rows.T @ rows).double(), rows.abs().sum(0, dtype=torch.float64)[None], count
            found = torch.cat(parts)
            sums[value.name] = sums[value.name] + found if value.name in sums else found

    with torch.no_grad():
        for sample in samples:
            for value, x in zip(graph.inputs, sample, strict=True):
                observe(value, x)
            run(graph, sample, observe=observe)
    return sums


def _joined(sums: Mapping[str, Tensor], values: Sequence[str]) -> InputStatistics:
    total = sum((sums[value] for value in values[1:]), sums[values[0]])
    return InputStatistics(total[:-2], total[-2] / total[-1])
