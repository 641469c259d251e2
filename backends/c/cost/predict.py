"""The cost model: cost of a graph on a target, node by node, without writing files.

Bytes of constants are those of the arrays that are written; bytes of code are estimated from the text of the functions
and from the functions of the C library that they call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ....ir import Graph, Node, Source
from ....specs.target import Target
from ..kernels.base import Offer, Site, form
from ..kernels.costs import CoreCosts, Cost
from ..kernels.portable.copying import Place, copy
from ..plan.layout import channels_last
from ..plan.memory import Block, MemoryPlan
from ..plan.program import CALL_BYTES, Program, Stored
from ..plan.row_costs import step_cost
from ..plan.select import offers
from ..target import Machine
from ..write.source import SourceText
from ..write.weights_file import CHECK_CODE_BYTES
from .c_source import Preprocessor
from .code_size import CodeSizes, function_content, run_counts
from .constructs import Content
from .library import library_bytes

_PART_BYTES = 22
"""Bytes of code of a step that can be the first of a part; as linked for Cortex-M4 and M0+ with -O3."""


@dataclass(frozen=True, slots=True)
class NodePrediction:
    """One step: its kernel and its cost; code and constants are counted at their first use.

    Cycles are None for a core without published timing; they include `wait_cycles`, those of accesses to RAM.

    `operator` is `layout` for a conversion and `output` for an output that is copied to the caller at the end. A step
    that computes some rows at a time has several `calls`.
    """

    operator: str
    result: str
    source: Source
    kernel: str
    macs: int
    instructions: int
    cycles: int | None
    constant_bytes: int
    code_bytes: int
    scratch_bytes: int
    calls: int = 1
    wait_cycles: int = 0

    @property
    def time(self) -> int:
        """Cycles, or instructions for a core without published timing: the measure to compare steps."""
        return self.instructions if self.cycles is None else self.cycles

    @property
    def flash_bytes(self) -> int:
        """Constants and code."""
        return self.constant_bytes + self.code_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """All steps in order, the arena with its blocks, and the code outside of kernels.

    `file_bytes` are constants in a weights file, which are not linked and not counted as flash.
    """

    nodes: tuple[NodePrediction, ...]
    arena_bytes: int
    fixed_bytes: int
    blocks: tuple[Block, ...] = ()
    file_bytes: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(node.macs for node in self.nodes)

    @property
    def instructions(self) -> int:
        """Estimated instructions of one run."""
        return sum(node.instructions for node in self.nodes)

    @property
    def cycles(self) -> int | None:
        """Estimated cycles of one run; None for a core without published timing."""
        each = [node.cycles for node in self.nodes if node.cycles is not None]
        return sum(each) if len(each) == len(self.nodes) else None

    @property
    def wait_cycles(self) -> int:
        """Estimated wait cycles of accesses to RAM in one run; part of `cycles` if those are known."""
        return sum(node.wait_cycles for node in self.nodes)

    @property
    def time(self) -> int:
        """Cycles, or instructions for a core without published timing: the measure to compare predictions for one
        core.
        """
        return self.instructions if self.cycles is None else self.cycles

    @property
    def unit(self) -> str:
        """The unit of `time`."""
        return "instructions" if self.cycles is None else "cycles"

    @property
    def flash_bytes(self) -> int:
        """Estimated bytes of everything that is linked."""
        return self.fixed_bytes + sum(node.flash_bytes for node in self.nodes) - self.file_bytes


def predict_program(program: Program, plan: MemoryPlan, source: SourceText, machine: Machine) -> Prediction:
    """The prediction for a selected, planned and written program."""
    code, costs = _code_bytes(source, machine), CoreCosts.of(machine)
    spent = [step_cost(program, step, costs) for step in program.steps]
    nodes = [
        NodePrediction(
            operator=step.operator,
            result=step.results[0].value.name,
            source=step.source,
            kernel=step.offer.kernel,
            macs=step.macs,
            instructions=round(spent[number].instructions),
            cycles=_whole(spent[number].cycles, plan.waits.get(number, 0)),
            constant_bytes=_constant_bytes(source, number),
            code_bytes=code.of_step[number],
            scratch_bytes=step.offer.working_bytes,
            calls=1 if step.rows is None else step.rows.count,
            wait_cycles=plan.waits.get(number, 0),
        )
        for number, step in enumerate(program.steps)
    ]
    for number, (stored, _) in enumerate(plan.returned, start=len(nodes)):
        waits = plan.waits.get(number, 0)
        nodes.append(_copied(stored, program.graph, costs, _constant_bytes(source, number), waits))
    in_file = source.constant_bytes if source.is_in_file else 0
    fixed = code.fixed + (CHECK_CODE_BYTES if source.is_in_file else 0)
    fixed += _PART_BYTES * len(source.steps) if source.in_parts else 0
    return Prediction(tuple(nodes), plan.arena_bytes, fixed, plan.blocks, in_file)


def predict_node(node: Node, graph: Graph, target: Target) -> NodePrediction | None:
    """Cost of a single node, with images in NHWC; None if it has no kernel."""
    layouts = tuple(
        None if v is None or graph.is_constant(v) else channels_last(v.type.shape) for v in node.inputs
    )
    found, _ = offers(Site(node, graph, layouts, Machine.of(target)))
    if not found:
        return None
    costs, elements = CoreCosts.of(Machine.of(target)), form(node)
    cost, chosen = min(((costs.cost(one, elements), one) for one in found), key=_time)
    return NodePrediction(
        node.op.name,
        node.outputs[0].name,
        node.source,
        chosen.kernel,
        node.macs,
        round(cost.instructions),
        _whole(cost.cycles),
        chosen.constant_bytes,
        chosen.work.code_bytes,
        chosen.working_bytes,
    )


def _copied(
    stored: Stored, graph: Graph, costs: CoreCosts, constant_bytes: int, waits: int
) -> NodePrediction:
    dense = Place((1,))
    call, work = copy(stored.value.type.dtype, (stored.elements,), dense, dense)
    copied = Offer.of_calls("memcpy", (stored.layout,), (stored.layout,), work, call)
    cost = costs.cost(copied, stored.value.type.dtype.value)
    name, source = stored.value.name, graph.source(stored.value)
    return NodePrediction(
        "output",
        name,
        source,
        "memcpy",
        0,
        round(cost.instructions),
        _whole(cost.cycles, waits),
        constant_bytes,
        CALL_BYTES,
        0,
        wait_cycles=waits,
    )


def _whole(cycles: float | None, waits: int = 0) -> int | None:
    return None if cycles is None else round(cycles) + waits


def _constant_bytes(source: SourceText, step: int) -> int:
    return sum(array.bytes for array in source.arrays if array.step == step)


@dataclass(frozen=True, slots=True)
class _Code:
    """Bytes of code of each step, and of the rest: the function that runs the steps, the C library."""

    of_step: Mapping[int, int]
    fixed: int


def _code_bytes(source: SourceText, machine: Machine) -> _Code:
    sizes = CodeSizes.of(machine.core)
    preprocessor = Preprocessor.of(machine)
    contents = [function_content(f.text, source.support, preprocessor) for f in source.functions]
    of_step: Counter[int] = Counter()
    for function, found in zip(source.functions, contents, strict=True):
        of_step[function.step] += sizes.bytes(found.counts, function.template)
    lines = [line for step in source.steps for line in step.lines]
    counts = run_counts(lines, {function.symbol for function in source.functions if function.shared})
    run = Content(
        counts, frozenset({"memcpy"}) if any(line.startswith("memcpy(") for line in lines) else frozenset()
    )
    fixed = sizes.bytes(counts, "run") + sizes.helper_bytes(source.support, preprocessor)
    return _Code(of_step, fixed + library_bytes([*contents, run], machine))


def _time(offered: tuple[Cost, Offer]) -> float:
    return offered[0].time
