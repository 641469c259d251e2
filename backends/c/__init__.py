"""C99 for microcontrollers: a graph becomes a header, a source, constants and a self-test, with no dependency.

artifact = emit(graph, COutput(name="kws"), load_target("cortex-m4f"))
artifact.files["kws.c"], artifact.plan.arena_bytes
"""

from .emit import CArtifact, emit

__all__ = ["CArtifact", "emit"]
