"""Lowering of a graph to a program with its memory: edges stripped, kernels and layouts selected, values located."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from ...ir import Graph
from ...specs.outputs import COutput
from ...specs.target import Target
from ..repeated_heads import group_repeated_heads
from .cost.predict import Prediction, predict_program
from .plan.channel_parts import in_channel_parts
from .plan.edges import StrippedEdges, strip_edges
from .plan.memory import BLOCK_ALIGNMENT, WIDE_ALIGNMENT, MemoryPlan, plan_memory
from .plan.order import ORDER_WORK, Ordered, order_steps
from .plan.order_offsets import OFFSETS_WORK, refine_order
from .plan.port_layouts import input_layouts, output_layouts
from .plan.prepare import join_equal_constants, renumber_flattened
from .plan.program import Program
from .plan.regions import regions_of
from .plan.row_stages import plan_within
from .plan.row_updates import replace_rows_by_index
from .plan.schedule import schedule
from .plan.select import Candidates, candidates, select
from .plan.stored_weights import join_stored_weights
from .target import Machine
from .write.ports import Port, memory_names, ports
from .write.source import FilePlaces, SourceText, write_source
from .write.weights_file import HEADER_BYTES

_NO_STATES: Mapping[str, str] = {}

# Cycles, or instructions, allowed per saved byte of flash, tried in turn until code and constants fit.
_FLASH_PRICES = (0.0, 1.0, *(10.0 ** (power / 4) for power in range(4, 13)), 1e4, 1e6)
# The same per byte of memory at the steps that exceed it, until the arena fits.
_MEMORY_PRICES = (30.0, 100.0, 300.0, 3e3, 3e4, 1e6)
_CHANNEL_PARTS = (2, 4, 8, 16)
_PARETO_POINTS = 32
_LISTED = 4


def _no_progress(label: str, done: int, total: int) -> None:
    """No report of progress."""


@dataclass(frozen=True)
class Lowered:
    """A graph prepared for C: kernels and layouts selected, memory planned.

    `order` is the result of the search for the order of execution; None with states in place or stages. `measures`
    say what makes it smaller than the RAM of the target, in place of the fastest form; their cost is in `notes`.
    """

    edges: StrippedEdges
    program: Program
    plan: MemoryPlan
    ports: tuple[Port, ...]
    source: SourceText
    machine: Machine
    order: Ordered | None = None
    measures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def prediction(self) -> Prediction:
        """Predicted cost, computed on first use, because reading the code of a kernel takes about 30 ms."""
        return predict_program(self.program, self.plan, self.source, self.machine)

    @property
    def least_bytes(self) -> int | None:
        """Proven lower bound of the arena in bytes for any order of execution; None without `order`."""
        return None if self.order is None else self.order.bound_bytes

    @property
    def is_least(self) -> bool:
        """True if it is proven that no order of execution and no offsets need less memory."""
        return self.least_bytes == self.plan.arena_bytes

    @property
    def graph(self) -> Graph:
        """The graph that the C computes."""
        return self.edges.graph


def predict(
    graph: Graph, target: Target, *, options: COutput | None = None, fastest: bool = False
) -> Prediction:
    """Predicted cost of the graph on a target. UnsupportedError if a node has no kernel; call `check` first.

    With `fastest`, the cost of the fastest kernels, by rows if they fit the RAM in that way, even if they do not fit.
    """
    return lower(graph, options or COutput(), target, fastest=fastest).prediction


def lower(
    graph: Graph,
    options: COutput,
    target: Target,
    *,
    states: Mapping[str, str] = _NO_STATES,
    fastest: bool = False,
) -> Lowered:
    """Selects kernels, layouts and locations for a graph; nothing is written.

    `states` are inputs that continue an output and are updated in place, by name.

    The fastest kernels are selected. If they do not fit the target's flash, as many smaller ones as needed are
    selected; if the arena does not fit its RAM, also by rows, kernels and layouts with less memory are selected at
    the steps that exceed it, and large convolutions before a mean run in parts of their channels if that is faster or
    needed. With `fastest` none of these is done. Weights that are to be coded stay plain if there is no
    room to decode them, and all of them if the decoder is larger than its savings.
    """
    edges = strip_edges(graph, options.stored)
    graph = renumber_flattened(join_stored_weights(edges.graph))
    graph = replace_rows_by_index(group_repeated_heads(graph))

    def lower_one(form: _Form, *, fastest: bool, limited: bool = True) -> Lowered:
        within = target if limited else target.with_ram(None)
        own = replace(edges, graph=form.graph)
        lowered = _lowered(own, options, within, states, fastest=fastest, order_work=form.order_work)
        return replace(lowered, measures=(*lowered.measures, *form.measures))

    whole, is_coded = _Form(graph), options.weights == "huffman"
    at_first = fastest or (target.ram is not None and not is_coded)  # or fewer weights would be coded
    lowered = lower_one(whole, fastest=at_first)
    if fastest or target.ram is None or not (lowered.plan.missing_bytes or lowered.measures):
        return lowered
    found = [lowered]
    for form in (parts := list(_in_parts(graph, target.ram))):
        found.append(lower_one(form, fastest=at_first))
        if not found[-1].plan.missing_bytes:
            break  # more parts are more calls
    if not is_coded and all(one.plan.missing_bytes for one in found):
        found = [lower_one(form, fastest=False) for form in (whole, *parts[-1:])]
    best = min(found, key=_lack_or_time)
    if not best.measures:
        return best
    cost = _cost(best, lower_one(whole, fastest=True, limited=False))
    return replace(best, notes=(f"{'; '.join(best.measures)}: an arena of {cost}", *best.notes))


@dataclass(frozen=True)
class _Form:
    """A graph to select kernels for, and what makes it smaller than the given one."""

    graph: Graph
    measures: tuple[str, ...] = ()
    order_work: int = ORDER_WORK


def _in_parts(graph: Graph, ram_bytes: int) -> Iterator[_Form]:
    """The graph with large convolutions in more and more parts of their channels."""
    for parts in _CHANNEL_PARTS:
        split, names = in_channel_parts(graph, parts, ram_bytes // 2)
        if names:
            note = f"{_some(names)} in {parts} parts of the channels, one after the other"
            # parts are in a good order, and there are too many others to search
            yield _Form(split, (note,), ORDER_WORK // 20)


def _lowered(
    edges: StrippedEdges,
    options: COutput,
    target: Target,
    states: Mapping[str, str],
    *,
    fastest: bool,
    order_work: int,
) -> Lowered:
    """`lower` for one form of a graph without its edges."""
    prepared = replace(edges, graph=schedule(join_equal_constants(edges.graph)))
    offered = candidates(prepared.graph, Machine.of(target))
    numbered = _numbered(prepared.graph, states)
    written = partial(
        _written, prepared, options=options, target=target, states=numbered, order_work=order_work
    )
    choose = partial(_choose, prepared, options, target, offered, written=written, only_fastest=fastest)
    if options.weights != "huffman":
        return choose(frozenset())
    coded = frozenset(node.outputs[0].name for node in prepared.graph.nodes)
    all_coded = lowered = choose(coded)
    while target.ram is not None and (crowded := _crowded(lowered, target.ram)):
        coded -= crowded
        lowered = choose(coded)
    dropped = _coded_layers(all_coded) - _coded_layers(lowered)
    reasons = [f"no RAM to decode the weights of {_some(sorted(dropped))}"] if dropped else []
    if lowered.program.saved_bytes <= 0:
        reasons += ["the decoder is larger than what it saves"] if _coded_layers(lowered) else []
        lowered = choose(frozenset())
    note = f"{'; '.join(reasons)}: {'they are not' if _coded_layers(lowered) else 'no weights are'} coded"
    return replace(lowered, notes=(*lowered.notes, note) if reasons else lowered.notes)


def _coded_layers(lowered: Lowered) -> set[str]:
    """Names of the layers with coded weights."""
    coded = [step for step in lowered.program.steps if step.offer.coded or step.offer.replaced_bytes]
    return {step.source.module or step.results[0].value.name for step in coded}


def _some(names: Collection[str]) -> str:
    """The first of the names, and how many more there are."""
    listed = list(names)
    return (
        ", ".join(listed)
        if len(listed) <= _LISTED
        else f"{', '.join(listed[:_LISTED])} and {len(listed) - _LISTED} more"
    )


def pareto(
    graph: Graph,
    options: COutput,
    target: Target,
    *,
    states: Mapping[str, str] = _NO_STATES,
    progress: Callable[[str, int, int], None] = _no_progress,
) -> tuple[Lowered, ...]:
    """The graph with decreasing RAM, each time with the least time that is found; the first is the fastest.

    The RAM of several regions is their sum; see `Target.with_total_ram` for which of them have less of it.
    """
    kept = states if options.states == "in_place" else _NO_STATES
    options = in_place(options, kept)
    found = [lower(graph, options, target.with_total_ram(None), states=kept)]
    for tried in range(1, _PARETO_POINTS):
        progress("plans in less RAM", tried, _PARETO_POINTS)
        least = found[-1].plan.arena_bytes
        smaller = lower(graph, options, target.with_total_ram(least - 1), states=kept)
        if smaller.plan.arena_bytes >= least or smaller.plan.missing_bytes:
            break
        while found and found[-1].prediction.time >= smaller.prediction.time:
            found.pop()  # the search for a limit is not exact: a lower one can find less time
        found.append(smaller)
    return tuple(found)


def in_place(options: COutput, states: Mapping[str, str]) -> COutput:
    """The options for states updated in place: stored in the model's order unless the options define another."""
    kept = dict.fromkeys((*states, *states.values()), "model")
    return options.model_copy(update={"layouts": {**kept, **options.layouts}})


