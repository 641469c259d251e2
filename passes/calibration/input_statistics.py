"""Statistics of the inputs x of linear layers over calibration samples: sum x^T x, and the mean of |x| by channel.

Samples are in a fixed number of shards, whose sums are added in order in float64, so that the bytes do not depend on
the number of processes (`workers`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...ir import Graph, Value
from ...ir.ops.linear import Linear
from ..errors import PassError
from ..progress_callback import Progress
from ..workers import ALONE, Workers, make_shards
from .block_replay import BlockReplay
from .calibrate import Batch


@dataclass(frozen=True)
class InputStatistics:
    """Second moments [in, in] (sum of x^T x) and mean of |x| [in] of the inputs of a weight's linear layers."""

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
    """Statistics over all linear layers that read each of these weights; weights of other operators are skipped."""
    parts = inputs_by_block(graph, weights, samples, workers=workers, progress=progress)
    return {name: found for part in parts for name, found in part.items()}


def inputs_by_block(
    graph: Graph,
    weights: Collection[str],
    samples: Sequence[Batch],
    *,
    workers: Workers = ALONE,
    progress: Progress,
) -> Iterator[dict[str, InputStatistics]]:
    """Statistics in parts: after each block of the network, those of the weights that no later block reads."""
    replay = BlockReplay(graph, weights, samples)
    reads = [_read_values(block, weights) for block in replay.parts]
    last = {name: index for index, read in enumerate(reads) for names in read.values() for name in names}
    count = max(last.values(), default=-1) + 1
    shards = make_shards(replay.count)
    sums: dict[str, Tensor] = {}
    for at, block in enumerate(replay.blocks(until=count)):
        done = partial(_step, progress, at * len(shards), count * len(shards))
        for name, found in _sums_of_block(replay, block, weights, workers, done).items():
            sums[name] = sums[name] + found if name in sums else found
        yield {name: _statistics(sums.pop(name)) for name in [*sums] if last[name] == at}


def statistics_of_block(
    replay: BlockReplay, block: Graph, weights: Collection[str], *, workers: Workers, progress: Progress
) -> dict[str, InputStatistics]:
    """Statistics of the inputs of these weights' linear layers in one block, whose constants may have changed."""
    done = partial(_step, progress, 0, len(make_shards(replay.count)))
    sums = _sums_of_block(replay, block, weights, workers, done)
    return {name: _statistics(found) for name, found in sums.items()}


def _sums_of_block(
    replay: BlockReplay, block: Graph, weights: Collection[str], workers: Workers, done: Callable[[int], None]
) -> dict[str, Tensor]:
    """Sums over the inputs of each weight's linear layers in a block (`_sums`)."""
    read = _read_values(block, weights)
    found = workers.total(make_shards(replay.count), partial(_sums, replay, block, read.keys()), done)
    sums: dict[str, Tensor] = {}
    for value, names in read.items():
        for name in names:
            sums[name] = sums[name] + found[value] if name in sums else found[value]
    return sums


def _step(progress: Progress, before: int, count: int, done: int) -> None:
    progress("calibration", before + done, count)


def _read_values(graph: Graph, weights: Collection[str]) -> dict[str, list[str]]:
    """The weights of linear layers by the operand of these layers."""
    read: dict[str, list[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Linear) and node.operand("weight").name in weights:
            read.setdefault(node.operand("x").name, []).append(node.operand("weight").name)
    return read


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper factor U [in, in] of the damped inverse, U^T U = (H + damping * mean(diag H) * I)^-1, as float32.

    Inputs that are always zero are treated as uncorrelated.
    """
    damped = hessian.double().clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += damping * mean if mean > 0 else 1.0
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except RuntimeError as err:
        fact = "the second moments of a layer's inputs cannot be inverted"
        raise PassError(f"{fact}; raise `damping`, or exclude this layer") from err
    return factor.float()


def _sums(replay: BlockReplay, block: Graph, values: Collection[str], shard: range) -> dict[str, Tensor]:
    """For each value the sum of x^T x, then the sum of |x| and the number of rows: [in + 2, in], float64."""
    sums: dict[str, Tensor] = {}

    def observe(value: Value, x: Tensor) -> None:
        if value.name in values:
            rows = x.reshape(-1, x.shape[-1]).float()
            count = torch.full((1, rows.shape[1]), float(len(rows)), dtype=torch.float64)
            parts = (rows.T @ rows).double(), rows.abs().sum(0, dtype=torch.float64)[None], count
            found = torch.cat(parts)
            sums[value.name] = sums[value.name] + found if value.name in sums else found

    for index in shard:
        replay.run(block, index, observe=observe)
    return sums


def _statistics(sums: Tensor) -> InputStatistics:
    return InputStatistics(sums[:-2], sums[-2] / sums[-1])
