"""The pass `finetune`: training of a graph with the differentiable interpreter; see `training`."""

from __future__ import annotations

from torch import Tensor

from ..ir import Graph, Value
from ..specs.options import FinetuneOptions
from .base import Context, PassResult, register
from .report import Decision, PassReport, Table
from .training import train
from .training.trainable import trainable_constants

_COLUMNS = ("epoch", "training_loss", "validation_loss", "validation_accuracy")


@register(FinetuneOptions)
def finetune(graph: Graph, options: FinetuneOptions, context: Context) -> PassResult:
    """Trains the graph; PassError if there is no training signal."""
    trained = train(graph, options, context)
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


def _real(graph: Graph, name: str) -> Tensor:
    """A constant as real numbers."""
    (type,) = {value.type for value in graph.constants if value.name == name}
    tensor = graph.params[name]
    return tensor if type.quantization is None else type.quantization.dequantize(tensor)
