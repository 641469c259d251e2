"""Layers that student and teacher have in common, and the error of the student's there (Romero et al., 2015).

A module's result is the last value computed in it that the student still has under its name: fusing keeps the name
of what it leaves. Where the student has fewer channels, a linear map of them, learned along, stands in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, Value
from ..errors import PassError

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Hint:
    """The value that a module gives, and the learned map [teacher's channels, student's] where they differ."""

    module: str
    value: str
    axis: int | None = None  # along which the numbers of channels differ
    widths: tuple[int, int] = (0, 0)

    @property
    def regressor(self) -> str:
        """Name of the map among what is learned; no constant of a graph has it."""
        return f"hint:{self.module}"

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The map before training, if there is one."""
        if self.axis is None:
            return {}
        wide, narrow = self.widths
        return {self.regressor: torch.randn(wide, narrow, generator=generator) / narrow**0.5}

    def error(
        self, layers: Mapping[str, Tensor], shown: Mapping[str, Tensor], learned: Mapping[str, Tensor]
    ) -> Tensor:
        """Squared error of the student's result, relative to the teacher's power."""
        student, teacher = layers[self.value], shown[self.value]
        if self.axis is not None:
            regressor = learned[self.regressor]
            student = (student.movedim(self.axis, -1) @ regressor.T).movedim(-1, self.axis)
        return (student - teacher).square().mean() / teacher.square().mean().clamp(min=_TINY)


def find_hints(student: Graph, teacher: Graph, modules: Sequence[str]) -> tuple[Hint, ...]:
    """A hint for each module path; PassError for a module that is not there, or not comparable."""
    return tuple(_find(student, teacher, module) for module in modules)


def _find(student: Graph, teacher: Graph, module: str) -> Hint:
    within = [
        node
        for node in teacher.nodes
        if node.source.module == module or node.source.module.startswith(f"{module}.")
    ]
    if not within:
        known = dict.fromkeys(
            node.source.module.partition(".")[0] for node in teacher.nodes if node.source.module
        )
        raise PassError(f"distill.layers: there is no module {module!r}; there are {', '.join(known)}")
    own = {value.name: value for value in student.results}
    last = next((node.outputs[0] for node in reversed(within) if node.outputs[0].name in own), None)
    if last is None:
        raise PassError(
            f"distill.layers: what {module} computes is no value of the graph any more: it went into the operator "
            "after it; name the module around it"
        )
    return _compared(module, own[last.name], last)


def _compared(module: str, student: Value, teacher: Value) -> Hint:
    sizes, wanted = student.type.shape, teacher.type.shape
    differing = [axis for axis, pair in enumerate(zip(sizes, wanted, strict=False)) if pair[0] != pair[1]]
    if len(sizes) != len(wanted) or len(differing) > 1 or 0 in differing:
        raise PassError(f"distill.layers: {module} gives {sizes}, and {wanted} in the captured model")
    if not student.type.real().dtype.is_floating:
        raise PassError(f"distill.layers: {module} gives {student.type.dtype.value}, which cannot be taught")
    if not differing:
        return Hint(module, student.name)
    axis = differing[0]
    return Hint(module, student.name, axis, (wanted[axis], sizes[axis]))
