"""The table of `fxpress plan --pareto ram,cycles`: cost of the C of a network for decreasing RAM limits."""

from __future__ import annotations

from ..backends.c import pareto
from .compilation import Compiled
from .emission import c_options
from .errors import Problem, UserError
from .table import text_table


def pareto_text(compiled: Compiled) -> str:
    """A table: arena, predicted time, ratio to the fastest, flash, and the steps that run by rows.

    UserError for a spec without C, or for a computer, whose kernels have no predicted time.
    """
    options = c_options(compiled.session, compiled.graph)
    if options is None or compiled.c is None or not compiled.c.is_estimated:
        fact = "needs C for a microcontroller, whose cycles are predicted"
        raise UserError(Problem("R423", "--pareto", fact, "add `outputs: {c: {}}`, and a core as `target`"))
    found = pareto(compiled.graph, options, compiled.session.target, states=compiled.spec.model.state)
    fastest = max(found[0].prediction.time, 1)
    rows = [
        (
            f"{one.plan.arena_bytes:,}",
            f"{one.prediction.time:,}",
            f"{one.prediction.time / fastest:.3f}",
            f"{one.prediction.flash_bytes:,}",
            ", ".join(f"{stage.first} to {stage.stop - 1}" for stage in one.program.stages),
        )
        for one in found
    ]
    header = ("arena B", found[0].prediction.unit, "over fastest", "flash B", "steps that run by rows")
    return text_table(header, rows)
