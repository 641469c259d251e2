"""Removable residual branches, and their share of each sum.

A removed branch that adds f to s leaves a constant c; the share of the sum's energy without the branch is

    rest = E |s + c|^2 / (E |s + c|^2 + E |f - c|^2)

over the samples: near one for a branch that hardly changes the shortcut. Men et al., ShortGPT, 2024, order layers by
the angle between input and output, which for small changes is the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...ir import Value, run
from ...ir.branches import Branch
from ...ir.coupling import Coupling
from ...ir.cutting import branch_constant
from .ranking import Droppable


def droppable_branches(
    coupling: Coupling, samples: Sequence[Sequence[Tensor]], held: np.ndarray
) -> tuple[Droppable, ...]:
    """The branches of which no unit is `held`, each with the share of its sum's energy without it."""
    branches = [b for b in coupling.branches if not held[np.isin(coupling.groups, b.groups)].any()]
    constants = [_constant(coupling, branch) for branch in branches]
    energies = np.zeros((len(branches), 2))
    wanted = {v.name for b in branches for v in (b.around, b.result)}
    for inputs in samples:
        seen: dict[str, Tensor] = {}

        def observe(value: Value, tensor: Tensor, seen: dict[str, Tensor] = seen) -> None:
            if value.name in wanted:
                seen[value.name] = tensor

        given = zip(coupling.graph.inputs, inputs, strict=True)
        seen |= {v.name: tensor for v, tensor in given if v.name in wanted}
        with torch.no_grad():
            run(coupling.graph, inputs, observe=observe)
        for i, (branch, constant) in enumerate(zip(branches, constants, strict=True)):
            around, result = seen[branch.around.name].double(), seen[branch.result.name].double()
            energies[i] += [float(x.square().mean()) for x in (around + constant, result - constant)]
    rests = energies[:, 0] / np.maximum(energies.sum(1), np.finfo(float).tiny)
    return tuple(Droppable(b.groups, float(rest)) for b, rest in zip(branches, rests, strict=True))


def _constant(coupling: Coupling, branch: Branch) -> Tensor:
    """Constant that replaces the branch if nothing else is removed."""
    return branch_constant(branch, coupling.kept(np.isin(coupling.groups, branch.groups)))
