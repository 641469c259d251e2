"""Budgets of flash, RAM, cycles and instructions on the target.

The integer program needs costs as polynomials. In each round they are fitted to the cost model's prediction for the
present network, so that they are exact there, and the program is solved again:

    cycles, instructions   of each layer in proportion to its multiply-accumulates
    flash                  in proportion to all parameters, plus code
RAM                    at each step of the schedule, the sum of the live blocks, each in proportion to the value in it

If bit widths are free, each width of a layer has its own cycles and flash.

A round may miss the budget if a kernel changes with the number of channels; then the next one has a lower aim.
Channels and bits are restored to the best network within the budget, by the cost model itself, as long as it meets the
budget. If no round finds one, the networks that were found are reduced until they fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ir import Graph
from ...ir.coupling import Coupling
from ...ir.cutting import cut_graph
from ...specs.options import PruneBudget
from ..assign_bits.bit_costs import BYTE, BitLayer
from ..base import Cost, CostModel, limits_of_target
from ..errors import InfeasibleError, PassError
from .bit_choices import BYTES, NO_BIT_CHOICES, BitChoices
from .channel_costs import NO_BITS, Bits, Costs, Term, element_term, layer_terms, with_terms
from .channel_program import ROUNDING, Solution, Utility, solve
from .ranking import Ranked

ROUNDS = 10
FULL = 0.98  # stop once 98 % of a limit is used: channel granularity rarely allows more
FLASH_RESERVE = 0.04  # share of the limit: the linked size may exceed the prediction by as much
_RESERVED = f" less {100 * FLASH_RESERVE:g} % that a prediction may miss"
REFINEMENTS = 48  # largest number of predictions for restored channels
_MARGIN = 0.985
_HALVINGS = 6


class Device:
    """Predicted cost of pruned candidates, and their `limits`; `aims` leave room for prediction errors."""

    def __init__(
        self,
        coupling: Coupling,
        ranked: Ranked,
        costs: CostModel,
        budget: PruneBudget,
        *,
        choices: BitChoices = NO_BIT_CHOICES,
    ) -> None:
        self._coupling, self._ranked, self._costs, self._choices = coupling, ranked, costs, choices
        self._known: dict[tuple[bytes, tuple[tuple[str, int], ...]], Cost] = {}
        self._cut: tuple[bytes, Graph] | None = None
        self._layers = layer_terms(coupling)
        self._values = {v.name: v for node in coupling.graph.nodes for v in node.outputs}
        self.limits = _limits(budget, costs, self.measure(ranked.sizes, choices.uniform(BYTE)))
        self.aims = {n: limit * (1 - FLASH_RESERVE * (n == "flash")) for n, limit in self.limits.items()}

    def cost(self, kept: np.ndarray, bits: Bits = NO_BITS) -> Cost:
        """The predicted cost with `kept[g]` units of group g and these bits for layers with free bit widths."""
        key = kept.tobytes(), tuple(sorted(bits.items()))
        if key not in self._known:
            if self._cut is None or self._cut[0] != key[0]:
                self._cut = key[0], cut_graph(self._coupling.kept(self._ranked.removed(kept)))
            self._known[key] = self._costs.predict(self._cut[1], layers=self._choices.precisions(bits))
        return self._known[key]

    def measure(self, kept: np.ndarray, bits: Bits = NO_BITS) -> dict[str, float]:
        """The predicted cost by the names of the budget."""
        return _measured(self.cost(kept, bits))

    def fits(self, kept: np.ndarray, bits: Bits = NO_BITS) -> bool:
        """True if every limit holds."""
        return self.use(kept, bits) <= 1.0

    def use(self, kept: np.ndarray, bits: Bits = NO_BITS) -> float:
        """Utilization of the scarcest resource."""
        measured = self.measure(kept, bits)
        return max(measured[name] / aim for name, aim in self.aims.items())

    def least(self, fewest: np.ndarray) -> dict[str, float]:
        """Minimum of each resource: smallest network, at the cheapest bit width."""
        widths = self._choices.widths or (BYTE,)
        measured = [self.measure(fewest, self._choices.uniform(width)) for width in widths]
        return {name: min(found[name] for found in measured) for name in self.limits}

    def missed(self, fewest: np.ndarray) -> list[str]:
        """The limits that even the smallest network exceeds, with the difference."""
        least = self.least(fewest)
        return [
            f"{name}: the smallest network takes {least[name]:,.0f}, the budget is {limit:,.0f}"
            f"{_RESERVED if name == 'flash' else ''}, {least[name] - self.aims[name]:,.0f} too much"
            for name, limit in self.limits.items()
            if least[name] > self.aims[name]
        ]

    def fitted(
        self, costs: Costs, at: np.ndarray, bits: Bits = NO_BITS
    ) -> tuple[Costs, dict[str, tuple[str, ...]]]:
        """The polynomials `costs` with those of the limited resources, exact at `at`; the rows of each resource."""
        rows: dict[str, dict[str, list[Term]]] = {}
        for name in self.limits:
            if name == "ram":
                rows[name] = self._ram(costs, at, bits)
            else:
                terms = self._flash(costs) if name == "flash" else self._time(costs, at, bits, name)
                taken = with_terms(costs, self._coupling, {name: terms}).evaluate(name, at, bits)
                rows[name] = {name: [*terms, Term(self.measure(at, bits)[name] - taken, ())]}
        terms_of = {row: found for by_row in rows.values() for row, found in by_row.items()}
        fitted = with_terms(costs, self._coupling, terms_of)
        return fitted, {name: tuple(found) for name, found in rows.items()}

    def _time(self, costs: Costs, at: np.ndarray, bits: Bits, name: str) -> list[Term]:
        """Cycle terms of each layer in proportion to its multiply-accumulates, per bit width if that is free."""
        bases = with_terms(costs, self._coupling, self._layers)
        macs = {module: bases.evaluate(module, at) for module in self._layers}
        layers = {module: layer for layer in self._choices.layers for module in layer.modules}
        spent = self._spent(at, bits, name)
        terms: list[Term] = []
        for module, found in self._layers.items():
            if macs[module] > 0 and module not in layers:
                terms += _scaled(found, spent[module] / macs[module])
        for width in self._choices.widths:
            spent = self._spent(at, self._choices.uniform(width), name)
            for module, layer in layers.items():
                if macs.get(module, 0.0) > 0 and width in layer.weights:
                    share = spent[module] / macs[module]
                    terms += _scaled(self._layers[module], share, when=(layer.name, width))
        return terms

    def _spent(self, at: np.ndarray, bits: Bits, name: str) -> Mapping[str, float]:
        """Cycles or instructions of each module."""
        spent: dict[str, float] = defaultdict(float)
        for node in self.cost(at, bits).nodes:
            spent[node.module] += getattr(node, name)
        return spent

    def _flash(self, costs: Costs) -> list[Term]:
        """Proportional to parameters, fitted to the whole network and half of it; layers with free bit widths at each
        width.
        """
        sizes, half = self._whole_and_half
        if self._choices.layers:
            return [t for layer in self._choices.layers for t in self._flash_of(layer, costs)]
        saved = costs.evaluate("params", sizes) - costs.evaluate("params", half)
        whole, halved = (self.cost(kept).flash_bytes for kept in (sizes, half))
        per_parameter = max(whole - halved, 0) / saved if saved > 0 else 1.0
        return _scaled(costs.terms["params"], per_parameter)

    def _flash_of(self, layer: BitLayer, costs: Costs) -> Iterator[Term]:
        """Flash terms of a layer at each width: proportional to its bytes, and fixed."""
        for width in layer.weights:
            when = (layer.name, width)
            stored = [term for term in costs.terms[BYTES] if term.when == when]
            part = with_terms(costs, self._coupling, {"part": stored})
            size, flash = [], []
            for kept in self._whole_and_half:
                spent = self._spent(kept, self._choices.uniform(width), "flash_bytes")
                flash.append(sum(spent[module] for module in layer.modules))
                size.append(part.evaluate("part", kept, {layer.name: width}))
            slope = max(flash[0] - flash[1], 0.0) / (size[0] - size[1]) if size[0] > size[1] else 1.0
            yield from _scaled(stored, slope, when=when)
            yield Term(flash[0] - slope * size[0], (), when)

    @property
    def _whole_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        sizes = self._ranked.sizes
        return sizes, self._ranked.rounded(np.ceil(sizes / 2))

    def _ram(self, costs: Costs, at: np.ndarray, bits: Bits) -> dict[str, list[Term]]:
        cost = self.cost(at, bits)
        elements = {
            block.value: [element_term(self._coupling, self._values[block.value])]
            for block in cost.arena
            if block.value in self._values
        }
        sizes = with_terms(costs, self._coupling, elements)
        steps = {
            block.first for block in cost.arena
        }  # steps at which a block begins: the peaks are among them
        live = {step: [b for b in cost.arena if b.first <= step <= b.last] for step in steps}
        gaps = cost.arena_bytes - max((sum(b.bytes for b in blocks) for blocks in live.values()), default=0)
        rows: dict[str, list[Term]] = {}
        for step, blocks in live.items():
            terms = [Term(float(gaps), ())]
            for block in blocks:
                count = sizes.evaluate(block.value, at) if block.value in elements else 0.0
                if count > 0:
                    (term,) = elements[block.value]
                    terms.append(Term(term.coefficient * block.bytes / count, term.axes))
                else:
                    terms.append(Term(float(block.bytes), ()))
            rows[f"ram at step {step}"] = terms
        return rows


def budget_of_step(budget: PruneBudget, costs: CostModel, graph: Graph, done: float) -> PruneBudget:
    """The limits after a share `done` of the steps from `graph` to the budget: they decrease geometrically."""
    whole = _measured(costs.predict(graph))
    limits = {
        name: round(whole[name] * min(1.0, limit / whole[name]) ** done)
        for name, limit in _limits(budget, costs, whole).items()
    }
    return budget.model_copy(update={"target": False, **limits})


def allocate_on_device(
    ranked: Ranked, costs: Costs, limits: Mapping[str, float], utility: Utility, device: Device
) -> tuple[Solution, int]:
    """The best network found within `limits` of polynomials and those of the device, and the number of rounds.

    InfeasibleError if no round finds one.
    """
    at, bits, best = ranked.sizes, {name: max(widths) for name, widths in costs.widths.items()}, None
    margin, missed = dict.fromkeys(device.limits, 1.0), list[Solution]()
    for number in range(1, ROUNDS + 1):
        fitted, rows = device.fitted(costs, at, bits)
        bounds = {row: margin[name] * device.aims[name] for name, found in rows.items() for row in found}
        try:
            solution = solve(ranked, fitted, {**limits, **bounds}, utility)
        except PassError:  # also if time ran out
            if number == ROUNDS or np.array_equal(at, ranked.fewest):
                break
            at = np.maximum(ranked.rounded(at / 2), ranked.fewest)
            continue
        again = np.array_equal(solution.kept, at) and solution.bits == bits
        at, bits = solution.kept, dict(solution.bits)
        if device.fits(at, bits):
            if best is None or solution.utility > best.utility:
                best = solution
            if again or device.use(at, bits) >= FULL or _binds(costs, limits, solution, ranked):
                break
            margin = dict.fromkeys(margin, 1.0)
        else:
            missed.append(solution)
            measured = device.measure(at, bits)
            margin = {
                name: share * (_MARGIN if measured[name] > device.aims[name] else 1.0)
                for name, share in margin.items()
            }
    if best is None:
        shrunk = (_shrunk(ranked, costs, limits, utility, device, solution) for solution in missed)
        best = max((x for x in shrunk if x is not None), key=lambda x: x.utility, default=None)
    if best is None:
        raise InfeasibleError(_nearest(ranked, device))
    return _filled(ranked, costs, limits, utility, device, best), number


def _shrunk(
    ranked: Ranked,
    costs: Costs,
    limits: Mapping[str, float],
    utility: Utility,
    device: Device,
    solution: Solution,
) -> Solution | None:
    """A network that is too large, with all groups reduced by the same share until it fits."""
    bits = solution.bits

    def at(share: float) -> np.ndarray:
        kept = np.maximum(ranked.rounded(share * solution.kept), ranked.fewest)
        return np.where(solution.kept == 0, 0, kept)

    def fits(kept: np.ndarray) -> bool:
        return _within(costs, limits, kept, bits) and device.fits(kept, bits)

    if not fits(at(0.0)):
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    kept = at(low)
    value = sum(utility.of(group, int(count)) for group, count in enumerate(kept))
    rounding = costs.evaluate(ROUNDING, kept, bits) if ROUNDING in costs.terms else 0.0
    return replace(solution, kept=kept, utility=value - rounding)


@dataclass(frozen=True)
class _Move:
    """More units of a group, or more bits of a layer: gain in utility, and candidates in order of preference."""

    what: int | str
    gain: float
    tries: Sequence[tuple[np.ndarray, Bits]]


def _filled(
    ranked: Ranked,
    costs: Costs,
    limits: Mapping[str, float],
    utility: Utility,
    device: Device,
    solution: Solution,
) -> Solution:
    """Greedy refinement: spends unused budget on the channels or bit widths with the largest gain."""
    kept, bits = solution.kept, solution.bits
    tries, closed = 0, set[int | str]()
    while tries < REFINEMENTS and device.use(kept, bits) < 1 - (1 - FULL) / 2:
        moves = [m for m in _moves(ranked, costs, utility, kept, bits) if m.what not in closed]
        if not moves:
            break
        move = max(moves, key=lambda found: found.gain)
        for more, wider in move.tries:
            tries += 1
            if _within(costs, limits, more, wider) and device.fits(more, wider):
                kept, bits = more, wider
                break
        else:
            closed.add(move.what)
    return replace(solution, kept=kept, bits=bits)


def _moves(ranked: Ranked, costs: Costs, utility: Utility, kept: np.ndarray, bits: Bits) -> Iterator[_Move]:
    for group in np.flatnonzero((kept > 0) & (kept < ranked.sizes)).tolist():
        count = int(kept[group])
        steps = [kept + step * (np.arange(len(kept)) == group) for step in (1, 1 + ranked.multiple)]
        tries = [(np.where(kept == 0, 0, ranked.rounded(more)), bits) for more in steps]
        yield _Move(group, utility.of(group, count + 1) - utility.of(group, count), tries)
    for layer, widths in costs.widths.items():
        wider = [width for width in widths if width > bits[layer]]
        if wider:
            more = {**bits, layer: min(wider)}
            gain = costs.evaluate(ROUNDING, kept, bits) - costs.evaluate(ROUNDING, kept, more)
            yield _Move(layer, gain, [(kept, more)])


def _within(costs: Costs, limits: Mapping[str, float], kept: np.ndarray, bits: Bits) -> bool:
    """True if limits of polynomials, and of channels, hold."""
    spent = {name: costs.evaluate(name, kept, bits) for name in limits if name in costs.terms}
    return all(spent.get(name, float(kept.sum())) <= limit for name, limit in limits.items())


def _measured(cost: Cost) -> dict[str, float]:
    """A cost by the names of the budget."""
    return {
        "flash": float(cost.flash_bytes),
        "ram": float(cost.arena_bytes),
        "instructions": float(cost.instructions),
        **({} if cost.cycles is None else {"cycles": float(cost.cycles)}),
    }


def _scaled(terms: Sequence[Term], factor: float, *, when: tuple[str, int] | None = None) -> list[Term]:
    return [replace(term, coefficient=term.coefficient * factor, when=when) for term in terms]


def _binds(costs: Costs, limits: Mapping[str, float], solution: Solution, ranked: Ranked) -> bool:
    """True if a limit of a polynomial is nearly used up, or nothing is removed."""
    shares = [
        costs.evaluate(name, solution.kept, solution.bits) / limit
        for name, limit in limits.items()
        if name in costs.terms
    ]
    return np.array_equal(solution.kept, ranked.sizes) or any(share >= FULL for share in shares)


def _nearest(ranked: Ranked, device: Device) -> str:
    least = device.least(ranked.fewest)
    shown = ", ".join(f"{name} {amount:,.0f}" for name, amount in least.items())
    return f"no network within the budget was found; the smallest takes {shown}"


def _limits(budget: PruneBudget, costs: CostModel, whole: Mapping[str, float]) -> dict[str, float]:
    """Each limit in its unit: as given, a share of the whole network's cost, or the target's."""
    limits = limits_of_target(costs) if budget.target else {}
    for name in ("flash", "ram", "cycles", "instructions"):
        given = getattr(budget, name)
        if given is not None:
            if name not in whole:
                raise PassError("the target has no cycle counts; give a budget of `instructions`")
            asked = given * whole[name] if isinstance(given, float) else float(given)
            limits[name] = min(asked, limits.get(name, asked))
    return limits
