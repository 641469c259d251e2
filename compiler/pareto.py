"""Pareto front of RAM and time: `fxpress plan --pareto ram,cycles`, and `outputs.c.pareto` for the report."""

from __future__ import annotations

from ..backends.c import CArtifact, pareto
from ..ir import Graph
from ..passes.progress_callback import Progress, silent
from .emission import c_options
from .errors import Problem, UserError
from .report import RamPoint
from .session import Session


def ram_points(
    session: Session, graph: Graph, c: CArtifact | None, place: str, progress: Progress = silent
) -> tuple[RamPoint, ...]:
    """The plans in less and less RAM, the fastest first; `session` is that of the outputs.

    UserError about `place`, an option, for a spec without C, or for a computer, whose kernels have no predicted time.
    """
    options = c_options(session, graph)
    if options is None or c is None or not c.is_estimated:
        fact = "needs C for a microcontroller, whose cycles are predicted"
        raise UserError(Problem("R423", place, fact, "add `outputs: {c: {}}`, and a core as `target`"))
    several = session.target.regions is not None
    return tuple(
        RamPoint(
            ram_bytes=one.plan.arena_bytes,
            region_bytes={used.name: used.bytes for used in one.plan.regions} if several else {},
            instructions=one.prediction.instructions,
            cycles=one.prediction.cycles,
            flash_bytes=one.prediction.flash_bytes,
            rows=tuple((stage.first, stage.stop - 1) for stage in one.program.stages),
        )
        for one in pareto(graph, options, session.target, states=session.spec.model.state, progress=progress)
    )
