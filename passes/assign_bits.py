"""The pass `assign_bits`: bits of weights and activations for each layer, from sensitivity, within a budget.

    measure   what each width of each layer would add to the loss (`sensitivity`)
    cost      what each width of each layer takes (`bits.costs`)
    solve     the integer program over both (`bits.program`)
    predict   what the chosen mix really takes on the target; where that is over the budget, the program is corrected
    refine    what whole mixes really lose; where another one near loses less, it is taken (`bits.refine`)

The graph stays as it is; the decision goes to `quantize`, and into a file that can be pasted into its `layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations

from ..ir import Graph
from ..specs.options import AssignBitsOptions, LayerPrecision, SensitivityMethod
from .base import Context, Cost, CostModel, PassResult, register
from .bits.costs import BYTE, BitCosts, bit_costs, bit_layers, precisions
from .bits.loss import MixLoss, mean_and_error
from .bits.program import LOSS, Assignment, BitProgram, Choice, LayerChoices, Limit, front, solve_bits
from .bits.refine import Tried, best_of, priced, refine, spread, uniform, widths_of
from .bits.report import Decided, report_of
from .calibrate import Batch
from .errors import InfeasibleError, MissingNeedError, PassError
from .sensitivity import SensitivityTable, digest_of, measure_sensitivity

ROUNDS = 8
_FEW_OUTPUTS = 64  # for so many, curvature costs no more than divergence
_OF_TARGET = ("flash", "cycles", "ram")


@register(AssignBitsOptions)
def assign_bits(graph: Graph, options: AssignBitsOptions, context: Context) -> PassResult:
    """The graph as it is, with the bits of its layers; InfeasibleError where no bits meet the budget."""
    samples = context.calibration[: options.samples]
    notes: list[str] = []
    model = _model(graph, options, context, notes)
    patterns = options.keep
    kept = {
        n.source.module for n in graph.nodes if any(context.selects(p, n.source.module) for p in patterns)
    }
    layers = bit_layers(graph, options.weights, options.activations, kept, model)
    absent = sorted(set(options.weights) - {w for layer in layers for w in layer.weights})
    if absent:
        notes.append(f"no layer can have weights of {', '.join(map(str, absent))} bits on the target")
    table = _sensitivity(graph, options, context, samples, notes)
    costs = bit_costs(graph, layers, model, options.latency)
    program = make_program(costs, table, _limits(options, costs))
    objective = LOSS if options.budget.loss is None else options.minimize

    def decision(solved: Assignment) -> dict[str, LayerPrecision]:
        return precisions(layers, widths_of(solved), says_activations=set(options.activations) != {BYTE})

    predict = None if model is None else lambda solved: model.predict(graph, layers=decision(solved))
    try:
        optimum, cost = _meet(program, objective, predict)
    except InfeasibleError as err:
        raise InfeasibleError("; ".join([str(err), *notes])) from err
    rounds_activations = len(set(options.activations)) > 1
    tried: tuple[Tried, ...] = ()
    solved = optimum
    loss = MixLoss.on(graph, samples, rounds_activations=rounds_activations)
    if options.refine and objective == LOSS:
        few = [samples[i] for i in spread(samples)]
        near = MixLoss.on(graph, few, rounds_activations=rounds_activations)
        starts = _starts(graph, options, few, costs, program, optimum)
        tried = refine(
            _corrected(program, optimum, cost), starts, loss, near=near, fits=_fits(program, predict)
        )
        solved = replace(best_of(tried).mix, gap=optimum.gap)
        cost = cost if predict is None else predict(solved)
    resource = next((limit.resource for limit in program.limits if limit.resource != LOSS), options.minimize)
    decided = Decided(
        costs,
        table,
        program,
        solved,
        cost,
        decision(solved),
        front(program, resource) if objective == LOSS else front(replace(program, limits=()), resource),
        resource,
        mean_and_error(loss.of(widths_of(solved))),
        tried,
        (*notes, *table.notes),
    )
    return PassResult(graph, report_of(decided), decided.layers)


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
                    f"the sensitivity table has no score of {layer.name} at {w} bits; measure again"
                )
            loss = weights[layer.name, w] + activations.get((layer.name, a), 0.0)
            choices.append(Choice(w, a, loss, costs.amounts[layer.name, (w, a)]))
        items.append(LayerChoices(layer.name, tuple(choices)))
    return BitProgram(tuple(items), tuple(limits), costs.ties)


def _model(graph: Graph, options: AssignBitsOptions, context: Context, notes: list[str]) -> CostModel | None:
    """The cost model where it can carry the graph, or must."""
    needed = [name for name in _OF_TARGET if getattr(options.budget, name) is not None]
    if options.budget.loss is not None and options.minimize in _OF_TARGET:
        needed.append(options.minimize)
    if context.cost is None:
        if needed:
            raise PassError(
                f"the target has no costs of {needed[0]}; give a budget of weights or bit_operations"
            )
        return None
    try:
        context.cost.predict(graph)
    except PassError as err:
        if needed:
            raise
        notes.append(f"costs on the target are left out: {err}")
        return None
    return context.cost


def _sensitivity(
    graph: Graph,
    options: AssignBitsOptions,
    context: Context,
    samples: Sequence[Batch],
    notes: list[str],
) -> SensitivityTable:
    """The table that the spec names, where it fits graph and samples, or a new one."""
    if options.labels and not context.labels:
        raise MissingNeedError('"labels: true" needs labels of the calibration data in the spec')
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
            f"{options.table.name} is of another graph, method or data: sensitivity was measured anew"
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


def _limits(options: AssignBitsOptions, costs: BitCosts) -> list[Limit]:
    """The budget in amounts."""
    budget, limits = options.budget, []
    for name in ("weights", "bit_operations", "flash", "cycles"):
        given = getattr(budget, name)
        if given is not None:
            most = given * costs.whole[name] if isinstance(given, float) else float(given)
            limits.append(Limit(name, most, costs.fixed[name]))
    if budget.latency is not None:
        limits.append(Limit("latency", budget.latency))
    if budget.ram is not None:
        limits += [Limit(n, float(budget.ram), f) for n, f in costs.fixed.items() if n.startswith("ram")]
    if budget.loss is not None:
        limits.append(Limit(LOSS, budget.loss))
    return limits


@dataclass(frozen=True)
class _Excess:
    """By how much a prediction of a mix differs from what the program takes it to be, for one limit."""

    limit: Limit
    over: float
    error: float


Predict = Callable[[Assignment], Cost]


def _starts(
    graph: Graph,
    options: AssignBitsOptions,
    samples: Sequence[Batch],
    costs: BitCosts,
    program: BitProgram,
    optimum: Assignment,
) -> Iterator[tuple[str, Assignment]]:
    """Mixes to start from: the optimum, those under other scores where these are cheap, and the uniform ones."""
    yield f"optimum of {options.sensitivity}", optimum
    wide = sorted(set(options.activations)) if len(set(options.activations)) > 1 else []
    methods: list[SensitivityMethod] = ["kl"] if wide else ["kl", "hawq_v2"]
    if graph.outputs[0].type.numel > _FEW_OUTPUTS:
        methods = []
    for method in methods:
        if method != options.sensitivity:
            table = measure_sensitivity(
                graph,
                samples,
                method=method,
                weight_bits=sorted({*options.weights, BYTE}),
                activation_bits=wide,
            )
            other = solve_bits(make_program(costs, table, program.limits))
            yield f"optimum of {method}", priced(program, other)
    yield from uniform(program)


def _corrected(program: BitProgram, solved: Assignment, cost: Cost | None) -> BitProgram:
    """The program with what is fixed as the prediction of a mix says."""
    if cost is None:
        return program
    errors = [_excess(limit, solved, cost).error for limit in program.limits]
    limits = (replace(x, fixed=x.fixed + e) for x, e in zip(program.limits, errors, strict=True))
    return replace(program, limits=tuple(limits))


def _fits(program: BitProgram, predict: Predict | None) -> Callable[[Assignment], bool]:
    """Whether the prediction of a mix meets all limits; what is not predicted the program itself keeps to."""
    if predict is None:
        return lambda solved: True
    return lambda solved: all(_excess(x, solved, predict(solved)).over <= 0 for x in program.limits)


def _meet(program: BitProgram, objective: str, predict: Predict | None) -> tuple[Assignment, Cost | None]:
    """The best mix whose prediction meets the budget.

    Code that several layers share is not known to the program, which corrects itself by what a mix is predicted to
    take. Where that leads nowhere, each set of widths is tried by itself: the code that it needs is nearly a constant.
    """
    if predict is None:
        return solve_bits(program, objective=objective), None
    try:
        return _meet_within(program, objective, predict)
    except InfeasibleError as err:
        found = []
        for part in _parts(program):
            with suppress(InfeasibleError):
                found.append(_meet_within(part, objective, predict))
        if not found:
            raise err
        return min(found, key=lambda pair: pair[0].amount(objective))


def _meet_within(program: BitProgram, objective: str, predict: Predict) -> tuple[Assignment, Cost]:
    """Solve, predict the mix, and solve again with what the program did not know until the prediction fits."""
    for _ in range(ROUNDS):
        solved = solve_bits(program, objective=objective)
        cost = predict(solved)
        found = [_excess(limit, solved, cost) for limit in program.limits]
        if all(excess.over <= 0 for excess in found):
            return solved, cost
        limits = (replace(e.limit, fixed=e.limit.fixed + e.error) if e.over > 0 else e.limit for e in found)
        program = replace(program, limits=tuple(limits))
    missed = "; ".join(f"{e.limit.resource} by {e.over:,.0f}" for e in found if e.over > 0)
    raise InfeasibleError(f"no mix was found whose prediction meets the budget; the last one misses {missed}")


def _parts(program: BitProgram) -> Iterator[BitProgram]:
    """The program with fewer widths of weights; layers that have none of them keep all they have."""
    widths = sorted({choice.weights for item in program.layers for choice in item.choices})
    for count in range(1, len(widths)):
        for allowed in combinations(widths, count):
            items = []
            for item in program.layers:
                left = tuple(choice for choice in item.choices if choice.weights in allowed)
                items.append(replace(item, choices=left or item.choices))
            yield replace(program, layers=tuple(items))


def _excess(limit: Limit, solved: Assignment, cost: Cost) -> _Excess:
    real = {"flash": cost.flash_bytes, "cycles": cost.cycles}.get(limit.resource)
    if limit.resource.startswith("ram"):
        real = cost.arena_bytes
    taken = solved.amount(limit.resource) + limit.fixed
    return _Excess(limit, 0.0, 0.0) if real is None else _Excess(limit, real - limit.most, real - taken)
