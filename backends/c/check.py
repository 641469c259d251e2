"""Reasons why a graph cannot be emitted, each with its layer and a remedy; all are reported together."""

from __future__ import annotations

from collections.abc import Iterator

from ...ir import DType, Graph, Node, Value
from ...ir.errors import IRError
from ...ir.graph import check_graph
from ...ir.ops.call import TorchCall
from ...specs.outputs import COutput
from ...specs.root_error import expect
from ...specs.target import Target
from ..errors import Problem
from .kernels.base import Site
from .lower import lower
from .plan.edges import StrippedEdges, strip_edges
from .plan.encoding import PortEncoding
from .plan.kernel_stack import CoreKind, stack_bytes
from .plan.layout import Layout, channels_last
from .plan.memory import MemoryPlan
from .plan.port_layouts import IMAGE_RANK, SEQUENCE_RANK
from .plan.regions import regions_of
from .plan.select import offers
from .plan.stored_weights import join_stored_weights
from .target import Machine
from .write.literal import C_TYPES

BUDGET_CODES = frozenset({"C707", "C708"})
_MAX_RANK = 4
_ACTIVATION_BITS = (8, 16)
_LARGEST_TEXT = 1 << 26  # limit of the bytes of constants written as C arrays


def check(graph: Graph, options: COutput, target: Target) -> list[Problem]:
    """All reasons why this graph cannot be emitted for this target; empty if it can."""
    check_arguments(graph, options, target, "check(graph, options, target)")
    edges = strip_edges(graph, options.stored)
    problems = [
        *_port_problems(graph, edges, options),
        *_region_problems(options, target),
        *_storage_problems_of_target(edges.graph, options, target),
        *check_nodes(edges.graph, options, target),
    ]
    return problems or [*_budget_problems(graph, options, target)]


def check_arguments(graph: object, options: object, target: object, call: str) -> None:
    """ArgumentError for arguments of the wrong class in a public function of this backend."""
    check_graph(graph, call)
    expect(options, COutput, call, "`COutput` as `options`", 'for example COutput(name="net")')
    expect(target, Target, call, "a `Target`", 'for example load_target("cortex-m4f")')


def check_nodes(graph: Graph, options: COutput, target: Target) -> list[Problem]:
    """Problems of nodes without a kernel on the target, or without an allowed one."""
    machine, graph = Machine.of(target), join_stored_weights(graph)
    return [problem for node in graph.nodes for problem in _node_problems(node, graph, options, machine)]


def _storage_problems_of_target(graph: Graph, options: COutput, target: Target) -> Iterator[Problem]:
    is_host, place = Machine.of(target).is_host, f"target {target.name}"
    stored = sum(value.type.storage_bytes for value in graph.constants)
    if options.weights_file != "binary" and is_host and stored > _LARGEST_TEXT:
        message = f"constants of {stored:,} bytes as C arrays would take too long to compile"
        yield Problem("C711", place, message, "set `weights_file: binary` under `outputs.c`")


def _region_problems(options: COutput, target: Target) -> Iterator[Problem]:
    for region in regions_of(target):
        if region.name.startswith(f"{options.name}_"):
            text = (
                f"begins with the prefix of the C names of the network {options.name}, but is a parameter of its "
                "function"
            )
            yield Problem("C713", f"region {region.name}", text, "choose another name for the region")


def _port_problems(graph: Graph, edges: StrippedEdges, options: COutput) -> Iterator[Problem]:
    for value in graph.inputs:
        shape = value.type.shape
        if len(shape) > _MAX_RANK:
            text = f"has {len(shape)} dimensions"
            yield Problem("C701", f"input {value.name}", text, f"C supports at most {_MAX_RANK}")
        elif 0 in shape:
            yield Problem("C701", f"input {value.name}", f"has no elements: {shape}")
    known = [(v.name, v) for v in graph.inputs] + list(zip(graph.output_names, graph.outputs, strict=True))
    named = [("layouts", name) for name in options.layouts]
    named += [("io", name) for name in options.io if not isinstance(options.io, str)]
    for option, name in named:
        if name not in dict(known):
            hint = f"the names are {', '.join(name for name, _ in known)}"
            yield Problem("C710", f"{option}.{name}", "is not an input or output", hint)
    for name, value in known:
        word = options.layouts.get(name, "model")
        rank, count = (SEQUENCE_RANK, "three") if word == "ntc" else (IMAGE_RANK, "four")
        if word != "model" and value.type.rank != rank:
            fact = f"{word} is an order of {count} dimensions, but there are {value.type.rank}"
            yield Problem("C710", f"layouts.{name}", fact, "remove it: the order is the model's")
    taken = edges.graph
    for value, encoding in zip(taken.inputs, edges.inputs, strict=True):
        yield from _storage_problems(f"input {value.name}", value, encoding, options.stored(value.name))
    for name, value, encoding in zip(taken.output_names, taken.outputs, edges.outputs, strict=True):
        yield from _storage_problems(f"output {name}", value, encoding, options.stored(name))