def _numbered(graph: Graph, states: Mapping[str, str]) -> dict[int, int]:
    """The numbers of the input and the output of each state."""
    inputs = [value.name for value in graph.inputs]
    return {inputs.index(name): graph.output_names.index(output) for name, output in states.items()}


def _choose(
    edges: StrippedEdges,
    options: COutput,
    target: Target,
    offered: Candidates,
    coded: frozenset[str],
    *,
    written: Callable[..., Lowered],
    only_fastest: bool,
) -> Lowered:
    """The fastest program that fits the target, or the smallest; `coded` are results of nodes with coded weights.

    With `only_fastest` the fastest kernels, whether they fit or not.
    """
    prepared = edges.graph
    inputs, outputs = input_layouts(prepared, options.layouts), output_layouts(prepared, options.layouts)
    machine = Machine.of(target)

    def chosen(memory_price: float = 0.0, crowded: frozenset[str] = frozenset()) -> Lowered:
        tried: list[Lowered] = []
        for flash_price in _FLASH_PRICES:
            program = select(
                prepared,
                machine,
                offered,
                inputs=inputs,
                outputs=outputs,
                coded=coded,
                flash_price=flash_price,
                memory_price=memory_price,
                crowded=crowded,
            )
            tried.append(written(program))
            if target.flash is None or tried[-1].prediction.flash_bytes <= target.flash:
                return _noted(tried[-1], tried[0])
        return min(tried, key=_flash_bytes)

    fastest = chosen()
    if only_fastest or target.ram is None or not fastest.plan.missing_bytes:
        return fastest
    crowded: frozenset[str] = frozenset()
    tried = [fastest]
    for price in _MEMORY_PRICES:
        while more := _crowded_nodes(tried[-1], target.ram) - crowded:
            crowded |= more
            tried.append(chosen(price, crowded))
        tried.append(chosen(price, crowded))
        if not tried[-1].plan.missing_bytes:
            return replace(tried[-1], measures=(*tried[-1].measures, "kernels of less arena"))
    programs = {tuple(id(step.offer) for step in one.program.steps): one.program for one in tried}
    by_rows = [written(program, smallest=True) for program in programs.values()]
    return min(*tried, *by_rows, key=_lack)


