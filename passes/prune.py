"""The pass `prune`: whole channels go, with all that hangs together with them, until a budget is met.

Score the units of the coupling, allocate how many of each group stay, cut, and verify on the spot that the cut graph
equals the masked one. Repairs on calibration data come after that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..ir import DType, Graph, Source, run
from ..ir.coupling import STAYS, Coupling, Kept, couple
from ..ir.cutting import changed_statistics, cut_graph, deviation, deviation_from_masked
from ..ir.ops.embedding import Embedding
from ..specs.options import PruneOptions
from .base import Context, PassResult, register
from .errors import MissingNeedError, PassError
from .prune_allocation import Allocation, allocate, rank
from .prune_branches import droppable_branches
from .prune_cost import costs_of
from .prune_merging import merge_channels
from .prune_plan import plan_bytes, read_plan
from .prune_repair import absorb_means, reconstruct_inputs, remeasure_batchnorms
from .prune_scores import score_units
from .report import Cell, Decision, PassReport, Table

PLAN_FILE = "prune.plan.json"
TOLERANCE = 1e-4  # of float32 rounding through a deep network, relative to its largest output
VALUE_TOLERANCE = 1e-2  # the same for every value in between, some of which are differences of large ones

_REPAIRS: dict[str, Callable[[Kept, Graph, Sequence[tuple[Tensor, ...]]], Graph]] = {  # in their order
    "merge": lambda kept, cut, _: merge_channels(kept, cut),
    "bias": absorb_means,
    "least_squares": reconstruct_inputs,
    "batchnorm": lambda kept, cut, calibration: remeasure_batchnorms(cut, calibration),
}


@dataclass(frozen=True, slots=True)
class Verified:
    """Largest differences: of outputs and of all values from the masked graph's, of outputs from the whole graph's."""

    outputs: float
    values: float
    change: float


@register(PruneOptions)
def prune(graph: Graph, options: PruneOptions, context: Context) -> PassResult:
    """Remove channels of a float graph; PassError where nothing can be removed, or not as much as is asked."""
    needy = [repair for repair in options.compensation if repair != "merge"]
    if needy and not context.calibration:
        raise MissingNeedError(f"compensation {needy[0]} needs calibration in the spec")
    if any(v.type.is_quantized for v in graph.constants):
        raise PassError("channels are removed from float graphs; put prune before quantize")
    plan = None if options.plan is None else read_plan(options.plan)
    coupling = couple(graph, whole_heads="heads" in options.granularity if plan is None else plan.whole_heads)
    if not coupling.count:
        raise PassError(f"no channel can go: {why_nothing_goes(coupling)}")
    samples = [*context.calibration[:1], _random_inputs(graph, options.seed)]
    allocation, removed = None, np.zeros(coupling.count, dtype=bool)
    if plan is not None:
        removed = plan.removed(coupling)
    else:
        held = _held(coupling, options, context)
        droppable = droppable_branches(coupling, samples, held) if "blocks" in options.granularity else ()
        scores = score_units(coupling, options, context)
        ranked = rank(coupling, scores, held | ~_may_go(coupling, options), options, droppable=droppable)
        allocation = allocate(ranked, costs_of(coupling), options)
        removed = ranked.removed(allocation.kept)
    kept = coupling.kept(removed)
    cut = cut_graph(kept)
    verified = verify_cut(kept, cut, samples)
    repaired, notes = _repaired(kept, cut, options, context)
    report = _report(kept, repaired, allocation, {**_figures(verified), **notes})
    return PassResult(repaired, report)


def verify_cut(kept: Kept, cut: Graph, samples: Sequence[Sequence[Tensor]]) -> Verified:
    """Hold the cut graph against the masked one, value by value; AssertionError beyond rounding."""
    found = Verified(0.0, 0.0, 0.0)
    with torch.no_grad():
        for inputs in samples:
            outputs, values = deviation_from_masked(kept, cut, inputs)
            change = deviation(run(cut, inputs), run(kept.coupling.graph, inputs))
            found = Verified(
                max(found.outputs, outputs), max(found.values, values), max(found.change, change)
            )
    assert found.outputs <= TOLERANCE, f"outputs differ from those of the masked graph by {found.outputs:.1e}"
    assert found.values <= VALUE_TOLERANCE, (
        f"values differ from those of the masked graph by {found.values:.1e}"
    )
    return found


def _figures(verified: Verified) -> dict[str, Cell]:
    return {
        "masked_error": verified.outputs,
        "masked_error_of_values": verified.values,
        "masked_change": verified.change,
    }


def why_nothing_goes(coupling: Coupling) -> str:
    """Refusals, or else what holds the first two dimensions of the weights."""
    weights = [value for value in coupling.graph.constants if value.type.rank > 1]
    held = [coupling.reason(value, dimension) for value in weights for dimension in (0, 1)]
    reasons = coupling.refusals or tuple(dict.fromkeys(reason for reason in held if reason is not None))
    return "; ".join(str(reason) for reason in reasons[:3]) or "there are no weights"


def _held(coupling: Coupling, options: PruneOptions, context: Context) -> np.ndarray:
    """The units of output channels of layers that `keep` names."""
    held = np.zeros(coupling.count, dtype=bool)
    for node in coupling.graph.nodes:
        if any(context.selects(pattern, node.source.module) for pattern in options.keep):
            for axis in (axis for value in node.outputs for axis in coupling.axes(value)):
                units = coupling.on_axis(axis)
                held[units[units != STAYS]] = True
    return held


def _may_go(coupling: Coupling, options: PruneOptions) -> np.ndarray:
    """The units that may go one by one, at this granularity."""
    if "channels" in options.granularity:
        return np.ones(coupling.count, dtype=bool)
    heads = coupling.head_groups if "heads" in options.granularity else np.zeros(coupling.count, dtype=bool)
    return np.asarray(heads[coupling.groups], dtype=bool)


def _random_inputs(graph: Graph, seed: int) -> list[Tensor]:
    """Normal floats, and integers that are rows of the tables in which they are looked up."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for value in graph.inputs:
        if value.type.dtype.is_floating:
            x = torch.randn(value.type.shape, generator=generator)
        elif value.type.dtype is DType.BOOL:
            x = torch.ones(value.type.shape)
        else:
            rows = [
                n.operands[1].type.shape[0]
                for n in graph.users.get(value.name, ())
                if isinstance(n.op, Embedding)
            ]
            x = torch.randint(0, min(rows, default=2), value.type.shape, generator=generator)
        inputs.append(x.to(value.type.dtype.torch))
    return inputs


