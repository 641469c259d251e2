"""Feature loss of distillation: error between a module's results in student and teacher (FitNets, Romero et al., 2015).

The result of a module is the last value computed in it that the student still has under the same name; fused operators
keep the name of their last value. If the student has fewer channels, a trained linear regressor maps them to the
teacher's number of channels; it is discarded after training.
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
class FeatureLoss:
    """Feature loss of one module, with a regressor [teacher channels, student channels] if these differ."""

    module: str
    value: str
    axis: int | None = None  # dimension of the channels, if their numbers differ
    channels: tuple[int, int] = (0, 0)  # of teacher and student

    @property
    def regressor(self) -> str:
        """Parameter name of the regressor; no constant of a graph contains a colon."""
        return f"regressor:{self.module}"

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial regressor, if there is one."""
        if self.axis is None:
            return {}
        wide, narrow = self.channels
        return {self.regressor: torch.randn(wide, narrow, generator=generator) / narrow**0.5}

    def error(
        self,
        features: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """Mean squared error relative to the mean square of the teacher's features."""
        student, teacher = features[self.value], teacher_features[self.value]
        if self.axis is not None:
            regressor = parameters[self.regressor]
            student = (student.movedim(self.axis, -1) @ regressor.T).movedim(-1, self.axis)
        return (student - teacher).square().mean() / teacher.square().mean().clamp(min=_TINY)


def find_feature_losses(student: Graph, teacher: Graph, modules: Sequence[str]) -> tuple[FeatureLoss, ...]:
    """One feature loss per module path; PassError for a module that is missing or not comparable."""
    return tuple(_find(student, teacher, module) for module in modules)


def _find(student: Graph, teacher: Graph, module: str) -> FeatureLoss:
    within = [
        node
        for node in teacher.nodes
        if node.source.module == module or node.source.module.startswith(f"{module}.")
    ]
    if not within:
        known = dict.fromkeys(
            node.source.module.partition(".")[0] for node in teacher.nodes if node.source.module
        )
        raise PassError(f"distill.layers: no module {module!r}; modules: {', '.join(known)}")
    own = {value.name: value for value in student.results}
    last = next((node.outputs[0] for node in reversed(within) if node.outputs[0].name in own), None)
    if last is None:
        raise PassError(
            f"distill.layers: the result of {module} is not in the graph any more: it was fused into the next "
            "operator; name the enclosing module"
        )
    return _compared(module, own[last.name], last)


def _compared(module: str, student: Value, teacher: Value) -> FeatureLoss:
    sizes, wanted = student.type.shape, teacher.type.shape
    differing = [axis for axis, pair in enumerate(zip(sizes, wanted, strict=False)) if pair[0] != pair[1]]
    if len(sizes) != len(wanted) or len(differing) > 1 or 0 in differing:
        raise PassError(f"distill.layers: {module} has shape {sizes}, in the captured model {wanted}")
    if not student.type.real().dtype.is_floating:
        raise PassError(
            f"distill.layers: {module} has dtype {student.type.dtype.value}, which has no gradient"
        )
    if not differing:
        return FeatureLoss(module, student.name)
    axis = differing[0]
    return FeatureLoss(module, student.name, axis, (wanted[axis], sizes[axis]))