def _noted(taken: Lowered, fastest: Lowered) -> Lowered:
    """The selection, with a note on its extra cost compared with the fastest kernels, which do not fit the flash."""
    if taken is fastest:
        return taken
    note = f"kernels of less flash: {_cost(taken, fastest, 'flash')}, to fit the target"
    return replace(taken, notes=(*taken.notes, note))


def _cost(taken: Lowered, fastest: Lowered, resource: str = "arena") -> str:
    """Saved bytes and additional time of a selection, relative to the fastest one."""
    needed = {"flash": _flash_bytes, "arena": _arena_bytes}[resource]
    more = taken.prediction.time - fastest.prediction.time
    share = 100 * abs(more) / max(fastest.prediction.time, 1)
    return (
        f"{needed(taken):,} B in place of {needed(fastest):,} B, for {abs(more):,} {'more' if more >= 0 else 'fewer'} "
        f"predicted {taken.prediction.unit} ({share:.1f} %)"
    )


def _flash_bytes(lowered: Lowered) -> int:
    return lowered.prediction.flash_bytes


def _arena_bytes(lowered: Lowered) -> int:
    return lowered.plan.arena_bytes


def _lack(lowered: Lowered) -> tuple[int, int]:
    """Bytes that the regions lack, and bytes of the arena."""
    return lowered.plan.missing_bytes, lowered.plan.arena_bytes


