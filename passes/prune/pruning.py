"""The pass `prune`: structured pruning of coupled channels to a budget.

The pass scores the units of the coupling, allocates the number of kept units of each group, cuts the graph, and
verifies that the cut graph equals the masked one. Then repairs on calibration data and training follow; all of it
once, or in steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ...ir import DType, Graph, run
from ...ir.coupling import STAYS, Coupling, Kept, couple
from ...ir.cutting import cut_graph, kept_part
from ...ir.ops.embedding import Embedding
from ...specs.options import PruneOptions
from ..base import Context, CostModel, PassResult, register
from ..errors import MissingNeedError, PassError
from ..report import Cell
from ..training import OptimizerState, train
from .allocation import Allocation, Spent, allocate
from .bit_choices import NO_BIT_CHOICES, measure_bit_choices, with_bit_costs
from .branch_shares import droppable_branches
from .budget import Device, budget_of_step
from .channel_costs import costs_of
from .cut_losses import measure_losses
from .joint import DecidedBits, Joint
from .merging import merge_channels
from .prune_plan import Plan, read_plan
from .prune_report import PLAN_FILE, Step, report_of
from .ranking import Ranked, rank
from .repair import absorb_means, reconstruct_inputs, remeasure_batchnorms
from .scores import score_units
from .verification import Verified, verify_cut, why_nothing_goes

__all__ = ["PLAN_FILE", "prune"]

_REPAIRS: dict[str, Callable[[Kept, Graph, Sequence[tuple[Tensor, ...]]], Graph]] = {  # in this order
    "merge": lambda kept, cut, _: merge_channels(kept, cut),
    "bias": absorb_means,
    "least_squares": reconstruct_inputs,
    "batchnorm": lambda kept, cut, calibration: remeasure_batchnorms(cut, calibration),
}


@register(PruneOptions)
def prune(graph: Graph, options: PruneOptions, context: Context) -> PassResult:
    """Removes channels of a float graph; PassError if nothing can be removed, or not as much as requested."""
    needy = [repair for repair in options.compensation if repair != "merge"]
    if needy and not context.calibration:
        raise MissingNeedError(f"compensation {needy[0]}", "calibration")
    if any(v.type.is_quantized for v in graph.constants):
        raise PassError("channels are removed from float graphs; put prune before quantize")
    for wants, what in ((options.finetune, "fine-tuning between steps"), (options.bits, "deciding `bits`")):
        if wants is not None and not context.calibration:
            raise MissingNeedError(what, "calibration")
    plans = None if options.plan is None else read_plan(options.plan)
    steps: list[Step] = []
    state: OptimizerState | None = None
    after = graph
    notes: dict[str, None] = {}
    count = options.steps if plans is None else len(plans)
    for number in range(count):
        share = _options_of_step(options, number, [graph, after], context) if plans is None else options
        step = _prune_once(after, share, context, None if plans is None else plans[number])
        if options.finetune is not None:
            state = None if state is None else state.mapped(_slicing(step.kept, step.after))
            trained = train(step.after, options.finetune.of_step(number + 1, count), context, state=state)
            step, state = replace(step, after=trained.graph, training=trained.rows), trained.state
            notes[f"prune: {trained.samples_text}"] = None
        steps.append(step)
        after = step.after
    report = report_of(steps, options, context)
    report = replace(report, warnings=(*report.warnings, *notes))
    return PassResult(after.with_precisions(steps[-1].bits.layers), report)


def _options_of_step(
    options: PruneOptions, number: int, graphs: Sequence[Graph], context: Context
) -> PruneOptions:
    """The options with the budget of one of several steps, as shares of the graph reached before it.

    The shares of the first graph decrease geometrically: after step t of n, to the budget ^ (t / n).
    """
    assert options.budget is not None
    if options.steps == 1:
        return options
    first, now = ({"macs": g.macs, "params": g.params.numel} for g in graphs)
    first["channels"], now["channels"] = (couple(g).count for g in graphs)
    done = (number + 1) / options.steps
    limits = {name: getattr(options.budget, name) for name in first}
    shares = {
        name: None if limit is None else min(1.0, limit**done * first[name] / max(now[name], 1))
        for name, limit in limits.items()
    }
    budget = options.budget
    if budget.on_device:
        budget = budget_of_step(budget, _cost_model(context), graphs[0], done)
    return options.model_copy(update={"budget": budget.model_copy(update=shares)})


def _cost_model(context: Context) -> CostModel:
    if context.cost is None:
        raise PassError("the budget needs a microcontroller: name it, for example `target: cortex-m4f`")
    return context.cost


def _slicing(kept: Kept, after: Graph) -> Callable[[str, Tensor], Tensor]:
    """Function that removes from a tensor the channels removed from the constant of the same name (for optimizer
    moments).
    """
    values = {v.name: v for v in kept.coupling.graph.constants}

    def cut(name: str, moment: Tensor) -> Tensor:
        return kept_part(moment, kept.value(values[name])) if name in after.params else moment

    return cut


def _prune_once(graph: Graph, options: PruneOptions, context: Context, plan: Plan | None) -> Step:
    """Removes channels once, verifies the result, and repairs it."""
    coupling = couple(graph, whole_heads="heads" in options.granularity if plan is None else plan.whole_heads)
    if not coupling.count:
        raise PassError(f"no channel can be removed: {why_nothing_goes(coupling)}")
    samples = [*context.calibration[:1], _random_inputs(graph, options.seed)]
    if plan is not None:
        choice = _Choice(plan.removed(coupling), bits=DecidedBits(plan.layers))
    else:
        choice = _choose(coupling, options, context, samples)
    kept = coupling.kept(choice.removed)
    cut = cut_graph(kept)
    verified = verify_cut(kept, cut, samples)
    bits = choice.bits
    if choice.joint is not None:
        bits = choice.joint.decided(coupling, cut, context.calibration)
    repaired, notes = _repaired(kept, cut, options, context)
    figures = {**choice.figures, **_figures(verified), **notes}
    return Step(kept, repaired, choice.scores, figures, spent=choice.spent, bits=bits)


@dataclass(frozen=True)
class _Choice:
    """Removed units and the reasons; a plan has only the units and the bits."""

    removed: np.ndarray
    scores: np.ndarray | None = None
    figures: Mapping[str, Cell] = field(default_factory=lambda: {"gap": None, "rounds": None})
    spent: tuple[Spent, ...] = ()
    joint: Joint | None = None
    bits: DecidedBits = field(default_factory=DecidedBits)


def _choose(
    coupling: Coupling, options: PruneOptions, context: Context, samples: Sequence[Sequence[Tensor]]
) -> _Choice:
    """Units with the lowest scores to remove for the budget."""
    held = _held(coupling, options, context)
    droppable = droppable_branches(coupling, samples, held) if "blocks" in options.granularity else ()
    may_go = _may_go(coupling, options)
    if not (may_go.any() or droppable):
        raise PassError(
            f"there are no removable {' and no removable '.join(options.granularity)}; add `channels`"
        )
    scores = score_units(coupling, options, context)
    ranked = rank(coupling, scores, held | ~may_go, options, droppable=droppable)
    allocation, joint = _allocate(coupling, ranked, options, context)
    figures = {"gap": allocation.gap, "rounds": allocation.rounds}
    return _Choice(ranked.removed(allocation.kept), scores, figures, allocation.spent, joint)


def _allocate(
    coupling: Coupling, ranked: Ranked, options: PruneOptions, context: Context
) -> tuple[Allocation, Joint | None]:
    """Number of kept units of each group, and the bit widths of layers if these are free."""
    assert options.budget is not None
    model = _cost_model(context) if options.budget.on_device else None
    costs, choices, utility = costs_of(coupling), NO_BIT_CHOICES, None
    if options.bits is not None:
        graph, samples, progress = coupling.graph, context.calibration, context.progress
        choices = measure_bit_choices(graph, options.bits, samples, model or context.cost, progress)
        utility = measure_losses(coupling, ranked, samples, progress)
        costs = with_bit_costs(costs, coupling, choices)
    device = None if model is None else Device(coupling, ranked, model, options.budget, choices=choices)
    allocation = allocate(ranked, costs, options, device=device, utility=utility, choices=choices)
    return allocation, None if utility is None else Joint(choices, utility, allocation)


def _figures(verified: Verified) -> dict[str, Cell]:
    return {
        "masked_error": verified.outputs,
        "masked_error_of_values": verified.values,
        "masked_change": verified.change,
    }


def _held(coupling: Coupling, options: PruneOptions, context: Context) -> np.ndarray:
    """The units of output channels of layers in `keep`."""
    held = np.zeros(coupling.count, dtype=bool)
    for node in coupling.graph.nodes:
        if context.selects_any(options.keep, node.source):
            for axis in (axis for value in node.outputs for axis in coupling.axes(value)):
                units = coupling.on_axis(axis)
                held[units[units != STAYS]] = True
    return held


def _may_go(coupling: Coupling, options: PruneOptions) -> np.ndarray:
    """The units that may be removed individually, at this granularity."""
    if "channels" in options.granularity:
        return np.ones(coupling.count, dtype=bool)
    heads = coupling.head_groups if "heads" in options.granularity else np.zeros(coupling.count, dtype=bool)
    return np.asarray(heads[coupling.groups], dtype=bool)


def _random_inputs(graph: Graph, seed: int) -> list[Tensor]:
    """Normal floats, and integers that are row indices of the tables in which they are looked up."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for value in graph.inputs:
        if value.type.dtype.is_floating:
            x = torch.randn(value.type.shape, generator=generator)
        elif value.type.dtype is DType.BOOL:
            x = torch.ones(value.type.shape)
        else:
            rows = [
                n.operand("weight").type.shape[0]
                for n in graph.users.get(value.name, ())
                if isinstance(n.op, Embedding)
            ]
            x = torch.randint(0, min(rows, default=2), value.type.shape, generator=generator)
        inputs.append(x.to(value.type.dtype.torch))
    return inputs


def _repaired(
    kept: Kept, cut: Graph, options: PruneOptions, context: Context
) -> tuple[Graph, dict[str, Cell]]:
    """The cut graph after the requested repairs, and the outputs' error before and after each."""
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
