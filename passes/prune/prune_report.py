"""Report of `prune`: figures, groups with scores, refusals, plan and chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir import Graph, Source
from ...ir.coupling import Kept
from ...ir.cutting import changed_statistics
from ...specs.options import PruneOptions
from ..base import Context
from ..report import Cell, Decision, PassReport, Table
from .allocation import Spent
from .joint import DecidedBits
from .prune_picture import picture_of
from .prune_plan import places_of, plan_bytes

PLAN_FILE = "prune.plan.json"
PICTURE_FILE = "prune.groups.svg"
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Step:
    """One round of pruning: kept units of the graph before, the graph after repairs and training, figures."""

    kept: Kept
    after: Graph
    scores: np.ndarray | None  # scores of the units; None for units from a plan
    figures: Mapping[str, Cell]
    training: tuple[tuple[Cell, ...], ...] = ()  # one row for each epoch
    spent: tuple[Spent, ...] = ()  # of each resource in the budget
    bits: DecidedBits = field(default_factory=DecidedBits)


def report_of(steps: Sequence[Step], options: PruneOptions, context: Context) -> PassReport:
    """The report of all steps; figures are those of the last one."""
    before, after = steps[0].kept.coupling.graph, steps[-1].after
    summary: dict[str, Cell] = {
        "macs_before": before.macs,
        "macs_after": after.macs,
        "params_before": _params(before),
        "params_after": _params(after),
        "blocks_dropped": sum(len(step.kept.dropped) for step in steps),
        **steps[-1].figures,
    }
    several = len(steps) > 1
    tables = [Table("summary", ("figure", "value"), tuple(summary.items()))]
    tables += [_budget_table(steps)] if steps[-1].spent else []
    tables += [_step_table(steps)] if several or options.finetune is not None else []
    tables += [_group_table(s, f"groups_{n}" if several else "groups") for n, s in enumerate(steps, start=1)]
    tables += steps[-1].bits.tables
    statistics = {
        f"{node.source or node.outputs[0]}: {node.op.name} computes its statistics over the kept channels": None
        for step in steps
        for node in changed_statistics(step.kept)
    }
    files = {
        PLAN_FILE: plan_bytes(
            [(step.kept, step.after, step.bits.layers) for step in steps], context.calibration
        ),
        PICTURE_FILE: picture_of(steps[0].kept, after).encode(),
        **steps[-1].bits.files,
    }
    decisions = (
        *_layer_decisions(before, after),
        *steps[-1].bits.decisions,
        *_refused(steps[0].kept),
    )
    return PassReport("prune", decisions, tuple(tables), tuple(statistics), files)


def _params(graph: Graph) -> int:
    return graph.params.numel


def _layer_decisions(before: Graph, after: Graph) -> list[Decision]:
    """One decision per constant of two or more dimensions that shrinks or is removed."""
    decisions = []
    sources: dict[str, Source] = {}
    for node in before.nodes:
        for value in node.operands:
            sources.setdefault(value.name, node.source)
    for value in before.constants:
        left = tuple(after.params[value.name].shape) if value.name in after.params else ()
        if value.type.rank > 1 and left != value.type.shape:
            text = f"{'x'.join(map(str, value.type.shape))} -> {'x'.join(map(str, left)) or 'gone'}"
            decisions.append(Decision("prune", value.name, sources[value.name], True, text))
    return decisions


def _refused(kept: Kept) -> list[Decision]:
    return [Decision("prune", r.name, r.source, False, r.why) for r in kept.coupling.refusals]


def _budget_table(steps: Sequence[Step]) -> Table:
    """Table of limited resources: before pruning, after pruning, limit."""
    rows = tuple(
        (first.resource, round(first.before), round(last.after), round(last.limit))
        for first, last in zip(steps[0].spent, steps[-1].spent, strict=True)
    )
    return Table("budget", ("resource", "before", "after", "limit"), rows)


def _step_table(steps: Sequence[Step]) -> Table:
    """Table of steps: remaining size, validation loss before training and of the best epoch."""
    columns = ("step", "macs", "params", "masked_error", "loss_before_training", "loss_after_training")
    rows: list[tuple[Cell, ...]] = []
    for number, step in enumerate(steps, start=1):
        losses = [float(row[2]) for row in step.training if row[2] is not None]
        trained = (losses[0], min(losses)) if losses else (None, None)
        rows.append((number, step.after.macs, _params(step.after), step.figures["masked_error"], *trained))
    return Table("steps", columns, tuple(rows))


def _group_table(step: Step, name: str) -> Table:
    """The groups, the number of kept units of each, and the quantiles of their scores."""
    coupling, places = step.kept.coupling, places_of(step.kept.coupling)
    sizes = np.bincount(coupling.groups)
    left = np.bincount(coupling.groups, weights=~step.kept.removed).astype(int)
    rows: list[tuple[Cell, ...]] = []
    for group in sorted(places):
        spread: tuple[Cell, ...] = ()
        if step.scores is not None:
            spread = tuple(map(float, np.quantile(step.scores[coupling.groups == group], _QUANTILES)))
        rows.append(
            (group, places[group][0], len(places[group]), int(sizes[group]), int(left[group]), *spread)
        )
    quantiles = ("score_least", "score_quarter", "score_median", "score_three_quarters", "score_most")
    columns = ("group", "first", "members", "units_before", "units_after")
    return Table(name, (*columns, *(quantiles if step.scores is not None else ())), tuple(rows))