def _storage_problems(
    place: str, value: Value, encoding: PortEncoding | None, word: str
) -> Iterator[Problem]:
    if word in ("auto", "float"):
        return
    if encoding is None and value.type.dtype.is_floating:
        name = place.split(" ", 1)[1]
        hint = f"quantize the layer there, or set `io: auto`, only for this one `io: {{{name}: auto}}`"
        yield Problem("C706", place, f"is not quantized, but io is {word}", hint)
    elif encoding is not None and word == "uint8" and value.type.dtype is not DType.U8:
        message = f"computes on {value.type.dtype.value}, but io is uint8"
        yield Problem("C706", place, message, "set io: int16, or quantize the layer there to int8")


def _node_problems(node: Node, graph: Graph, options: COutput, machine: Machine) -> Iterator[Problem]:
    place = str(node.source) or f"%{node.outputs[0].name}"
    values = (*node.operands, *node.outputs)
    unknown = sorted({v.type.dtype.value for v in values if v.type.dtype not in C_TYPES})
    if unknown:
        message = f"{node.op.name} on elements of type {', '.join(unknown)}"
        yield Problem(
            "C703",
            place,
            message,
            "C computes on float32 and on integers quantized from it: set `dtype: float32` under `model`",
        )
        return
    if any(0 in v.type.shape for v in values):
        yield Problem("C701", place, f"{node.op.name} on values without elements", "remove such parts")
        return
    odd = sorted({_bits(v) for v in values if not graph.is_constant(v)} - {0, *_ACTIVATION_BITS})
    if odd:
        message = f"{node.op.name} on activations of {', '.join(map(str, odd))} bits"
        yield Problem(
            "C704", place, message, f"the C kernels support {' or '.join(map(str, _ACTIVATION_BITS))} bits"
        )
        return
    found, refusals = _offers(node, graph, machine)
    if not found:
        name = node.op.target if isinstance(node.op, TorchCall) else node.op.name
        reasons = "; ".join(dict.fromkeys(refusals)) or "this operator is not part of the C backend"
        hint = "replace the operator, or do not compile this part of the model"
        yield Problem("C702", place, f"no C kernel for {name}: {reasons}", hint)
    elif not options.allow_float and _computes_in_float(node):
        message = f"{node.op.name} computes in float"
        yield Problem("C705", place, message, "quantize this layer, or set allow_float: true")


def _computes_in_float(node: Node) -> bool:
    return node.op.name != "dequantize" and not any(v.type.is_quantized for v in node.outputs)


def _bits(value: Value) -> int:
    return 0 if value.type.quantization is None else value.type.quantization.bits


def _offers(node: Node, graph: Graph, machine: Machine) -> tuple[tuple[object, ...], tuple[str, ...]]:
    layouts: tuple[Layout | None, ...] = tuple(
        None if v is None or graph.is_constant(v) else channels_last(v.type.shape) for v in node.inputs
    )
    try:
        return offers(Site(node, graph, layouts, machine))
    except IRError as err:
        return (), (err.message,)


def _budget_problems(graph: Graph, options: COutput, target: Target) -> Iterator[Problem]:
    if target.ram is None and target.flash is None and target.stack is None:
        return
    lowered = lower(graph, options, target)
    if lowered.plan.missing_bytes:
        yield _memory_problem(lowered.plan, target)
    flash = lowered.prediction.flash_bytes
    if target.flash is not None and flash > target.flash:
        message = f"code and constants need about {flash:,} bytes, the target has {target.flash:,}"
        yield Problem("C708", f"target {target.name}", message, "prune, use fewer bits, or raise flash")
    stack = stack_bytes(
        lowered.program,
        CoreKind.of(target),
        regions=len(lowered.plan.regions),
        in_parts=options.execution == "parts",
    )
    if target.stack is not None and stack > target.stack:
        message = f"the stack may need {stack:,} bytes, the target allows {target.stack:,}"
        yield Problem("C709", f"target {target.name}", message, "quantize the float layers, or raise stack")


def _memory_problem(plan: MemoryPlan, target: Target) -> Problem:
    """Problem with the needed and available bytes of each region, and the largest block."""
    largest = max(plan.blocks, key=lambda block: block.bytes)
    hint = f"the largest block contains {largest.label} ({largest.bytes:,} bytes); shrink it, or raise "
    place = f"target {target.name}"
    if target.regions is None:
        message = (
            f"the arena needs {plan.arena_bytes:,} bytes in the smallest plan that was found, "
            f"the target has {target.ram:,}"
        )
        return Problem("C707", place, message, f"{hint}ram")
    needs = [f"{used.name} needs {used.bytes:,} bytes of {used.region.bytes:,}" for used in plan.regions]
    return Problem(
        "C707",
        place,
        f"the regions are too small: {', '.join(needs)}",
        f"{hint}the sizes in `target.regions`",
    )