def _repaired(
    kept: Kept, cut: Graph, options: PruneOptions, context: Context
) -> tuple[Graph, dict[str, Cell]]:
    """The cut graph after the repairs that are asked for, and the outputs' error before and after each."""
    if not options.compensation:
        return cut, {}
    samples = context.calibration or [tuple(_random_inputs(kept.coupling.graph, options.seed))]
    errors: dict[str, Cell] = {"error_before_repair": _error(kept, cut, samples)}
    repaired = cut
    for repair in sorted(options.compensation, key=list(_REPAIRS).index):
        repaired = _REPAIRS[repair](kept, repaired, context.calibration)
        errors[f"error_after_{repair}"] = _error(kept, repaired, samples)
    return repaired, {**errors, "error_after_repair": _error(kept, repaired, samples)}


def _error(kept: Kept, graph: Graph, samples: Sequence[tuple[Tensor, ...]]) -> float:
    """Root mean square of the change of outputs on the samples, relative to that of the outputs."""
    wrong = whole = 0.0
    with torch.no_grad():
        for inputs in samples:
            for y, z in zip(run(graph, inputs), run(kept.coupling.graph, inputs), strict=True):
                wrong += float((y - z).double().square().sum())
                whole += float(z.double().square().sum())
    return float((wrong / whole) ** 0.5) if whole else 0.0


def _report(kept: Kept, after: Graph, allocation: Allocation | None, measured: dict[str, Cell]) -> PassReport:
    coupling, before = kept.coupling, kept.coupling.graph
    sizes = [sum(t.numel() for t in graph.params.values()) for graph in (before, after)]
    summary: dict[str, Cell] = {
        "macs_before": before.macs,
        "macs_after": after.macs,
        "params_before": sizes[0],
        "params_after": sizes[1],
        "blocks_dropped": len(kept.dropped),
        "gap": None if allocation is None else allocation.gap,
        **measured,
    }
    statistics = tuple(
        f"{node.source or node.outputs[0]}: {node.op.name} takes its statistics over the channels that stay"
        for node in changed_statistics(kept)
    )
    return PassReport(
        "prune",
        (*_layer_decisions(kept), *_refused(coupling)),
        (Table("summary", ("figure", "value"), tuple(summary.items())), _group_table(kept)),
        statistics,
        {PLAN_FILE: plan_bytes(coupling, kept.removed, after)},
    )


def _layer_decisions(kept: Kept) -> list[Decision]:
    """One for each constant of two dimensions and more that shrinks."""
    decisions, seen = [], set()
    sources: dict[str, Source] = {}
    for node in kept.coupling.graph.nodes:
        for value in node.operands:
            sources.setdefault(value.name, node.source)
    for value, _, _ in kept.coupling.members:
        shape = kept.shape(value)
        if value.type.rank > 1 and shape != value.type.shape and value.name not in seen:
            seen.add(value.name)
            text = f"{'x'.join(map(str, value.type.shape))} -> {'x'.join(map(str, shape))}"
            decisions.append(Decision("prune", value.name, sources[value.name], True, text))
    return decisions


def _refused(coupling: Coupling) -> list[Decision]:
    return [Decision("prune", reason.name, reason.source, False, reason.why) for reason in coupling.refusals]


def _group_table(kept: Kept) -> Table:
    coupling = kept.coupling
    places: dict[int, list[str]] = {}
    for value, dimension, units in coupling.members:
        for group in np.unique(coupling.groups[units[units != STAYS]]).tolist():
            places.setdefault(group, []).append(f"{value.name}:{dimension}")
    sizes = np.bincount(coupling.groups)
    left = np.bincount(coupling.groups, weights=~kept.removed).astype(int)
    rows = tuple((g, places[g][0], len(places[g]), int(sizes[g]), int(left[g])) for g in sorted(places))
    return Table("groups", ("group", "first", "members", "units_before", "units_after"), rows)
