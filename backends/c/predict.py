"""The cost model: what a graph would cost on a target, node by node, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph, Node, Source
from ...specs.outputs import COutput
from ...specs.target import Target
from .kernels.base import Call, Implementation, Site
from .kernels.copying import Place, copy
from .layout import channels_last
from .lower import lower
from .memory import Block, MemoryPlan
from .program import CALL_BYTES, Program, Stored
from .select import offers
from .target import Machine


@dataclass(frozen=True, slots=True)
class NodePrediction:
    """One step: its kernel and what it costs; code and constants are counted at their first use.

    `operator` is `layout` for a conversion and `output` for an output that is copied to the caller at the end.
    """

    operator: str
    result: str
    source: Source
    kernel: str
    macs: int
    instructions: int
    cycles: int
    constant_bytes: int
    code_bytes: int
    scratch_bytes: int

    @property
    def flash_bytes(self) -> int:
        """Constants and code."""
        return self.constant_bytes + self.code_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """All steps in order, the arena with its blocks, and the code outside of kernels."""

    nodes: tuple[NodePrediction, ...]
    arena_bytes: int
    fixed_bytes: int
    blocks: tuple[Block, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(node.macs for node in self.nodes)

    @property
    def instructions(self) -> int:
        """Estimated instructions of one run."""
        return sum(node.instructions for node in self.nodes)

    @property
    def cycles(self) -> int:
        """Estimated cycles of one run on a Cortex-M4."""
        return sum(node.cycles for node in self.nodes)

    @property
    def flash_bytes(self) -> int:
        """Estimated bytes of all that is linked."""
        return self.fixed_bytes + sum(node.flash_bytes for node in self.nodes)


def predict(graph: Graph, target: Target, *, options: COutput | None = None) -> Prediction:
    """What the graph costs on a target. Raises UnsupportedError where a node has no kernel: ask `check` first."""
    lowered = lower(graph, options or COutput(), target)
    return predict_program(lowered.program, lowered.plan)


def predict_node(node: Node, graph: Graph, target: Target) -> NodePrediction | None:
    """What one node costs by itself, with images channels last; None where it has no kernel."""
    layouts = tuple(
        None if v is None or graph.is_constant(v) else channels_last(v.type.shape) for v in node.inputs
    )
    found, _ = offers(Site(node, graph, layouts, Machine.of(target)))
    if not found:
        return None
    return _node(node.op.name, node.outputs[0].name, node.source, min(found, key=_cycles), node.macs, set())


def predict_program(program: Program, plan: MemoryPlan) -> Prediction:
    """The prediction for a program that is already chosen and planned."""
    seen: set[object] = set()
    nodes = [
        _node(step.operator, step.results[0].value.name, step.source, step.implementation, step.macs, seen)
        for step in program.steps
    ]
    nodes += [_copied(stored, program.graph) for stored, _ in plan.returned]
    return Prediction(tuple(nodes), plan.arena_bytes, program.fixed_bytes, plan.blocks)


def _node(
    operator: str, result: str, source: Source, chosen: Implementation, macs: int, seen: set[object]
) -> NodePrediction:
    return NodePrediction(
        operator,
        result,
        source,
        chosen.kernel,
        macs,
        round(chosen.cost.instructions),
        round(chosen.cost.cycles),
        sum(_constant_bytes(call, seen) for call in chosen.calls),
        _code_bytes(chosen, seen),
        chosen.working_bytes,
    )


def _copied(stored: Stored, graph: Graph) -> NodePrediction:
    dense = Place((1,))
    _, cost = copy(stored.value.type.dtype, (stored.elements,), dense, dense)
    instructions, cycles = round(cost.instructions), round(cost.cycles)
    name, source = stored.value.name, graph.source(stored.value)
    return NodePrediction("output", name, source, "memcpy", 0, instructions, cycles, 0, CALL_BYTES, 0)


def _constant_bytes(call: Call, seen: set[object]) -> int:
    total = 0
    for constant in call.constants:
        key = (constant.data.dtype.name, constant.data.tobytes())
        if key not in seen:
            seen.add(key)
            total += constant.flash_bytes
    return total


def _code_bytes(chosen: Implementation, seen: set[object]) -> int:
    keys = tuple(call.function.key for call in chosen.calls)
    if not keys or keys in seen:
        return 0
    seen.add(keys)
    return chosen.cost.code_bytes


def _cycles(chosen: Implementation) -> float:
    return chosen.cost.cycles
