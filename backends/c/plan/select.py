"""Selection of a kernel for each node and of a layout for each value: the cheapest path through the graph.

Nodes are visited in order. A state is the layouts of the values that later nodes still read; of two paths to the same
state the cheaper one is kept, so a chain is solved exactly. If many values are live at once, only the cheapest states
are kept. Offers are compared before they are built; only those of the cheapest path are built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

from ....ir import Graph, Node, Source, Value, node_text
from ....ir.errors import UnsupportedError
from ..kernels.base import Offer, Site, form, kernels_of, weight_uses
from ..kernels.costs import CoreCosts
from ..kernels.portable.copying import Place, copy
from ..target import Machine
from .coding import with_coded_weights
from .layout import Layout
from .program import Program, Step, Stored
from .sharing import share_functions

_MAX_STATES = 24

Candidates = Callable[[int, bool, tuple[Layout | None, ...]], tuple[Offer, ...]]
"""Offers for a node of a graph: by its number, whether its weights are to be coded, and its operands' layouts."""


@dataclass(frozen=True)
class _Way:
    """Choices so far, the last one first, and their time."""

    time: float
    layouts: dict[str, Layout]
    choice: Offer | None = None
    before: _Way | None = None


def select(
    graph: Graph,
    machine: Machine,
    offered: Candidates,
    *,
    inputs: tuple[Layout, ...],
    outputs: tuple[Layout, ...],
    coded: frozenset[str] = frozenset(),
    flash_price: float = 0.0,
    memory_price: float = 0.0,
    crowded: frozenset[str] = frozenset(),
) -> Program:
    """The cheapest program; `inputs` and `outputs` are the layouts in which the caller stores the graph's own values.

    The cost is time on the machine's core (`Cost.time`), plus prices for each byte of flash, and for each byte of
    memory that a node with a result in `crowded` adds to the memory in use. The nodes with a result in `coded` have
    their weights in flash as Huffman codes, if that makes them smaller.
    """
    costs = CoreCosts.of(machine)
    starts = {v.name: layout for v, layout in zip(graph.inputs, inputs, strict=True)}
    ways = [_Way(0.0, starts)]
    dying = _dying(graph)
    for index, node in enumerate(graph.nodes):
        name = node.outputs[0].name
        prices = (flash_price, memory_price if name in crowded else 0.0)
        ways = _advance(
            ways,
            node,
            partial(offered, index, name in coded),
            costs,
            dying[index],
            weight_uses(graph, node),
            prices,
        )
        if not ways:
            raise UnsupportedError(f"no C kernel for {node_text(node)}: {_refusal(node, graph, machine)}")
    best = min(ways, key=lambda way: way.time + _closing_time(way, graph, outputs, costs))
    choices: list[Offer] = []
    way: _Way | None = best
    while way is not None and way.choice is not None:
        choices.append(way.choice)
        way = way.before
    return _assemble(graph, tuple(reversed(choices)), inputs, outputs)


def offers(site: Site) -> tuple[tuple[Offer, ...], tuple[str, ...]]:
    """All offers for a site, and the reasons of the kernels that make none."""
    found: list[Offer] = []
    refusals: list[str] = []
    for function in kernels_of(site.node.op.name):
        made = function(site)
        if isinstance(made, str):
            refusals.append(made)
        else:
            found.extend(made if isinstance(made, tuple) else (made,))
    return tuple(found), tuple(refusals)


def candidates(graph: Graph, machine: Machine) -> Candidates:
    """The offers of all kernels for the nodes of a graph; each is made once, and built at most once."""

    @cache
    def found(index: int, coded: bool, at_hand: tuple[Layout | None, ...]) -> tuple[Offer, ...]:
        made, _ = offers(Site(graph.nodes[index], graph, at_hand, machine, coded=coded))
        built = tuple(replace(offer, build=cache(offer.build)) for offer in made)
        return _smallest(tuple(map(with_coded_weights, built))) if coded else built

    return found


def _smallest(made: tuple[Offer, ...]) -> tuple[Offer, ...]:
    """The offers with the fewest bytes of constants of each kernel: another packing can take longer codes."""
    least: dict[str, int] = {}
    for one in made:
        least[one.kernel] = min(one.constant_bytes, least.get(one.kernel, one.constant_bytes))
    return tuple(one for one in made if one.constant_bytes == least[one.kernel])


def conversion(type_value: Value, at_hand: Layout, wanted: Layout) -> Offer | None:
    """The step that copies a value to another layout; None if that layout has a border."""
    shape, dtype = type_value.type.shape, type_value.type.dtype
    if wanted.border:
        return None
    source = Place(at_hand.strides(shape), at_hand.offset(shape))
    call, work = copy(dtype, shape, source, Place(wanted.strides(shape)))
    return Offer.of_calls("convert_layout", (at_hand,), (wanted,), work, call)


