"""The pass `assign_bits`: bits of weights and activations for each layer, from sensitivity, within a budget.

    measure   loss increase of each layer at each width (`sensitivity`)
    cost      cost of each layer at each width (`bit_costs`)
    solve     the integer program over both (`bit_program`)
    predict   cost of the chosen mix on the target; if it exceeds the budget, the program is corrected

The nodes are unchanged; the graph stores the chosen bits as its `precisions`, which `quantize` reads. A file has them
in the form of the option `layers` of `quantize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir import Graph, Precision
from ...specs.options import AssignBitsOptions
from ..base import Context, CostModel, PassResult, limits_of_target, register
from ..calibration.calibrate import Batch
from ..errors import InfeasibleError, MissingNeedError, PassError
from ..sensitivity import SensitivityTable, digest_of, measure_sensitivity
from .bit_costs import BYTE, BitCosts, BitLayer, bit_costs, bit_layers, precisions
from .bit_program import LOSS, Assignment, BitProgram, Choice, LayerChoices, Limit, front
from .bit_report import Decided, report_of
from .mix_loss import mean_and_error, mix_losses
from .prediction import meet

_OF_TARGET = ("flash", "instructions", "cycles", "ram")


@register(AssignBitsOptions)
def assign_bits(graph: Graph, options: AssignBitsOptions, context: Context) -> PassResult:
    """The graph with bit widths for its layers; InfeasibleError if no bit widths meet the budget."""
    samples = context.calibration[: options.samples]
    notes: list[str] = []
    model = _model(graph, options, context, notes)
    layers = _layers(graph, options, context, model, notes)
    table = _sensitivity(graph, options, context, samples, notes)
    costs = bit_costs(graph, layers, model, options.latency)
    program = make_program(costs, table, _limits(options, costs, model))
    objective = LOSS if options.budget.loss is None else options.minimize

    def decision(solved: Assignment) -> dict[str, Precision]:
        return precisions(layers, solved.widths, says_activations=set(options.activations) != {BYTE})

    predict = None if model is None else lambda solved: model.predict(graph, layers=decision(solved))
    try:
        solved, cost = meet(program, objective, predict)
    except InfeasibleError as err:
        raise InfeasibleError("; ".join([err.message, *notes])) from err
    resource = next((limit.resource for limit in program.limits if limit.resource != LOSS), options.minimize)
    several = len(set(options.activations)) > 1
    decided = Decided(
        costs,
        table,
        program,
        solved,
        cost,
        decision(solved),
        front(program, resource) if objective == LOSS else front(replace(program, limits=()), resource),
        resource,
        mean_and_error(mix_losses(graph, samples, solved.widths, rounds_activations=several)),
        (*notes, *table.notes),
    )
    return PassResult(graph.with_precisions(decided.layers), report_of(decided))


def _layers(
    graph: Graph, options: AssignBitsOptions, context: Context, model: CostModel | None, notes: list[str]
) -> tuple[BitLayer, ...]:
    """The layers with their allowed widths; those in `keep` have 8 bits."""
    kept = {n.source.module for n in graph.nodes if context.selects_any(options.keep, n.source)}
    layers = bit_layers(graph, options.weights, options.activations, kept, model)
    absent = sorted(set(options.weights) - {w for layer in layers for w in layer.weights})
    if absent:
        notes.append(f"no layer can have weights of {', '.join(map(str, absent))} bits on the target")
    return layers


def make_program(costs: BitCosts, table: SensitivityTable, limits: Sequence[Limit]) -> BitProgram:
    """The program over the widths of all layers; the loss of a layer is that of its weights and of its operand."""
    weights, activations = (
        {(s.layer, s.bits): s.loss for s in table.scores if s.kind == kind}
        for kind in ("weight", "activation")
    )
    items = []
    for layer in costs.layers:
        choices = []
        for w, a in layer.widths:
            if (layer.name, w) not in weights:
                raise PassError(
                    f"the sensitivity table has no score of {layer.name} at {w} bits; measure it again"
                )
            loss = weights[layer.name, w] + activations.get((layer.name, a), 0.0)
            choices.append(Choice(w, a, loss, costs.amounts[layer.name, (w, a)]))
        items.append(LayerChoices(layer.name, tuple(choices)))
    return BitProgram(tuple(items), tuple(limits), costs.ties)


def _model(graph: Graph, options: AssignBitsOptions, context: Context, notes: list[str]) -> CostModel | None:
    """The cost model if it supports the graph, or if the budget requires it."""
    needed = [
        name for name in _OF_TARGET if getattr(options.budget, name) is not None or options.budget.target
    ]
    if options.budget.loss is not None and options.minimize in _OF_TARGET:
        needed.append(options.minimize)
    if context.cost is None:
        if needed:
            raise PassError(
                f"the target has no cost prediction of {needed[0]}; give a budget of weights or bit_operations"
            )
        return None
    try:
        cost = context.cost.predict(graph)
    except PassError as err:
        if needed:
            raise
        notes.append(f"costs on the target are omitted: {err.message}")
        return None
    if "cycles" in needed and cost.cycles is None:
        raise PassError("the target has no cycle counts; give a budget of `instructions`")
    return context.cost


def _sensitivity(
    graph: Graph,
    options: AssignBitsOptions,
    context: Context,
    samples: Sequence[Batch],
    notes: list[str],
) -> SensitivityTable:
    """The table that the spec names, if it belongs to this graph and these samples, or a new one."""
    if options.labels and not context.labels:
        raise MissingNeedError('"labels: true"', "labels")
    labels = context.labels[: options.samples] if options.labels else ()
    weight_bits = sorted({*options.weights, BYTE})
    activation_bits = sorted(set(options.activations)) if len(set(options.activations)) > 1 else []
    if options.table is not None:
        try:
            table = SensitivityTable.from_json(options.table.read_text())
        except OSError as err:
            raise PassError(f"{options.table}: {err.strerror}") from err
        fits = table.digest == digest_of(graph, samples, labels)
        if fits and table.covers(
            method=options.sensitivity, weight_bits=weight_bits, activation_bits=activation_bits
        ):
            return table
        notes.append(
            f"{options.table.name} is for another graph, method or data: sensitivity was measured again"
        )
    return measure_sensitivity(
        graph,
        samples,
        method=options.sensitivity,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        labels=labels or None,
        progress=context.progress,
    )


def _limits(options: AssignBitsOptions, costs: BitCosts, model: CostModel | None) -> list[Limit]:
    """The budget as limits in absolute units."""
    budget = options.budget
    most = limits_of_target(model) if budget.target and model is not None else {}
    for name in ("weights", "bit_operations", *_OF_TARGET):
        given = getattr(budget, name)
        if given is not None:
            asked = given * costs.whole[name] if isinstance(given, float) else float(given)
            most[name] = min(asked, most.get(name, asked))
    others = {"latency": budget.latency, LOSS: budget.loss}
    most |= {name: limit for name, limit in others.items() if limit is not None}
    steps = [name for name in costs.fixed if name.startswith("ram")]  # steps of the schedule
    return [
        Limit(resource, limit, costs.fixed.get(resource, 0.0))
        for name, limit in most.items()
        for resource in (steps if name == "ram" else [name])
    ]
