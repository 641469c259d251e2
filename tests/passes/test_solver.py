"""The solver of integer programs is heard of by its answers alone."""

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint

from fxpress.passes.solver import solve_integers


def test_nothing_is_printed_and_printing_goes_on_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    layers, widths = 1000, np.array([2.0, 4.0, 8.0, 16.0])
    sizes = np.exp(generator.uniform(np.log(100), np.log(100_000), layers))
    losses = np.exp(generator.normal(0, 2, layers))[:, None] * 4.0**-widths
    one_each = np.kron(np.eye(layers), np.ones(len(widths)))
    spent = (sizes[:, None] * widths).reshape(1, -1) / (3 * sizes.sum())
    result = solve_integers(
        1e3 * losses.reshape(-1) / losses.sum(),
        integrality=np.ones(losses.size),
        bounds=Bounds(0.0, 1.0),
        constraints=[LinearConstraint(one_each, 1.0, 1.0), LinearConstraint(spent, -np.inf, 1.0)],
        options={"time_limit": 60.0, "mip_rel_gap": 1e-6},
    )
    assert result.x is not None
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_what_is_asked_is_answered() -> None:
    result = solve_integers(
        np.array([-3.0, -2.0]),
        integrality=np.ones(2),
        bounds=Bounds(0.0, 4.0),
        constraints=LinearConstraint(np.array([[2.0, 1.0]]), -np.inf, 5.0),
        options={"mip_rel_gap": 0.0},
    )
    assert result.x.round().tolist() == [1.0, 3.0] and result.fun == pytest.approx(-9.0)
