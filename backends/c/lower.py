"""From a graph to a program with its memory: edges stripped, kernels and layouts chosen, values placed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ...ir import Graph
from ...specs.outputs import COutput
from ...specs.target import Target
from .edges import StrippedEdges, strip_edges
from .memory import MemoryPlan, plan_memory
from .ports import port_layouts
from .prepare import renumber_flattened
from .program import Program
from .schedule import schedule
from .select import select
from .target import Machine

# Cycles that a byte of flash may cost, tried in turn until code and constants fit.
_FLASH_PRICES = (0.0, 1.0, *(10.0 ** (power / 4) for power in range(4, 13)))
# The same of a byte of working memory, until the arena fits.
_SCRATCH_PRICES = (0.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True)
class Lowered:
    """A graph made ready for C: kernels and layouts chosen, memory planned."""

    edges: StrippedEdges
    program: Program
    plan: MemoryPlan

    @property
    def graph(self) -> Graph:
        """What the C computes."""
        return self.edges.graph


def lower(graph: Graph, options: COutput, target: Target) -> Lowered:
    """Choose kernels, layouts and places for a graph; nothing is written.

    The fastest kernels are taken; where they do not fit the target's flash, smaller ones, as many as are needed, and
    where the arena does not fit its RAM, kernels of less working memory. Weights that are to be coded stay plain where
    there is no room to decode them, and all of them where the decoder is larger than what it saves.
    """
    edges = strip_edges(graph, options.stored)
    prepared = replace(edges, graph=schedule(renumber_flattened(edges.graph)))
    choose = partial(_choose, prepared, options, target)
    if options.weights == "plain":
        return choose(frozenset())
    coded = frozenset(node.outputs[0].name for node in prepared.graph.nodes)
    lowered = choose(coded)
    while target.ram is not None and (crowded := _crowded(lowered, target.ram)):
        coded -= crowded
        lowered = choose(coded)
    return lowered if lowered.program.saved_bytes > 0 else choose(frozenset())


def _choose(edges: StrippedEdges, options: COutput, target: Target, coded: frozenset[str]) -> Lowered:
    """The fastest way that fits the target, or the fastest of all; `coded` are results of nodes with coded weights."""
    prepared = edges.graph
    inputs = port_layouts([v.name for v in prepared.inputs], prepared.inputs, options.layouts)
    outputs = port_layouts(prepared.output_names, prepared.outputs, options.layouts)
    machine = Machine.of(target)

    def chosen(scratch_price: float) -> Lowered:
        for price in _FLASH_PRICES:
            program = select(
                prepared,
                machine,
                inputs=inputs,
                outputs=outputs,
                coded=coded,
                flash_price=price,
                scratch_price=scratch_price,
            )
            if target.flash is None or program.flash_bytes <= target.flash:
                break
        plan = plan_memory(program, ports_in_arena=options.buffers == "arena")
        return Lowered(edges, program, plan)

    fastest = chosen(_SCRATCH_PRICES[0])
    if target.ram is None or fastest.plan.arena_bytes <= target.ram:
        return fastest
    smaller = (chosen(price) for price in _SCRATCH_PRICES[1:])
    return next((lowered for lowered in smaller if lowered.plan.arena_bytes <= target.ram), fastest)


def _crowded(lowered: Lowered, ram_bytes: int) -> frozenset[str]:
    """Results of the steps that decode weights while more is in use than the target has.

    Where no step uses too much and only the plan does not fit, it is the step that uses most.
    """
    plan = lowered.plan
    if plan.arena_bytes <= ram_bytes:
        return frozenset()
    used = {
        step.results[0].value.name: sum(b.bytes for b in plan.blocks if b.start <= number <= b.end)
        for number, step in enumerate(lowered.program.steps)
        if step.implementation.coded
    }
    limit = ram_bytes if plan.bound > ram_bytes else max(used.values(), default=0) - 1
    return frozenset(name for name, used_bytes in used.items() if used_bytes > limit)
