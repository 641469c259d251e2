"""The pass `finetune`: training of a graph with the differentiable interpreter; see `training`."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..ir import Graph, Value
from ..specs.options import FinetuneOptions
from .base import Context, PassResult, register
from .report import Decision, PassReport, Table
from .training import train
from .training.added_trainable import AddedTrainable
from .training.loop import make_trainable
from .training.low_rank_trainable import LowRankTrainable
from .training.trainable import trainable_constants

_COLUMNS = ("epoch", "training_loss", "validation_loss", "validation_accuracy")


@register(FinetuneOptions)
def finetune(graph: Graph, options: FinetuneOptions, context: Context) -> PassResult:
    """Trains the graph; PassError if there is no training signal."""
    trainable = make_trainable(graph, options, context)
    trained = train(graph, options, context, trainable=trainable)
    if isinstance(trainable, LowRankTrainable):
        decisions = tuple(
            _adapted(graph, trained.graph, value, trainable.rank) for value in trainable.weights
        )
    elif isinstance(trainable, AddedTrainable):
        decisions = trainable.decisions
    else:
        values = trainable_constants(graph, options, context)
        decisions = tuple(_decision(graph, trained.graph, value) for value in values)
    counts = (trained.training_samples, trained.validation_samples)
    tables = (
        Table("epochs", _COLUMNS, trained.rows),
        Table("samples", ("trained_on", "held_back"), (counts,)),
    )
    report = PassReport("finetune", decisions, tables, warnings=(f"finetune: {trained.samples_text}",))
    return PassResult(trained.graph, report)


def _decision(before: Graph, after: Graph, value: Value) -> Decision:
    old, new = (_real(graph, value.name) for graph in (before, after))
    change = float((new - old).norm() / old.norm().clamp(min=1e-30))
    source = before.users[value.name][0].source
    return Decision("finetune", value.name, source, change > 0, f"changed by {100 * change:.1f} %")


def _adapted(before: Graph, after: Graph, value: Value, rank: int) -> Decision:
    """The decision on a weight with an adapter: added to it, or beside it."""
    if not value.type.is_quantized:
        found = _decision(before, after, value)
        return replace(found, reason=f"{found.reason} by an adapter of rank {rank}")
    numbers = rank * sum(value.type.shape)
    source = before.users[value.name][0].source
    reason = f"an adapter of rank {rank} beside it, {numbers:,} numbers; its bytes are unchanged"
    return Decision("finetune", value.name, source, True, reason)


def _real(graph: Graph, name: str) -> Tensor:
    """A constant as real numbers."""
    (type,) = {value.type for value in graph.constants if value.name == name}
    tensor = graph.params[name]
    return tensor if type.quantization is None else type.quantization.dequantize(tensor)