def _advance(
    ways: list[_Way],
    node: Node,
    offered: Callable[[tuple[Layout | None, ...]], tuple[Offer, ...]],
    costs: CoreCosts,
    dying: frozenset[str],
    weight_uses: int,
    prices: tuple[float, float],
) -> list[_Way]:
    found: dict[tuple[tuple[str, Layout], ...], _Way] = {}
    for way in ways:
        at_hand = tuple(None if v is None else way.layouts.get(v.name) for v in node.inputs)
        for offer in offered(at_hand):
            extra = _conversion_time(node, at_hand, offer, costs)
            if extra is None:
                continue
            layouts = {name: layout for name, layout in way.layouts.items() if name not in dying}
            layouts |= {
                v.name: layout
                for v, layout in zip(node.outputs, offer.writes, strict=True)
                if v.name not in dying
            }
            flash = _flash_bytes(offer, weight_uses)
            priced = prices[0] * flash + prices[1] * _added_bytes(node, at_hand, offer)
            time = way.time + extra + costs.cost(offer, form(node)).time + priced
            key = tuple(sorted(layouts.items(), key=lambda item: item[0]))
            if key not in found or time < found[key].time:
                found[key] = _Way(time, layouts, offer, way)
    return sorted(found.values(), key=lambda way: way.time)[:_MAX_STATES]


def _refusal(node: Node, graph: Graph, machine: Machine) -> str:
    _, refusals = offers(Site(node, graph, tuple(None for _ in node.inputs), machine))
    return "; ".join(dict.fromkeys(refusals)) or "this operator is not part of the C backend"


def _conversion_time(
    node: Node, at_hand: tuple[Layout | None, ...], offer: Offer, costs: CoreCosts
) -> float | None:
    total = 0.0
    for value, have, want in zip(node.inputs, at_hand, offer.reads, strict=True):
        if value is None or have is None or want is None or have == want:
            continue
        step = conversion(value, have, want)
        if step is None:
            return None
        total += costs.cost(step, value.type.dtype.value).time
    return total


def _flash_bytes(offer: Offer, weight_uses: int) -> float:
    """Bytes of flash of an offer; for weights that several nodes read, its share."""
    weights = offer.weight_bytes
    others = offer.constant_bytes - weights + offer.work.code_bytes
    return weights / weight_uses + others


def _added_bytes(node: Node, at_hand: tuple[Layout | None, ...], offer: Offer) -> int:
    """Bytes of memory that a node needs in addition to its operands, as far as they depend on kernels and layouts."""
    converted = [
        Stored(value, want).bytes
        for value, have, want in zip(node.inputs, at_hand, offer.reads, strict=True)
        if value is not None and have is not None and want is not None and have != want
    ]
    in_place = offer.views is not None or offer.overwrites
    results = [Stored(v, layout).bytes for v, layout in zip(node.outputs, offer.writes, strict=True)]
    return offer.working_bytes + sum(converted) + (0 if in_place else sum(results))


def _closing_time(way: _Way, graph: Graph, outputs: tuple[Layout, ...], costs: CoreCosts) -> float:
    total = 0.0
    for value, wanted in zip(graph.outputs, outputs, strict=True):
        have = way.layouts.get(value.name, wanted)
        if have != wanted:
            step = conversion(value, have, wanted)
            total += costs.cost(step, value.type.dtype.value).time if step is not None else 0.0
    return total


def _dying(graph: Graph) -> list[frozenset[str]]:
    """For each node the values without readers after it."""
    kept = {v.name for v in graph.outputs}
    seen: set[str] = set()
    found: list[frozenset[str]] = []
    for node in reversed(graph.nodes):
        touched = {v.name for v in (*node.operands, *node.outputs)}
        found.append(frozenset(touched - seen - kept))
        seen |= touched
    return found[::-1]


def _assemble(
    graph: Graph,
    choices: tuple[Offer, ...],
    inputs: tuple[Layout, ...],
    outputs: tuple[Layout, ...],
) -> Program:
    lies = {v.name: Stored(v, layout) for v, layout in zip(graph.inputs, inputs, strict=True)}
    made: set[Stored] = set(lies.values())
    steps: list[Step] = []

    def converted(source: Source, value: Value, wanted: Layout) -> Stored:
        if value.name in graph.params:
            return Stored(value, wanted)
        have, want = lies[value.name], Stored(value, wanted)
        if want not in made:
            step = conversion(value, have.layout, wanted)
            assert step is not None
            made.add(want)
            steps.append(Step(None, source, (have,), (want,), step, step.build()))
        return want

    for node, choice in zip(graph.nodes, choices, strict=True):
        operands = tuple(
            None if value is None or wanted is None else converted(node.source, value, wanted)
            for value, wanted in zip(node.inputs, choice.reads, strict=True)
        )
        results = tuple(Stored(v, layout) for v, layout in zip(node.outputs, choice.writes, strict=True))
        lies |= {stored.value.name: stored for stored in results}
        made |= set(results)
        steps.append(Step(node, node.source, operands, results, choice, choice.build()))
    returned = tuple(
        converted(graph.source(value), value, wanted)
        for value, wanted in zip(graph.outputs, outputs, strict=True)
    )
    starts = tuple(Stored(v, layout) for v, layout in zip(graph.inputs, inputs, strict=True))
    return Program(graph, share_functions(tuple(steps)), starts, returned)
