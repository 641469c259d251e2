"""Steps of a run in parts: each computes; views, which compute nothing, are part of the step before them."""

from __future__ import annotations

from collections.abc import Sequence

from .source import StepText


def computing_steps(steps: Sequence[StepText]) -> tuple[StepText, ...]:
    """The steps with views joined to the previous step, and those at the start to the first step that computes."""
    found: list[StepText] = []
    for step in steps:
        if found and not (_computes(step) and _computes(found[-1])):
            before = found.pop()
            found.append(StepText(before.comment, (*before.lines, f"/* {step.comment} */", *step.lines)))
        else:
            found.append(step)
    return tuple(found)


def _computes(step: StepText) -> bool:
    return any(not line.startswith(("FXP_TRACE(", "/*")) for line in step.lines)