def _lack_or_time(lowered: Lowered) -> tuple[int, int]:
    """Bytes that the regions lack, and the arena if they do or else the time."""
    missing = lowered.plan.missing_bytes
    return missing, lowered.plan.arena_bytes if missing else lowered.prediction.time


def _crowded_nodes(lowered: Lowered, ram_bytes: int) -> frozenset[str]:
    """Results of the nodes at which more memory is in use than available or, if only the plan is too large, at which
    most is.
    """
    plan, steps = lowered.plan, lowered.program.steps
    if not plan.missing_bytes:
        return frozenset()
    used = [plan.live_bytes.get(number, 0) for number in range(len(steps))]
    limit = ram_bytes if max(used) > ram_bytes else max(used) - 1
    found: set[str] = set()
    reader = ""  # the node before which a conversion of layout runs
    for step, used_bytes in zip(reversed(steps), reversed(used), strict=True):
        reader = reader if step.node is None else step.node.outputs[0].name
        if used_bytes > limit and reader:
            found.add(reader)
    return frozenset(found)


def _written(
    edges: StrippedEdges,
    program: Program,
    *,
    options: COutput,
    target: Target,
    states: Mapping[int, int],
    order_work: int,
    smallest: bool = False,
) -> Lowered:
    """The program with its memory planned, and its text; `smallest` is that of `plan_within`."""
    machine, regions = Machine.of(target), regions_of(target)
    alignment = BLOCK_ALIGNMENT if machine.is_host else WIDE_ALIGNMENT
    planned = partial(
        plan_memory,
        regions=regions,
        ports_in_arena=options.buffers == "arena",
        states=states,
        state_alignment=alignment,
    )
    order = None
    if not states:
        found_order = order_steps(program, ports_in_arena=options.buffers == "arena", most_work=order_work)
        order = refine_order(found_order, most_work=order_work * OFFSETS_WORK // ORDER_WORK)
    reordered = () if order is None or order.program is program else (order.program,)
    programs = (program, *reordered)
    program, plan, measures, notes = plan_within(programs, machine, target.ram, planned, smallest=smallest)
    order = None if program.stages else order
    is_binary = options.weights_file == "binary"
    in_parts = options.execution == "parts"
    taken = [*memory_names(regions), *(region.name for region in regions)]
    taken += ["weights", "constants", "words"] * is_binary + ["state", "states"] * bool(states)
    taken += ["progress", "steps", "steps_done", "status"] * in_parts
    found = ports(edges, program, plan, prefix=options.name, taken=taken)
    places = FilePlaces(HEADER_BYTES, alignment) if is_binary else None
    source = write_source(options.name, program, plan, found, in_file=places, in_parts=in_parts)
    notes += () if order is None or order.is_least else (_order_note(order),)
    return Lowered(edges, program, plan, found, source, machine, order, measures, notes)


def _order_note(order: Ordered) -> str:
    return (
        f"order of execution: {order.peak_bytes:,} B are in use at most; the search for an order with less was cut "
        f"off, and has proven that none needs less than {order.bound_bytes:,} B"
    )


def _crowded(lowered: Lowered, ram_bytes: int) -> frozenset[str]:
    """Results of the steps that decode weights while more memory is in use than the target has.

    If no step exceeds the memory and only the plan does not fit, the step with the most memory.
    """
    plan = lowered.plan
    if not plan.missing_bytes:
        return frozenset()
    used = {
        step.results[0].value.name: plan.live_bytes[number]
        for number, step in enumerate(lowered.program.steps)
        if step.offer.coded
    }
    limit = ram_bytes if plan.bound > ram_bytes else max(used.values(), default=0) - 1
    return frozenset(name for name, used_bytes in used.items() if used_bytes > limit)
