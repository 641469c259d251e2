"""The mix that is best where it counts: refined by the measured loss of whole mixes, from the program's optimum.

A predicted loss is a sum over layers. Where bits are few, errors of layers add up to more than that, and by how much
depends on the mix. So the loss of each change of one layer is measured around the present mix, the others rounded as
chosen, and the program is solved again with these conditional losses, within several distances of the present mix. The
best of what it gives, measured as a whole on all samples, is the next one, as long as the loss falls by more than
chance explains: the mean of the differences, sample by sample, lies two standard errors below zero. Without that the
mix would be fitted to the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from ..errors import InfeasibleError
from .costs import Widths
from .loss import MixLoss, mean_and_error
from .program import LOSS, Assignment, BitProgram, Choice, LayerChoices, Limit, solve_bits

SAMPLES = 128
"""Samples on which changes of one layer are measured, at most."""
RUNS = 4
"""Runs over the samples for each width of each layer, at most."""
ERRORS = 2.0
"""Standard errors by which a mix must lose less to be taken."""
NEAR = 0.1
"""Share by which the predicted loss may lie above the least; what is farther lives on errors that happen to cancel."""
_DISTANCES = (1, 2, 3, 4, 6)
_CHANGED, _PREDICTED = "layers changed", "predicted loss"


@dataclass(frozen=True)
class Tried:
    """A mix that was measured: where it is from, its loss for each sample, whether it was the best so far."""

    origin: str
    mix: Assignment
    losses: Tensor
    kept: bool


def widths_of(solved: Assignment) -> dict[str, Widths]:
    """Bits of weights and activations of each layer."""
    return {name: (choice.weights, choice.activations) for name, choice in solved.chosen.items()}


def spread(samples: Sequence[tuple[object, ...]]) -> range:
    """Positions of at most `SAMPLES` of them, evenly apart."""
    return range(0, len(samples), max(-(-len(samples) // SAMPLES), 1))


def uniform(program: BitProgram) -> Iterable[tuple[str, Assignment]]:
    """The mixes of one width of weights that the limits and ties allow; without it, the next narrower one."""
    widths = sorted({choice.weights for item in program.layers for choice in item.choices})
    for bits in widths:
        chosen = {item.layer: _at_most(item.choices, bits) for item in program.layers}
        mix = Assignment(chosen, sum(choice.loss for choice in chosen.values()), 0.0)
        if is_within(program, mix):
            yield f"int{bits}", mix


def is_within(program: BitProgram, mix: Assignment) -> bool:
    """Whether limits and ties hold."""
    for limit in program.limits:
        if mix.amount(limit.resource) + limit.fixed > limit.most * (1 + 1e-9):
            return False
    for tie in program.ties:
        members = [mix.chosen[layer] for layer in tie.layers if layer in mix.chosen]
        if any(getattr(a, tie.kind) != getattr(b, tie.kind) for a, b in pairwise(members)):
            return False
    return True


def refine(
    program: BitProgram,
    starts: Iterable[tuple[str, Assignment]],
    loss: MixLoss,
    *,
    near: MixLoss,
    fits: Callable[[Assignment], bool],
) -> tuple[Tried, ...]:
    """All mixes that were measured, in order; the last one kept is the result.

    `loss` measures whole mixes, `near`, on fewer samples, changes of one layer.
    The first start is the program's optimum; others, and what the program gives, where `fits` says so.
    """
    tried: list[Tried] = []
    most = RUNS * sum(len(item.choices) for item in program.layers)
    for origin, mix in starts:
        _try(tried, origin, mix, loss, fits)
    improved = True
    while improved and near.runs + _alternatives(program) + 1 <= most:
        best = best_of(tried)
        conditional = _conditional(program, best, near)
        distances = [d for d in _DISTANCES if d < len(program.layers)]
        before = len(tried)
        for distance in (*distances, len(program.layers)):
            reach = Limit(_CHANGED, float(distance)), Limit(_PREDICTED, _most_predicted(tried))
            within = replace(conditional, limits=(*conditional.limits, *reach))
            try:
                mix = solve_bits(within)
            except InfeasibleError:  # corrections of shared code may shut out the present mix
                continue
            _try(tried, f"{distance} changes at most", priced(program, mix), loss, fits)
        improved = any(step.kept for step in tried[before:])
    return tuple(tried)


def best_of(tried: Sequence[Tried]) -> Tried:
    """The last one kept."""
    return [step for step in tried if step.kept][-1]


def priced(program: BitProgram, mix: Assignment) -> Assignment:
    """The mix with the losses of `program`."""
    chosen = {
        item.layer: next(c for c in item.choices if _bits(c) == _bits(mix.chosen[item.layer]))
        for item in program.layers
    }
    return Assignment(chosen, sum(choice.amount(LOSS) for choice in chosen.values()), 0.0)


def _try(
    tried: list[Tried], origin: str, mix: Assignment, loss: MixLoss, fits: Callable[[Assignment], bool]
) -> None:
    """Measure a mix unless that was done before."""
    widths = widths_of(mix)
    if any(widths_of(step.mix) == widths for step in tried):
        return
    losses = loss.of(widths)
    kept = not tried or (
        mix.loss <= _most_predicted(tried) and _is_less(losses, best_of(tried).losses) and fits(mix)
    )
    tried.append(Tried(origin, mix, losses, kept))


def _most_predicted(tried: Sequence[Tried]) -> float:
    least = tried[0].mix.loss
    return least + NEAR * abs(least)


def _is_less(losses: Tensor, others: Tensor) -> bool:
    mean, error = mean_and_error(losses - others)
    return mean < -ERRORS * error


def _conditional(program: BitProgram, best: Tried, loss: MixLoss) -> BitProgram:
    """The program around a mix: the loss of a choice is what the mix with it loses more, measured."""
    present = best.mix.chosen
    others = [
        (item.layer, choice)
        for item in program.layers
        for choice in item.choices
        if choice != present[item.layer]
    ]
    measured = loss.around(widths_of(best.mix), [(name, _bits(c)) for name, c in others])
    rises = {(name, *_bits(c)): rise for (name, c), rise in zip(others, measured, strict=True)}
    layers = []
    for item in program.layers:
        choices = []
        for c in item.choices:
            rise = rises.get((item.layer, c.weights, c.activations))
            costs = {**c.costs, _CHANGED: 0.0 if rise is None else 1.0, _PREDICTED: c.loss}
            choices.append(Choice(c.weights, c.activations, rise or 0.0, costs))
        layers.append(LayerChoices(item.layer, tuple(choices)))
    return replace(program, layers=tuple(layers))


def _bits(choice: Choice) -> Widths:
    return choice.weights, choice.activations


def _alternatives(program: BitProgram) -> int:
    return sum(len(item.choices) - 1 for item in program.layers)


def _at_most(choices: Sequence[Choice], bits: int) -> Choice:
    """The widest weights of at most so many bits, the narrowest where all are wider; the least loss among them."""
    widest = max((c.weights for c in choices if c.weights <= bits), default=min(c.weights for c in choices))
    return min((c for c in choices if c.weights == widest), key=lambda c: (c.loss, c.activations))
