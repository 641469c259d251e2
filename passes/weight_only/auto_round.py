"""Rounding and scales trained block by block, by sign descent (AutoRound).

    minimize  |f(x) - f_q(x)|^2 over the levels v and the log growth t of scales,   w = s exp(t) * clamp(round(v))
    v <- v - rate * sign(dv),   and t likewise

for each block f of the network, on the outputs x of the already rounded blocks before it. All other constants are
unchanged. A block is the part between two values that join the parts of the graph (`network_blocks`). Source: Cheng et
al., Optimize weight rounding via signed gradient descent for the quantization of LLMs, 2023. With `optimizer: adamw`
it is the layer-by-layer distillation of ZeroQuant (Yao et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import torch

from ...ir import Graph
from ...ir.params import Params
from ...specs.options import AutoRound, Distillation, FinetuneOptions
from ..calibration.block_replay import BlockReplay
from ..calibration.calibrate import Batch
from ..report import Cell, Decision, Table
from ..training import train
from ..training.stored_trainable import StoredTrainable
from .learned import trained_weight
from .rounding_methods import Coded, Rounded, RoundingTask, round_weights, rounding_method
from .stored_graph import store

_COLUMNS = ("block", "weights", "error_before", "error_after")
_FEWEST = 2  # samples: one for training, one for the choice of the best step


@rounding_method(AutoRound)
def round_blocks(task: RoundingTask, options: AutoRound) -> Rounded:
    """Weights that only one block reads, trained for its results; all others as in `start`."""
    start = round_weights(task, options.start)
    graph, coded = start.graph, dict(start.coded)
    rows, decisions = list[tuple[Cell, ...]](), list[Decision]()
    replay = BlockReplay(graph, coded, task.samples[: options.samples])
    for block in replay.blocks():
        inputs = [replay.inputs(index) for index in range(replay.count)]
        read = {v.name: coded[v.name].loaded() for v in block.constants if v.name in coded}
        own = [name for name in read if _is_own(graph, block, name)]
        for name in read.keys() - set(own):
            text = "not trained: several blocks read it"
            decisions.append(Decision("auto_round", name, task.weights[name].source, False, text))
        if own and len(inputs) >= _FEWEST:
            trained, before, after = _trained(
                task, options, block, {name: read[name] for name in own}, inputs
            )
            read |= trained
            coded |= {
                name: found.moved_to_file() if task.is_lazy(name) else found
                for name, found in trained.items()
            }
            rows.append((task.weights[own[0]].source.module or own[0], len(own), before, after))
            for name in own:
                text = f"squared error of its block {before:.3g} -> {after:.3g}"
                decisions.append(
                    Decision("auto_round", name, task.weights[name].source, after < before, text)
                )
        stored = store(block, task.weights, read, rounds_inputs=False)
        for index in range(replay.count):
            replay.run(stored, index)
    table = Table("auto_round", _COLUMNS, tuple(rows))
    return replace(
        start, coded=coded, decisions=(*start.decisions, *decisions), tables=(*start.tables, table)
    )


def _trained(
    task: RoundingTask,
    options: AutoRound,
    block: Graph,
    coded: dict[str, Coded],
    inputs: Sequence[Batch],
) -> tuple[dict[str, Coded], float, float]:
    """Trained codes of a block, and the squared error of its results on held-back samples, before and after."""
    block, inputs = _with_fixed_inputs(block, inputs)
    steps = ceil((len(inputs) - max(1, len(inputs) // 10)) / options.batch)
    settings = FinetuneOptions(
        epochs=ceil(options.steps / steps),
        batch=options.batch,
        loss="mse",
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        distill=Distillation(temperature=1.0),
        seed=options.seed,
    )
    stored = store(block, task.weights, coded, rounds_inputs=False)
    context = replace(task.context, calibration=inputs, labels=(), original=block)
    trainable = replace(StoredTrainable.of(stored, settings, context), others=())
    found = train(stored, settings, context, trainable=trainable)
    codes = {name: trained_weight(block, found.graph, name) for name in coded}
    return codes, found.rows[0][2], min(row[2] for row in found.rows)


def _with_fixed_inputs(block: Graph, inputs: Sequence[Batch]) -> tuple[Graph, Sequence[Batch]]:
    """The block with inputs that are equal for all samples, such as a mask, as constants, and the remaining inputs."""
    first = inputs[0]
    varied = [i for i, x in enumerate(first) if not all(torch.equal(x, sample[i]) for sample in inputs[1:])]
    if not varied:
        return block, inputs
    fixed = {v.name: first[i] for i, v in enumerate(block.inputs) if i not in varied}
    bound = replace(
        block,
        inputs=tuple(block.inputs[i] for i in varied),
        params=Params({**{name: block.params[name] for name in block.params}, **fixed}),
    )
    return bound, [tuple(sample[i] for i in varied) for sample in inputs]


def _is_own(graph: Graph, block: Graph, name: str) -> bool:
    """True if only nodes of a block read a constant."""
    inside = {node.outputs[0].name for node in block.nodes}
    return all(node.outputs[0].name in inside for node in graph.users[name])
