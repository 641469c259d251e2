"""The report of a compilation, assembled from the stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import isfinite

from ..backends.c import CArtifact, NodePrediction, counted_core
from ..backends.torch_module import TorchArtifact
from ..ir import DType, Graph, Node, Value, type_text
from ..ir.ops.activation import Bounded
from ..ir.ops.base import Quantized
from ..ir.ops.binary import Add, Div, Maximum, Minimum, Mul, Sub
from ..ir.ops.compare import Compare, Logic, Where
from ..ir.ops.convert import Cast
from ..ir.ops.elementary import Abs, Neg
from ..ir.ops.quantize import Dequantize, Quantize
from ..passes import Decision as PassDecision
from ..specs import Target
from ..specs.options import QuantizeOptions
from .emission import Artifacts
from .lock import tool_versions
from .measure import is_quantized, layer_snr
from .metric import measure_forms
from .noise import Findings
from .packages import package_notes
from .report import (
    Decision,
    FloatLayer,
    Layer,
    Measurement,
    MemoryBlock,
    PassSection,
    RamPoint,
    Report,
    Resource,
    RowRun,
    Table,
)
from .session import Session, Stage, final_graph, window_graph

_EXACT = (Dequantize, Cast, Add, Sub, Mul, Div, Maximum, Minimum, Bounded, Abs, Neg, Compare, Logic, Where)
_MAIN_PERCENT = 10.0  # share of the multiply-accumulates or cycles


def make_report(
    session: Session,
    stages: Sequence[Stage],
    artifacts: Artifacts,
    findings: Findings | None = None,
    points: tuple[RamPoint, ...] = (),
) -> Report:
    """The report, with the spec's metric measured on its evaluation data, and the findings about noise and RAM."""
    compiled = final_graph(session, stages)
    c = artifacts.c
    return Report(
        name=c.name if c else session.spec.model.source.attribute,
        model=session.spec.model.source.attribute,
        target=session.target.name,
        versions=tool_versions(),
        parameters=sum(v.type.numel for v in compiled.constants),
        macs_before=session.captured.macs,
        macs_after=compiled.macs,
        resources=(
            *(_resources(c, session.target) if c else ()),
            *(_module_resources(artifacts.torch, session.captured) if artifacts.torch else ()),
            *_cache_resources(session, compiled),
            *_stream_resources(stages, c),
        ),
        measurements=_measurements(session, window_graph(session, stages)),
        layers=_layers(compiled, c, _snr(session, stages) if findings is None else findings.snr_db),
        noise=None if findings is None else findings.noise,
        float_layers=_float_layers(compiled, c, stages),
        arena=_arena(c) if c else (),
        arena_bound_bytes=c.plan.bound if c else None,
        arena_is_least=c.plan.is_least if c else None,
        arena_order_is_least=c.lowered.is_least if c else None,
        arena_order_bound_bytes=c.lowered.least_bytes if c else None,
        pareto=points,
        passes=_sections(session.captured, stages),
        notes=(
            *session.notes,
            *(w for stage in stages for w in stage.report.warnings),
            *package_notes(compiled, has_module=artifacts.torch is not None),
            *(kernel_notes(c, session.target) if c else ()),
            *(rounding_notes(c.graph) if c else ()),
            *(() if c is None else c.notes),
            *(() if artifacts.torch is None else artifacts.torch.notes),
            *(() if findings is None else findings.notes),
        ),
    )


def _resources(c: CArtifact, target: Target) -> tuple[Resource, ...]:
    constants = c.constant_bytes
    if not c.is_estimated:
        return (
            Resource(name="constants", used=constants, available=target.flash, unit="B", basis="exact"),
            *_regions(c, target),
        )
    return (
        Resource(
            name="flash",
            used=c.prediction.flash_bytes,
            available=target.flash,
            unit="B",
            basis=f"{constants:,} B of constants exactly{_coded(c)}, code estimated"
            if not c.source.is_in_file
            else "code, estimated",
        ),
        *_weights_file(c),
        *_regions(c, target),
        Resource(
            name="stack",
            used=int(c.macros[f"{c.name.upper()}_STACK_BYTES"]),
            available=target.stack,
            unit="B",
            basis="upper bound, from the kernels of the network",
        ),
        Resource(
            name="instructions",
            used=c.prediction.instructions,
            available=None,
            unit="instructions",
            basis=_instructions_basis(target),
        ),
        *_cycles(c, target),
        *_wait_cycles(c),
    )


