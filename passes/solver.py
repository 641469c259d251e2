"""The solver of integer programs: HiGHS by way of scipy, without a word on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp


def solve_integers(
    objective: np.ndarray,
    *,
    integrality: np.ndarray,
    bounds: Bounds,
    constraints: LinearConstraint | Sequence[LinearConstraint],
    options: Mapping[str, float],
) -> OptimizeResult:
    """Solution of an integer program by `scipy.optimize.milp`: minimum of `objective`."""
    with _nothing_printed():
        return milp(
            objective, integrality=integrality, bounds=bounds, constraints=constraints, options=dict(options)
        )


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """HiGHS prints a line for some solutions that it finds, whatever its options say."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
