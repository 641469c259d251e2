"""Sharing of functions among layers that differ only in scales and zero points."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from ..kernels.base import Call
from .program import Step


def share_functions(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with the general function in calls that would otherwise need several functions."""
    functions: dict[Hashable, set[Hashable]] = {}
    for call in (call for step in steps for call in step.calls):
        if call.general is not None:
            functions.setdefault(call.general.key, set()).add(call.function.key)

    def shared(call: Call) -> Call:
        if call.general is None or len(functions[call.general.key]) < 2:
            return replace(call, general=None, numbers=())
        return replace(call, function=call.general, general=None)

    return tuple(replace(step, calls=tuple(map(shared, step.calls))) for step in steps)