def _regions(c: CArtifact, target: Target) -> Iterator[Resource]:
    """The arena, or each region of RAM with the estimated accesses of a run."""
    for used in c.plan.regions:
        name, exact, basis = used.name, _arena_basis(c), _ports(c)
        if target.regions is not None:
            name, exact = f"region {used.name}", "exact, from the plan"
            basis = f"{used.accesses:,} accesses a run, estimated"
            waits = used.region.wait_states
            basis += f", wait {waits} {'cycle' if waits == 1 else 'cycles'} each" if waits else ""
        basis = f"{exact}; {basis}"
        yield Resource(name=name, used=used.bytes, available=used.region.bytes, unit="B", basis=basis)


def _wait_cycles(c: CArtifact) -> Iterator[Resource]:
    """Wait cycles of accesses to RAM, if a region has wait states."""
    slow = [used for used in c.plan.regions if used.region.wait_states]
    if slow:
        each = ", ".join(f"{used.wait_cycles:,} in {used.name}" for used in slow)
        least = ", the least of all assignments of blocks to regions" if c.plan.is_fastest else ""
        basis = f"estimated from elements and multiply-accumulates: {each}{least}"
        yield Resource(
            name="wait cycles", used=c.plan.wait_cycles, available=None, unit="cycles", basis=basis
        )


def _weights_file(c: CArtifact) -> tuple[Resource, ...]:
    name = f"{c.name}_weights.bin"
    if name not in c.files:
        return ()
    basis = f"exact, {name}{_coded(c)}"
    return (Resource(name="weights file", used=len(c.files[name]), available=None, unit="B", basis=basis),)


def _module_resources(module: TorchArtifact, captured: Graph) -> tuple[Resource, ...]:
    before = captured.params.bytes
    basis = f"exact, tensors of the torch module; {before:,} B as captured"
    return (Resource(name="weights", used=module.tensors.bytes, available=None, unit="B", basis=basis),)


def _cache_resources(session: Session, graph: Graph) -> tuple[Resource, ...]:
    """Memory of the caches of a language model, which the caller of the network owns."""
    options, names = session.spec.model.cache, session.spec.model.state
    if options is None or not names:
        return ()
    found = [value.type.storage_bytes for value in graph.inputs if value.name in names]
    basis = f"exact, {len(found)} tensors of {options.length:,} positions"
    if options.bits is not None:
        basis += f"; {_float_bytes(graph, names):,} B in float32"
    return (Resource(name="caches", used=sum(found), available=None, unit="B", basis=basis),)


def _stream_resources(stages: Sequence[Stage], c: CArtifact | None) -> Iterator[Resource]:
    """Memory of the states of a streamed network, which the caller of the network owns; in C with what aligns them."""
    for stage in stages:
        if stage.frames:
            table = stage.report.table("states")
            used = sum(int(row[-1] or 0) for row in table.rows)
            used = c.plan.state_bytes if c is not None and c.plan.state_bytes else used
            basis = f"exact, {len(table.rows)} rings of earlier elements"
            yield Resource(name="states", used=used, available=None, unit="B", basis=basis)


def _float_bytes(graph: Graph, names: Collection[str]) -> int:
    """Bytes of coded caches if their numbers were float32: one scale belongs to each head and position."""
    codes = [v.type for v in graph.inputs if v.name in names and not v.type.dtype.is_floating]
    return sum(4 * type.numel * (2 if type.dtype is DType.U8 else 1) for type in codes)


def _instructions_basis(target: Target) -> str:
    """The core on which the instructions of kernels were counted."""
    counted = counted_core(target)
    other = "" if counted == target.core else ", not on this core"
    return f"estimated from kernels counted on a {counted}{other}"


def _cycles(c: CArtifact, target: Target) -> Iterator[Resource]:
    """The row of cycles, with the time at the target's clock, if the core has published timing."""
    cycles = c.prediction.cycles
    if cycles is None or target.timing is None:
        return
    at_clock = f", {1e3 * cycles / target.clock:.3g} ms at {target.clock / 1e6:g} MHz" if target.clock else ""
    waits = "with the wait cycles below" if c.plan.wait_cycles else "without wait states"
    basis = f"estimated {waits}{at_clock}, from {target.timing.source}"
    yield Resource(name="cycles", used=cycles, available=None, unit="cycles", basis=basis)


