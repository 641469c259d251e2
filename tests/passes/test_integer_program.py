"""The builder of integer programs: choices, budgets, the answer if nothing is feasible."""

import numpy as np
import pytest

from fxpress.passes.errors import InfeasibleError
from fxpress.passes.integer_program import IntegerProgram


def test_nothing_is_printed_and_printing_goes_on_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    layers, widths = 1000, np.array([2.0, 4.0, 8.0, 16.0])
    sizes = np.exp(generator.uniform(np.log(100), np.log(100_000), layers))
    losses = np.exp(generator.normal(0, 2, layers))[:, None] * 4.0**-widths
    program = IntegerProgram()
    groups = [program.choose(len(widths)) for _ in range(layers)]
    columns = [column for group in groups for column in group]
    program.budget(columns, (sizes[:, None] * widths).reshape(-1), 3 * sizes.sum())
    solution = program.solve(losses.reshape(-1), gap=1e-6)
    taken = sum(size * widths[solution.choice(group)] for size, group in zip(sizes, groups, strict=True))
    assert taken <= 3 * sizes.sum()
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_rows_bound_integers_and_reals() -> None:
    program = IntegerProgram()
    whole, real = program.variables(1, most=4.0, whole=True), program.variables(1, most=4.0)
    program.row([*whole, *real], (2.0, 1.0), high=5.5)
    program.row(whole, (1.0,), low=1.0)
    solution = program.solve({0: -3.0, 1: -2.0}, gap=0.0)
    assert solution.values.tolist() == pytest.approx([1.0, 3.5])
    assert solution.objective == pytest.approx(-10.0)


def test_the_cheapest_choice_within_a_budget_is_found() -> None:
    program = IntegerProgram()
    group = program.choose(3)
    program.budget(group, (200.0, 400.0, 800.0), 500.0, fixed=100.0)
    assert program.solve(np.array([9.0, 3.0, 1.0]), gap=0.0).choice(group) == 1


def test_a_relaxation_takes_fractions_and_says_what_each_choice_adds_at_least() -> None:
    program = IntegerProgram()
    group = program.choose(3)
    program.budget(group, (200.0, 400.0, 800.0), 600.0)
    relaxed = program.relax(np.array([9.0, 3.0, 1.0]))
    assert relaxed is not None and relaxed.objective == pytest.approx(2.0)
    assert relaxed.reduced.tolist() == pytest.approx([5.0, 0.0, 0.0])


def test_what_no_choice_meets_is_infeasible_unless_the_budget_is_raised() -> None:
    program = IntegerProgram()
    group, raised = program.choose(2), program.variables(1, most=np.inf)
    program.budget(group, (200.0, 400.0), 100.0, raised=raised[0])
    assert program.solve({raised[0]: 1.0}, gap=0.0, scale=1.0).objective == pytest.approx(1.0, rel=1e-6)
    program.budget(group, (200.0, 400.0), 100.0)
    assert program.relax(np.zeros(3)) is None
    with pytest.raises(InfeasibleError, match="no choice is within all limits"):
        program.solve(np.zeros(3), gap=0.0)
