"""The integer program over bits: against brute force, under budgets and ties, and its answer if nothing fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpress.passes import PassError
from fxpress.passes.assign_bits.bit_program import (
    BitProgram,
    Choice,
    LayerChoices,
    Limit,
    Tie,
    front,
    solve_bits,
)
from fxpress.passes.errors import InfeasibleError

WIDTHS = (2, 4, 8)
RESOURCES = ("flash", "cycles")


@st.composite
def programs(draw: st.DrawFn) -> BitProgram:
    """Two to five layers, losses over nine orders of magnitude, up to two limits, ties of either kind."""
    names = [f"layer{index}" for index in range(draw(st.integers(2, 5)))]
    has_wide = draw(st.booleans())
    pairs = [(w, a) for w in WIDTHS for a in ((8, 16) if has_wide else (8,))]
    losses = st.integers(-6, 3).map(lambda e: 10.0**e)
    layers = []
    for name in names:
        size, uses = draw(st.integers(1, 50)), draw(st.integers(1, 9))
        layers.append(
            LayerChoices(
                name,
                tuple(
                    Choice(
                        w, a, draw(losses) / w, {"flash": float(size * w), "cycles": float(size * uses * a)}
                    )
                    for w, a in draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=6, unique=True))
                ),
            )
        )
    limits = tuple(
        Limit(resource, float(draw(st.integers(1, 2000))), float(draw(st.integers(0, 20))))
        for resource in draw(st.lists(st.sampled_from(RESOURCES), max_size=2, unique=True))
    )
    kinds = st.sampled_from(("weights", "activations"))
    ties = tuple(
        Tie(draw(kinds), tuple(draw(st.lists(st.sampled_from(names), min_size=2, max_size=3, unique=True))))
        for _ in range(draw(st.integers(0, 2)))
    )
    return BitProgram(tuple(layers), limits, ties)


def feasible(program: BitProgram) -> Iterator[Mapping[str, Choice]]:
    """Every assignment within limits and ties."""
    names = [item.layer for item in program.layers]
    for choices in product(*(item.choices for item in program.layers)):
        chosen = dict(zip(names, choices, strict=True))
        spent = (limit.fixed + sum(c.amount(limit.resource) for c in choices) for limit in program.limits)
        tied = (len({getattr(chosen[layer], tie.kind) for layer in tie.layers}) == 1 for tie in program.ties)
        if all(s <= limit.most for s, limit in zip(spent, program.limits, strict=True)) and all(tied):
            yield chosen


def ladder(name: str, *, size: float, loss: float) -> LayerChoices:
    return LayerChoices(name, tuple(Choice(w, 8, loss * 4.0**-w, {"flash": size * w / 8}) for w in WIDTHS))


TWO_LAYERS = BitProgram((ladder("first", size=80, loss=10.0), ladder("second", size=800, loss=1.0)))


@given(programs())
def test_the_optimum_is_the_one_that_brute_force_finds(program: BitProgram) -> None:
    least = min((sum(c.loss for c in chosen.values()) for chosen in feasible(program)), default=None)
    if least is None:
        with pytest.raises(PassError):
            solve_bits(program)
        return
    solved = solve_bits(program)
    assert solved.loss == pytest.approx(least, rel=1e-5)
    assert dict(solved.chosen) in list(feasible(program))


@given(programs(), st.floats(1.0, 3.0))
def test_a_larger_budget_never_gives_a_worse_predicted_loss(program: BitProgram, factor: float) -> None:
    try:
        tight = solve_bits(program)
    except PassError:
        return
    wider = replace(
        program, limits=tuple(replace(limit, most=limit.most * factor) for limit in program.limits)
    )
    assert solve_bits(wider).loss <= tight.loss * (1 + 1e-6) + 1e-12


@given(programs(), st.randoms(use_true_random=False))
def test_the_order_of_layers_changes_nothing(program: BitProgram, random: object) -> None:
    shuffled = list(program.layers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    try:
        expected = solve_bits(program)
    except PassError:
        return
    assert solve_bits(replace(program, layers=tuple(shuffled))) == expected


def test_bits_go_where_they_buy_the_most() -> None:
    solved = solve_bits(replace(TWO_LAYERS, limits=(Limit("flash", 480.0),)))
    assert {layer: choice.weights for layer, choice in solved.chosen.items()} == {"first": 8, "second": 4}


def test_the_least_of_a_resource_under_a_limit_of_the_loss() -> None:
    best = solve_bits(TWO_LAYERS)
    solved = solve_bits(replace(TWO_LAYERS, limits=(Limit("loss", best.loss + 0.005),)), objective="flash")
    assert solved.amount("flash") == 80 + 400
    assert solved.loss <= best.loss + 0.005


def test_tied_layers_agree() -> None:
    tied = replace(TWO_LAYERS, limits=(Limit("flash", 480.0),), ties=(Tie("weights", ("first", "second")),))
    assert {choice.weights for choice in solve_bits(tied).chosen.values()} == {4}


def test_a_budget_that_nothing_meets_is_answered_with_the_least_there_is() -> None:
    with pytest.raises(InfeasibleError, match="flash: at least 220, the budget is 200, 20 too little"):
        solve_bits(replace(TWO_LAYERS, limits=(Limit("flash", 200.0),)))


def test_budgets_that_fight_are_answered_with_the_nearest_together() -> None:
    limits = (Limit("flash", 480.0), Limit("loss", 3e-4))
    with pytest.raises(InfeasibleError, match=r"the nearest assignment needs .* % more: .*\(budget"):
        solve_bits(replace(TWO_LAYERS, limits=limits))


def test_what_is_spent_already_counts_against_the_budget() -> None:
    spent = replace(TWO_LAYERS, limits=(Limit("flash", 500.0, fixed=100.0),))
    assert solve_bits(spent).amount("flash") <= 400.0


def test_a_layer_that_stands_twice_is_refused() -> None:
    with pytest.raises(PassError, match="occurs twice"):
        solve_bits(BitProgram((TWO_LAYERS.layers[0],) * 2))


def test_the_front_falls_in_loss_as_it_rises_in_cost() -> None:
    program = BitProgram(
        tuple(ladder(f"layer{i:02}", size=100.0 * (i + 1), loss=3.0 ** (7 - i)) for i in range(10))
    )
    points = front(program, "flash", points=12)
    costs, losses = [p.amount("flash") for p in points], [p.loss for p in points]
    assert len(points) > 8
    assert costs == sorted(costs) and losses == sorted(losses, reverse=True)
    assert {c.weights for c in points[0].chosen.values()} == {2}
    assert {c.weights for c in points[-1].chosen.values()} == {8}


def test_a_large_program_is_solved_to_its_proven_optimum() -> None:
    layers = tuple(
        ladder(f"layer{i:03}", size=100.0 + (i * 7919) % 997, loss=1.0 + (i * 104729) % 1009)
        for i in range(200)
    )
    whole = sum(item.choices[-1].costs["flash"] for item in layers)
    solved = solve_bits(BitProgram(layers, (Limit("flash", whole / 2),)))
    assert solved.gap <= 1e-6
    assert 0.999 * whole / 2 < solved.amount("flash") <= whole / 2