def kernel_notes(c: CArtifact, target: Target) -> Iterator[str]:
    """A note for each layer that needs a slower kernel than others of its kind on a core with DSP instructions."""
    for step, cost in zip(
        c.program.steps, c.prediction.nodes, strict=False
    ):  # outputs may be copied at the end
        if step.offer.limitation and "dsp" in target.features:
            place = step.source.module or step.results[0].value.name
            share = 100 * cost.time / max(c.prediction.time, 1)
            yield (
                f"{place} ({step.operator}) takes the kernel {cost.kernel}, {share:.0f} % of the "
                f"{c.prediction.unit}: {step.offer.limitation}; int8 activations there would allow a faster one"
            )


def rounding_notes(graph: Graph) -> Iterator[str]:
    """A note if float steps are between integers, so that the rounding of a C library affects integers.

    A single operation with an exact definition in IEEE 754, such as a sum of two values, is the same everywhere.
    """
    reaches: set[str] = set()  # values that become integers after only float steps
    names: list[str] = []
    for node in reversed(graph.nodes):
        if isinstance(node.op, Quantize):
            reaches.add(node.operands[0].name)
        elif reaches.intersection(v.name for v in node.outputs if not v.type.is_quantized):
            reaches.update(v.name for v in node.operands if v.name in graph.producers)
            is_exact = isinstance(node.op, _EXACT) or node.op.quantized is Quantized.MOVE
            names += [] if is_exact else [node.op.name]
    if names:
        counted = ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))
        yield (
            f"steps in float between integers: {counted}. C libraries and compilers round these differently from the "
            "integer graph, so that a value after them may be the next integer, which later layers propagate: the C "
            "agrees with the integer graph closely, not byte for byte"
        )


def _arena_basis(c: CArtifact) -> str:
    """Proof of the size of the arena: the minimum over all orders of execution, or a lower bound."""
    least = c.lowered.least_bytes
    if c.lowered.is_least:
        return "exact, from the plan, the least of any order of execution"
    if least is None or c.plan.arena_bytes < least:
        return "exact, from the plan"
    return f"exact, from the plan, at least {least:,} B in any order of execution"


def _ports(c: CArtifact) -> str:
    """Bytes of inputs and outputs, in or outside the arena."""
    ports = [port for port in c.ports if not port.is_state]
    in_arena = any(port.offset is not None for port in ports)
    total = sum(port.stored.bytes for port in ports)
    return f"{total:,} B of inputs and outputs {'share it' if in_arena else 'in addition'}"


def _coded(c: CArtifact) -> str:
    """Bytes of weights decoded at run time, and their compressed size."""
    found = [constant for step in c.program.steps for constant in step.offer.coded]
    weights, codes = sum(k.bytes for k in found), sum(k.flash_bytes for k in found)
    return f" ({weights:,} B of weights as {codes:,} B of codes)" if found else ""


def _measurements(session: Session, compiled: Graph) -> tuple[Measurement, ...]:
    if session.evaluation is None or session.metric is None:
        return ()
    return measure_forms(session.captured, compiled, session.evaluation, session.metric)


def _snr(session: Session, stages: Sequence[Stage]) -> Mapping[str, float]:
    """Signal-to-noise ratio of each integer value against the last float graph, on calibration data."""
    samples = session.calibration or session.evaluation
    graphs = [session.captured, *(stage.graph for stage in stages if not stage.frames)]
    if samples is None or not is_quantized(graphs[-1]):
        return {}
    return layer_snr([g for g in graphs if not is_quantized(g)][-1], graphs[-1], samples)


def _layers(graph: Graph, c: CArtifact | None, snr: Mapping[str, float]) -> tuple[Layer, ...]:
    if c is None:
        return tuple(_layer(index, node, graph, snr) for index, node in enumerate(graph.nodes))
    steps = [(step.node, step.results[0].value) for step in c.program.steps]
    steps += [(None, stored.value) for stored, _ in c.plan.returned]
    runs = {
        index: RowRun(first=stage.first, last=stage.stop - 1, end=stage.end)
        for stage in c.program.stages
        for index in range(stage.first, stage.stop)
    }
    rows = []
    for index, ((node, value), cost) in enumerate(zip(steps, c.prediction.nodes, strict=True)):
        row = _movement(index, value, cost) if node is None else _layer(index, node, c.graph, snr)
        costs = {"instructions": cost.instructions, "cycles": cost.cycles} if c.is_estimated else {}
        kernel = cost.kernel if cost.calls == 1 else f"{cost.kernel}, {cost.calls} calls"
        known = {"kernel": kernel, "constant_bytes": cost.constant_bytes, "rows": runs.get(index)}
        rows.append(row.model_copy(update={**known, **costs}))
    return tuple(rows)


