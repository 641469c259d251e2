"""From a graph to a program with its memory: edges stripped, kernels and layouts chosen, values placed."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph
from ...specs.outputs import COutput
from ...specs.target import Target
from .memory import MemoryPlan, plan_memory
from .ports import port_layouts
from .prepare import renumber_flattened, strip_edges
from .program import Program
from .schedule import schedule
from .select import select
from .target import Machine


@dataclass(frozen=True)
class Lowered:
    """A graph made ready for C: kernels and layouts chosen, memory planned."""

    graph: Graph
    program: Program
    plan: MemoryPlan


def lower(graph: Graph, options: COutput, target: Target) -> Lowered:
    """Choose kernels, layouts and places for a graph; nothing is written."""
    prepared = schedule(renumber_flattened(graph if options.io == "float" else strip_edges(graph)))
    inputs = port_layouts([v.name for v in prepared.inputs], prepared.inputs, options.layouts)
    outputs = port_layouts(prepared.output_names, prepared.outputs, options.layouts)
    program = select(prepared, Machine.of(target), inputs=inputs, outputs=outputs)
    return Lowered(prepared, program, plan_memory(program))
