"""Budgets of flash, RAM, cycles and instructions on the target.

The integer program needs costs as polynomials. Round for round they are fitted to what the cost model predicts of the
network at hand, so that they are exact there, and the program is solved anew:

    cycles, instructions   of each layer in proportion to its multiply-accumulates
    flash                  in proportion to all parameters, plus code
    RAM                    at each step of the schedule, the sum of the blocks that live, each in proportion to
                           the value that lies there

A round may go wrong where a kernel changes with the number of channels; then the next one aims lower. To the best
network that the cost model itself finds within the budget, channels are given back as long as it stays there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...ir import Graph
from ...ir.coupling import Coupling
from ...ir.cutting import cut_graph
from ...specs.options import PruneBudget
from ..base import Cost, CostModel
from ..errors import PassError
from .cost import Costs, Term, element_term, layer_terms, with_terms
from .program import InfeasibleError, Solution, solve
from .ranking import Ranked

ROUNDS = 10
FULL = 0.98  # of a limit: nearer the numbers of channels hardly come
FLASH_RESERVE = 0.04  # of its limit: what is linked may be larger than predicted by as much
REFINEMENTS = 48  # predictions, at most, for channels that are given back
_MARGIN = 0.985


class Device:
    """What cut networks take on the target, and what they may: `limits`, and `aims` that leave room for errors."""

    def __init__(self, coupling: Coupling, ranked: Ranked, costs: CostModel, budget: PruneBudget) -> None:
        self._coupling, self._ranked, self._costs = coupling, ranked, costs
        self._known: dict[bytes, Cost] = {}
        self._layers = layer_terms(coupling)
        self._values = {v.name: v for node in coupling.graph.nodes for v in node.outputs}
        self.limits = _limits(budget, costs, self.measure(ranked.sizes))
        self.aims = {n: limit * (1 - FLASH_RESERVE * (n == "flash")) for n, limit in self.limits.items()}

    def cost(self, kept: np.ndarray) -> Cost:
        """The predicted cost of the network of which `kept[g]` units of group g stay."""
        key = kept.tobytes()
        if key not in self._known:
            cut = cut_graph(self._coupling.kept(self._ranked.removed(kept)))
            self._known[key] = self._costs.predict(cut)
        return self._known[key]

    def measure(self, kept: np.ndarray) -> dict[str, float]:
        """The predicted cost by the budget's names."""
        return _measured(self.cost(kept))

    def fits(self, kept: np.ndarray) -> bool:
        """Whether every limit holds."""
        return self.use(kept) <= 1.0

    def use(self, kept: np.ndarray) -> float:
        """How much of the scarcest resource is taken."""
        measured = self.measure(kept)
        return max(measured[name] / aim for name, aim in self.aims.items())

    def missed(self, fewest: np.ndarray) -> list[str]:
        """The limits that even the smallest network exceeds, and by how much."""
        measured = self.measure(fewest)
        return [
            f"{name}: the smallest network takes {measured[name]:,.0f}, the budget is {limit:,.0f}, "
            f"{measured[name] - self.aims[name]:,.0f} too much"
            for name, limit in self.limits.items()
            if measured[name] > self.aims[name]
        ]

    def fitted(self, costs: Costs, at: np.ndarray) -> tuple[Costs, dict[str, tuple[str, ...]]]:
        """The polynomials `costs` with those of the limited resources, exact at `at`; the rows of each resource."""
        rows: dict[str, dict[str, list[Term]]] = {}
        for name in self.limits:
            if name == "flash":
                rows[name] = {name: self._flash(costs, at)}
            elif name == "ram":
                rows[name] = self._ram(costs, at)
            else:
                rows[name] = {name: self._time(costs, at, name)}
        terms = {row: found for by_row in rows.values() for row, found in by_row.items()}
        return with_terms(costs, self._coupling, terms), {name: tuple(found) for name, found in rows.items()}

    def _time(self, costs: Costs, at: np.ndarray, name: str) -> list[Term]:
        spent: dict[str, float] = defaultdict(float)
        for node in self.cost(at).nodes:
            spent[node.module] += getattr(node, name)
        bases = with_terms(costs, self._coupling, self._layers)
        terms, rest = [], float(getattr(self.cost(at), name))
        for layer, found in self._layers.items():
            macs = bases.evaluate(layer, at)
            if macs > 0:
                rest -= spent[layer]
                terms += [Term(t.coefficient * spent[layer] / macs, t.axes) for t in found]
        return [*terms, Term(rest, ())]

    def _flash(self, costs: Costs, at: np.ndarray) -> list[Term]:
        sizes = self._ranked.sizes
        half = self._ranked.rounded(np.ceil(sizes / 2))
        saved = costs.evaluate("params", sizes) - costs.evaluate("params", half)
        whole, halved = self.cost(sizes).flash_bytes, self.cost(half).flash_bytes
        per_parameter = max(whole - halved, 0) / saved if saved > 0 else 1.0
        rest = self.cost(at).flash_bytes - per_parameter * costs.evaluate("params", at)
        terms = [Term(per_parameter * t.coefficient, t.axes) for t in costs.terms["params"]]
        return [*terms, Term(rest, ())]

    def _ram(self, costs: Costs, at: np.ndarray) -> dict[str, list[Term]]:
        cost = self.cost(at)
        elements = {
            block.value: [element_term(self._coupling, self._values[block.value])]
            for block in cost.arena
            if block.value in self._values
        }
        sizes = with_terms(costs, self._coupling, elements)
        steps = {block.first for block in cost.arena}  # where something begins: the peaks are among them
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
    """The limits when a share `done` of the steps from `graph` to the budget is made: they fall geometrically."""
    whole = _measured(costs.predict(graph))
    limits = {
        name: round(whole[name] * min(1.0, limit / whole[name]) ** done)
        for name, limit in _limits(budget, costs, whole).items()
    }
    return budget.model_copy(update={"target": False, **limits})