def _movement(index: int, value: Value, cost: NodePrediction) -> Layer:
    """The row of a step without a node: it moves `value` to another layout or to the caller's buffer."""
    return Layer(
        index=index,
        name=value.name,
        op=cost.operator,
        module=cost.source.module,
        location=cost.source.location,
        inputs=(value.name,),
        shape=value.type.shape,
        type=type_text(value.type),
        weight_bits=None,
        macs=0,
        constant_bytes=0,
    )


def _layer(index: int, node: Node, graph: Graph, snr: Mapping[str, float]) -> Layer:
    value, bits = node.outputs[0], None
    weight = node.optional("weight")
    if weight is not None and graph.is_constant(weight) and node.macs:
        bits = weight.type.quantization.bits if weight.type.quantization else 8 * weight.type.dtype.bytes
    ratio = snr.get(value.name)
    return Layer(
        index=index,
        name=value.name,
        op=node.op.name,
        module=node.source.module,
        location=node.source.location,
        inputs=tuple(v.name for v in node.operands if not graph.is_constant(v)),
        shape=value.type.shape,
        type=type_text(value.type),
        weight_bits=bits,
        macs=node.macs,
        constant_bytes=sum(v.type.storage_bytes for v in node.operands if graph.is_constant(v)),
        snr_db=ratio if ratio is not None and isfinite(ratio) else None,
    )


def _float_layers(graph: Graph, c: CArtifact | None, stages: Sequence[Stage]) -> tuple[FloatLayer, ...]:
    """Nodes with a large share of the work that compute in float in a quantized network.

    Other rules of the pass (folds, learned rounding) also decline layers that do compute on integers.
    """
    if not is_quantized(graph):
        return ()
    quantize = QuantizeOptions.pass_name()
    declined = {
        decision.name: decision.reason
        for stage in stages
        if stage.name == quantize
        for decision in stage.report.decisions
        if decision.rule == quantize and not decision.applied
    }
    steps = {step.result: step for step in c.prediction.nodes} if c else {}
    found = []
    for node in graph.nodes:
        name = node.outputs[0].name
        step = steps.get(name)
        macs = 100 * node.macs / graph.macs if graph.macs else 0.0
        time = 100 * step.time / max(c.prediction.time, 1) if c and step else None
        flash = 100 * step.flash_bytes / max(c.prediction.flash_bytes, 1) if c and step else None
        if name in declined and max(macs, time or 0.0) >= _MAIN_PERCENT:
            found.append(
                FloatLayer(
                    name=name,
                    op=node.op.name,
                    module=node.source.module,
                    location=node.source.location,
                    macs_percent=macs,
                    time_percent=time,
                    flash_percent=flash,
                    reason=declined[name],
                )
            )
    return tuple(found)


def _arena(c: CArtifact) -> tuple[MemoryBlock, ...]:
    """Blocks by rows of the report; the caller writes inputs before the first, and reads outputs after the last."""
    last = max(len(c.prediction.nodes) - 1, 0)
    return tuple(
        MemoryBlock(
            name=b.label,
            region=c.plan.regions[b.region].name,
            offset_bytes=b.offset,
            size_bytes=b.bytes,
            first=min(max(b.start, 0), last),
            last=min(max(b.end, 0), last),
        )
        for b in sorted(c.plan.blocks, key=lambda block: block.region)
    )


def _sections(captured: Graph, stages: Sequence[Stage]) -> tuple[PassSection, ...]:
    before, sections = captured, []
    for stage in stages:
        applied = stage.report.applied
        done = ", ".join(f"{rule} {count}" for rule, count in sorted(applied.items())) or "nothing to do"
        sections.append(
            PassSection(
                name=stage.name,
                nodes_before=len(before.nodes),
                nodes_after=len(stage.graph.nodes),
                macs_before=before.macs,
                macs_after=stage.graph.macs,
                summary=done,
                decisions=tuple(_decision(d) for d in stage.report.decisions),
                tables=tuple(Table(name=t.name, columns=t.columns, rows=t.rows) for t in stage.report.tables),
            )
        )
        before = stage.graph
    return tuple(sections)


def _decision(decision: PassDecision) -> Decision:
    return Decision(
        rule=decision.rule,
        subject=decision.name,
        source=str(decision.source),
        applied=decision.applied,
        reason=decision.reason,
    )
