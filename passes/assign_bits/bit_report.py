"""Report of `assign_bits`: decision and alternatives of each layer, Pareto front, reusable files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...ir import Precision
from ..base import Cost
from ..report import Cell, Decision, PassReport, Table
from ..sensitivity import SensitivityTable
from .bit_costs import BitCosts, BitLayer
from .bit_picture import FrontPicture, Mix
from .bit_program import LOSS, Assignment, BitProgram, Choice

BITS_FILE, TABLE_FILE, FRONT_FILE, PICTURE_FILE = "bits.yaml", "sensitivity.json", "pareto.json", "pareto.svg"
_NAMES = {"weights": "weight bytes", "bit_operations": "bit operations"}
_RESOURCES = ("weights", "bit_operations", "flash", "instructions", "cycles", "latency")


@dataclass(frozen=True)
class Decided:
    """Results of a run of the pass. `cost` is the predicted cost of the mix, `measured` its loss with its error."""

    costs: BitCosts
    table: SensitivityTable
    program: BitProgram
    solved: Assignment
    cost: Cost | None
    layers: Mapping[str, Precision]
    front: tuple[Assignment, ...]
    resource: str
    measured: tuple[float, float]
    notes: tuple[str, ...]


def report_of(decided: Decided) -> PassReport:
    """The report of the pass."""
    return PassReport(
        "assign_bits",
        tuple(_decision(layer, decided) for layer in decided.costs.layers),
        tuple(make(decided) for make in (_bits, _alternatives, _budget, _front, _loss)),
        decided.notes,
        {
            BITS_FILE: bits_yaml(decided.layers).encode(),
            TABLE_FILE: decided.table.to_json().encode(),
            FRONT_FILE: _front_json(decided).encode(),
            PICTURE_FILE: _picture(decided).encode(),
        },
    )


def _decision(layer: BitLayer, decided: Decided) -> Decision:
    """The chosen bit width, with the savings or costs of neighbouring choices."""
    chosen = decided.solved.chosen[layer.name]
    others = [c for c in _choices(layer, decided) if c != chosen]
    reasons = [f"{_bits_text(chosen)}, predicted loss {chosen.loss:.3g}"]
    if not others:
        reasons.append("the only choice")
    for other in sorted(others, key=lambda c: (c.weights, c.activations)):
        reasons.append(
            f"{_bits_text(other)}: {_signed(other.amount('weights') - chosen.amount('weights'))} B of weights"
            + "".join(
                f", {_signed(other.amount(name) - chosen.amount(name))} {name}"
                for name in ("flash", "cycles" if "cycles" in chosen.costs else "instructions")
                if name in chosen.costs
            )
            + f", loss {other.loss - chosen.loss:+.3g}"
        )
    node = layer.nodes[0]
    return Decision("assign_bits", node.outputs[0].name, node.source, True, "; ".join(reasons))


def _bits(decided: Decided) -> Table:
    columns = ("layer", "weight_bits", "activation_bits", "weight_bytes", "loss", "loss_error")
    rows: list[tuple[Cell, ...]] = []
    for layer in decided.costs.layers:
        chosen = decided.solved.chosen[layer.name]
        weights = int(chosen.amount("weights"))
        error = _error(layer, chosen, decided)
        rows.append((layer.name, chosen.weights, chosen.activations, weights, chosen.loss, error))
    return Table("bits", columns, tuple(rows))


def _alternatives(decided: Decided) -> Table:
    """Differences in loss and costs between each width and the chosen one."""
    resources = [name for name in _RESOURCES if name in decided.costs.fixed]
    columns = ("layer", "weight_bits", "activation_bits", "chosen", "loss", "loss_error", "loss_change")
    rows = []
    for layer in decided.costs.layers:
        chosen = decided.solved.chosen[layer.name]
        for choice in _choices(layer, decided):
            row: tuple[Cell, ...] = (
                layer.name,
                choice.weights,
                choice.activations,
                choice == chosen,
                choice.loss,
                _error(layer, choice, decided),
                choice.loss - chosen.loss,
            )
            changes = (choice.amount(name) - chosen.amount(name) for name in resources)
            rows.append((*row, *changes))
    return Table("alternatives", (*columns, *(f"{name}_change" for name in resources)), tuple(rows))


def _budget(decided: Decided) -> Table:
    """Each resource: budget, cost in the program, predicted cost of the assignment, and cost of int8."""
    columns = ("resource", "budget", "program", "predicted", "int8", "gap")
    most = {limit.resource: limit.most for limit in decided.program.limits}
    rows: list[tuple[Cell, ...]] = []
    predicted: dict[str, int | None] = {}
    if decided.cost is not None:
        cost = decided.cost
        predicted = {"flash": cost.flash_bytes, "instructions": cost.instructions, "ram": cost.arena_bytes}
        predicted |= {"cycles": cost.cycles} if cost.cycles is not None else {}
    for name in (*_RESOURCES, "ram"):
        if name not in decided.costs.fixed and name not in predicted:
            continue
        taken = decided.solved.amount(name) + decided.costs.fixed.get(name, 0.0)
        program = taken if name in decided.costs.fixed else None
        whole = decided.costs.whole.get(name)
        rows.append((name, most.get(name), program, predicted.get(name), whole, decided.solved.gap))
    return Table("budget", columns, tuple(rows))


def _front(decided: Decided) -> Table:
    columns = (decided.resource, "loss", "chosen", "weight_bits")
    rows = [
        (
            assignment.amount(decided.resource) + decided.costs.fixed.get(decided.resource, 0.0),
            assignment.loss,
            assignment.chosen == decided.solved.chosen,
            _mix_text(assignment),
        )
        for assignment in decided.front
    ]
    return Table("pareto", columns, tuple(rows))


def _loss(decided: Decided) -> Table:
    measured, error = decided.measured
    row = (decided.solved.loss, measured, error, decided.table.method, decided.table.samples)
    return Table("loss", ("predicted", "measured", "measured_error", "method", "samples"), (row,))


def _choices(layer: BitLayer, decided: Decided) -> tuple[Choice, ...]:
    found = {item.layer: item.choices for item in decided.program.layers}
    return found[layer.name]


def _error(layer: BitLayer, choice: Choice, decided: Decided) -> float:
    """Standard error of a predicted loss: of weights and operand together."""
    wanted = {("weight", choice.weights), ("activation", choice.activations)}
    scores = [s for s in decided.table.scores if s.layer == layer.name and (s.kind, s.bits) in wanted]
    return float(sum(score.error**2 for score in scores) ** 0.5)


def _bits_text(choice: Choice) -> str:
    wide = f" x {choice.activations}" if choice.activations > 8 else ""
    return f"{choice.weights}{wide} bits"


def _signed(amount: float) -> str:
    return f"{amount:+,.0f}"


def _mix_text(assignment: Assignment) -> str:
    counts = Counter(choice.weights for choice in assignment.chosen.values())
    return ", ".join(f"{counts[bits]} x int{bits}" for bits in sorted(counts))


def bits_yaml(layers: Mapping[str, Precision]) -> str:
    """Text for the options of `quantize`; JSON text is YAML."""
    lines = ["layers:"]
    for module, precision in layers.items():
        text = f"int{precision.weights}"
        if precision.activations is not None:
            text = f"{{weights: {text}, activations: int{precision.activations}}}"
        lines.append(f"  {json.dumps(module)}: {text}")
    return "\n".join(lines) + "\n"


def _front_json(decided: Decided) -> str:
    points = [
        {
            decided.resource: assignment.amount(decided.resource)
            + decided.costs.fixed.get(decided.resource, 0.0),
            "loss": assignment.loss,
            "layers": {
                name: {"weights": choice.weights, "activations": choice.activations}
                for name, choice in sorted(assignment.chosen.items())
            },
        }
        for assignment in decided.front
    ]
    return json.dumps({"resource": decided.resource, "points": points}, indent=1) + "\n"


def _picture(decided: Decided) -> str:
    """The front with the chosen mix, and the budget."""
    fixed = decided.costs.fixed.get(decided.resource, 0.0)
    limits = {limit.resource: limit for limit in decided.program.limits}
    limit, loss_limit = limits.get(decided.resource), limits.get(LOSS)

    def mix(assignment: Assignment, name: str = "") -> Mix:
        amount = assignment.amount(decided.resource) + fixed
        return Mix(amount, assignment.loss, name or _mix_text(assignment))

    return FrontPicture(
        _NAMES.get(decided.resource, decided.resource),
        tuple(mix(assignment) for assignment in decided.front),
        mix(decided.solved),
        tuple(mix(assignment, f"all int{bits}") for bits, assignment in _uniform(decided.program)),
        None if limit is None else limit.most,
        None if loss_limit is None else loss_limit.most,
    ).draw()


def _uniform(program: BitProgram) -> Iterator[tuple[int, Assignment]]:
    """Equal weight bits in all layers, with the fewest operand bits, for widths that all layers support."""
    ways = [{c.weights: c for c in sorted(layer.choices, key=_most_activations)} for layer in program.layers]
    for bits in sorted(set.intersection(*(set(way) for way in ways))):
        chosen = {layer.layer: way[bits] for layer, way in zip(program.layers, ways, strict=True)}
        yield bits, Assignment(chosen, sum(choice.loss for choice in chosen.values()), 0.0)


def _most_activations(choice: Choice) -> int:
    return -choice.activations