def allocate_on_device(
    ranked: Ranked, costs: Costs, limits: Mapping[str, float], device: Device
) -> tuple[Solution, int]:
    """The best network found that keeps to `limits` of polynomials and to those of the device; how many rounds it took.

    PassError where no round finds one.
    """
    at, best, margin = ranked.sizes, None, dict.fromkeys(device.limits, 1.0)
    for number in range(1, ROUNDS + 1):
        fitted, rows = device.fitted(costs, at)
        bounds = {row: margin[name] * device.aims[name] for name, found in rows.items() for row in found}
        try:
            solution = solve(ranked, fitted, {**limits, **bounds})
        except InfeasibleError:
            if number == ROUNDS or np.array_equal(at, ranked.fewest):
                break
            at = np.maximum(ranked.rounded(at / 2), ranked.fewest)
            continue
        again, at = np.array_equal(solution.kept, at), solution.kept
        if device.fits(at):
            if best is None or solution.worth > best.worth:
                best = solution
            if again or device.use(at) >= FULL or _binds(costs, limits, at, ranked):
                break
            margin = dict.fromkeys(margin, 1.0)
        else:
            measured = device.measure(at)
            margin = {
                name: share * (_MARGIN if measured[name] > device.aims[name] else 1.0)
                for name, share in margin.items()
            }
    if best is None:
        raise PassError(_nearest(ranked, device))
    return replace(best, kept=_filled(ranked, costs, limits, device, best.kept)), number


def _filled(
    ranked: Ranked, costs: Costs, limits: Mapping[str, float], device: Device, kept: np.ndarray
) -> np.ndarray:
    """Channels given back where there is room, to the group first that gains the most; by one or two multiples."""
    tries, closed = 0, set(np.flatnonzero((kept == 0) | (kept == ranked.sizes)).tolist())
    while tries < REFINEMENTS and len(closed) < len(kept) and device.use(kept) < 1 - (1 - FULL) / 2:
        group = max(set(range(len(kept))) - closed, key=lambda g: _gain(ranked, kept, g))
        for step in (1, 1 + ranked.multiple):
            more = kept.copy()
            more[group] += step
            more = np.where(kept == 0, 0, ranked.rounded(more))
            tries += 1
            if all(costs.evaluate(n, more) <= limit for n, limit in limits.items() if n in costs.terms) and (
                float(more.sum()) <= limits.get("channels", np.inf) and device.fits(more)
            ):
                kept = more
                break
        else:
            closed.add(group)
        if kept[group] == ranked.sizes[group]:
            closed.add(group)
    return kept


def _gain(ranked: Ranked, kept: np.ndarray, group: int) -> float:
    """What one more unit of a group is worth, as the integer program counts it."""
    values = np.maximum(ranked.values[group], 1e-9)
    return float(ranked.weights[group] * np.log1p(values[kept[group]] / values[: kept[group]].sum()))


def _measured(cost: Cost) -> dict[str, float]:
    """A cost by the budget's names."""
    return {
        "flash": float(cost.flash_bytes),
        "ram": float(cost.arena_bytes),
        "cycles": float(cost.cycles),
        "instructions": float(cost.instructions),
    }


def _binds(costs: Costs, limits: Mapping[str, float], at: np.ndarray, ranked: Ranked) -> bool:
    """Whether a limit of a polynomial is nearly used up, or nothing is cut."""
    shares = [costs.evaluate(name, at) / limit for name, limit in limits.items() if name in costs.terms]
    return np.array_equal(at, ranked.sizes) or any(share >= FULL for share in shares)


def _nearest(ranked: Ranked, device: Device) -> str:
    measured = device.measure(ranked.fewest)
    least = ", ".join(f"{name} {measured[name]:,.0f}" for name in device.limits)
    return f"no network within the budget was found; the smallest takes {least}"


def _limits(budget: PruneBudget, costs: CostModel, whole: Mapping[str, float]) -> dict[str, float]:
    """Each limit in its unit: as given, a share of what the whole network takes, or the target's."""
    limits: dict[str, float] = {}
    if budget.target:
        of_target = {"flash": costs.flash_limit, "ram": costs.ram_limit}
        limits = {name: float(limit) for name, limit in of_target.items() if limit is not None}
        if not limits:
            raise PassError(
                "the budget is the target's, which has neither flash nor ram; give them under `target`"
            )
    for name in ("flash", "ram", "cycles", "instructions"):
        given = getattr(budget, name)
        if given is not None:
            asked = given * whole[name] if isinstance(given, float) else float(given)
            limits[name] = min(asked, limits.get(name, asked))
    return limits
