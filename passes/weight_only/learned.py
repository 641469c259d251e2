"""Learned rounding: integers, scales, norms and biases trained end to end against the float network.

    minimize  KL(p(x) || q(x)),   q the scores with weights s exp(t) * clamp(round(v), low, high)

over levels v (straight-through gradient), log growth t of the scales, and the float constants that layers learn; p are
the scores of the float network, so that no labels are needed. Outputs other than class scores use the squared error
instead of the divergence. Training starts from the integers of another method. Training is that of `finetune`
(`training.stored_trainable`). Sources: Esser et al., Learned step size quantization, ICLR 2020 (scales); Liu et al.,
LLM-QAT: Data-free quantization aware training for large language models, 2023 (distillation on the model's own texts).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from ...ir import Graph
from ...specs.options import Distillation, FinetuneOptions, Learned
from ..training import train
from .divergence import Divergence
from .rounding_methods import Coded, Rounded, RoundingTask, round_weights, rounding_method
from .stored_graph import store


@rounding_method(Learned)
def learn_rounding(task: RoundingTask, options: Learned) -> Rounded:
    """Integers and scales of the step with the least divergence on held-back samples."""
    start = round_weights(task, options.start)
    stored = store(start.graph, task.weights, start.coded, rounds_inputs=False)
    settings = _training(task, options)
    context = replace(
        task.context, calibration=task.samples[: options.samples], labels=(), original=start.graph
    )
    trained = train(stored, settings, context)
    first, best = trained.rows[0][2], min(row[2] for row in trained.rows)
    note = f"learned rounding: divergence on held-back samples {first:.3g} -> {best:.3g}"
    return replace(
        start,
        graph=_with_floats(start.graph, trained.graph),
        coded={name: trained_weight(start.graph, trained.graph, name) for name in start.coded},
        notes=(*start.notes, note),
    )


def _training(task: RoundingTask, options: Learned) -> FinetuneOptions:
    """Options of a training with about this number of steps."""
    classes = Divergence.of(task.graph).classes
    used = min(len(task.samples), options.samples)
    held_back = max(1, used // 10)
    return FinetuneOptions(
        epochs=ceil(options.steps / ceil(max(used - held_back, 1) / options.batch)),
        batch=options.batch,
        loss="mse" if classes is None else "cross_entropy",
        class_axis=None if classes is None else classes.axis,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        distill=Distillation(temperature=1.0),
        seed=options.seed,
    )


def _with_floats(graph: Graph, trained: Graph) -> Graph:
    """The float graph with the norms and biases of the trained one."""
    floats = {
        value.name: trained.tensor(value)
        for value in trained.constants
        if value.type.quantization is None and value.name in graph.params
    }
    return graph.with_params(floats)


def trained_weight(graph: Graph, trained: Graph, name: str) -> Coded:
    """The codes of a weight of the float graph after training."""
    (value,) = (value for value in trained.constants if value.name == name)
    assert value.type.quantization is not None
    return Coded.of(graph.params[name], trained.tensor(value), value.type.quantization)
