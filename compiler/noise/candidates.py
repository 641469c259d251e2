"""Candidate changes against sources of noise, cheapest first.

free         another observer, a scale for each channel, calibration without an outlier, learned rounding
flash        wider weights: of the layers with weight noise, of all
cycles       activations of 16 bits: values in the role of a source, the operands of a value's readers, all
float        the layers around a value
the model    changes that no spec can make: functions outside modules, constants
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...ir import Graph, Node
from ...ir.ops.base import Quantized
from ...passes.quantize.layer_precisions import BITS, Precisions
from ...passes.quantize.value_roles import values_in_role
from ...passes.weighted_layers import is_layer
from ...specs.options import (
    AdaRound,
    LayerBits,
    LayerPrecision,
    MinMax,
    MseSearch,
    Nearest,
    Observer,
    Percentile,
    QuantizeOptions,
)
from .changes import Change, is_value, path_of
from .propagation import Source, is_conversion, origin_of
from .reasons import Kind, Reason

_OBSERVERS: tuple[Observer, ...] = (
    MinMax(),
    Percentile(),
    Percentile.model_validate({"coverage": "99.9 %"}),
    MseSearch(),
)
_LEARNED = AdaRound(
    iterations=200
)  # for networks with few bits as good as ten times as many, in a tenth of the time
_MOST_LEARNED = 1 << 18  # weights with learned rounding in a trial: about ten seconds
_BEYOND = 2.0  # times the largest other magnitude, and
_MARGIN = 16.0  # more: a replacement of "never", of which e^-16 remains after a softmax


@dataclass(frozen=True)
class Cause:
    """A source of noise with its reasons, the producer of its value, the nodes that move the value, and its readers."""

    source: Source
    reasons: Sequence[Reason]
    maker: Node | None  # None for an input of the graph
    movers: tuple[Node, ...]
    readers: tuple[Node, ...]

    @property
    def around(self) -> tuple[Node, ...]:
        """All of these nodes."""
        return (*(() if self.maker is None else (self.maker,)), *self.movers, *self.readers)

    @property
    def smallest(self) -> tuple[Node, ...]:
        """The fewest nodes that keep the value in float."""
        return self.movers or (() if self.maker is None else (self.maker,))

    @property
    def values(self) -> frozenset[str]:
        """Names of the source and of the values that it is moved from and to."""
        made = (v.name for node in self.smallest for v in (*node.operands[:1], *node.outputs))
        own = () if self.maker is None else (v.name for v in self.maker.outputs)
        return frozenset((self.source.name, *own, *made))

    @property
    def loses_by_weights(self) -> bool:
        """True if rounding of weights is a reason."""
        return any(reason.kind is Kind.WEIGHTS for reason in self.reasons)


def cause_of(graph: Graph, source: Source, reasons: Sequence[Reason]) -> Cause:
    """A source with its neighbours in the integer graph; conversions are skipped."""
    origin = origin_of(graph, source.name)
    waiting, passed = [source.name, origin], {source.name, origin}
    movers, readers = dict[str, Node](), dict[str, Node]()
    while waiting:
        for node in graph.users.get(waiting.pop(0), ()):
            moves = node.op.quantized is Quantized.MOVE
            if not is_conversion(node):
                (movers if moves else readers).setdefault(path_of(node), node)
            if not (moves or is_conversion(node)):
                continue
            waiting += [v.name for v in node.outputs if v.name not in passed]
            passed.update(v.name for v in node.outputs)
    return Cause(
        source, reasons, graph.producers.get(origin), tuple(movers.values()), tuple(readers.values())
    )


class Candidates:
    """Changes for some causes in a float graph that is quantized with these precisions."""

    def __init__(
        self,
        graph: Graph,
        precisions: Precisions,
        causes: Sequence[Cause],
        *,
        can_exclude: bool,
        largest_beside: Callable[[float], float],
    ) -> None:
        """`largest_beside` returns the largest magnitude that is far below that of a constant.

        `outliers` are the calibration samples that a reason names, if samples can be excluded.
        """
        self._graph, self._precisions, self._causes = graph, precisions, causes
        self._options, self._largest_beside = precisions.options, largest_beside
        self._loses_by_weights = any(cause.loses_by_weights for cause in causes)
        makers = [c.maker for c in causes if c.loses_by_weights and c.maker is not None]
        self._narrow = [path for path in _paths(makers) if self._is_narrow(path)]
        samples = {r.sample for cause in causes for r in cause.reasons if r.sample is not None}
        self.outliers = frozenset(samples if can_exclude else ())

    def single(self) -> Iterator[Change]:
        """Single changes."""
        yield from observers(self._options)
        if self._loses_by_weights and not self._options.per_channel:
            yield Change({"per_channel": True})
        yield from (Change(excluded=frozenset({sample})) for sample in sorted(self.outliers))
        if self._can_learn():
            yield Change({"rounding": _LEARNED})
        yield from self._wider_weights()
        yield from self._wide_roles()
        for cause in self._causes:
            yield from _wide(cause.readers)
        yield from self._wide_everywhere()
        for nodes in (nodes for cause in self._causes for nodes in (cause.smallest, cause.around)):
            if paths := _paths(nodes):
                yield Change(in_float=tuple(paths))
        for cause in self._causes:
            yield from self._in_the_model(cause)

    def together(self) -> Iterator[Change]:
        """Several at once: more bits at all causes, learned rounding with more bits."""
        yield from self._wider_at_all_causes()
        if self._options.weights == "int2" and self._can_learn():
            yield Change({"weights": "int4", "rounding": _LEARNED})

    def _wider_at_all_causes(self) -> Iterator[Change]:
        weights = [Change(weights=dict.fromkeys(self._narrow, "int8"))] if self._narrow else []
        readers = [*_wide([node for cause in self._causes for node in cause.readers])]
        for activations in (readers, [*self._wide_everywhere()]):
            if weights and activations:
                yield weights[0].with_(activations[0])
            elif activations is readers and len(self._causes) > 1:
                yield from readers

    def _wide_roles(self) -> Iterator[Change]:
        """16 bits for each role of a source, and for all of these roles."""
        sources = frozenset[str]().union(*(cause.values for cause in self._causes))
        narrow = [role for role in self._options.roles if getattr(self._options, role) == "int8"]
        roles = [role for role in narrow if sources & values_in_role(self._graph, role)]
        yield from (Change({role: "int16"}) for role in roles)
        if len(roles) > 1:
            yield Change(dict.fromkeys(roles, "int16"))

    def _wide_everywhere(self) -> Iterator[Change]:
        if self._options.activations == "int8":
            yield Change({"activations": "int16"})

    def _wider_weights(self) -> Iterator[Change]:
        """Wider weights: of each layer with weight noise, of these together, of all layers."""
        if not self._narrow:
            return
        yield from (Change(weights={path: "int8"}) for path in self._narrow)
        yield Change(weights=dict.fromkeys(self._narrow, "int8"))
        if self._options.weights == "int2":
            yield Change({"weights": "int4"})
        yield self._all_of_eight_bits()

    def _all_of_eight_bits(self) -> Change:
        """Weights of 8 bits for all layers, in place of patterns or an earlier pass."""
        said = {name: _of_eight_bits(precision) for name, precision in self._options.layers.items()}
        raised = QuantizeOptions.model_validate({"weights": "int8", "layers": said})
        widths = Precisions(raised, self._precisions.decided, self._precisions.selects)
        paths = {node.source.module for node in self._graph.nodes if is_layer(node.op)}
        is_decided = any(widths.weight_bits(path) < BITS["int8"] for path in paths)
        changed = {"weights": "int8", "layers": {"**": "int8", **said} if is_decided else said}
        return Change(
            {name: value for name, value in changed.items() if value != getattr(self._options, name)}
        )

    def _can_learn(self) -> bool:
        """True if learned rounding differs from the present one, and the trial is short."""
        weights = (node.operand("weight").type.numel for node in self._graph.nodes if is_layer(node.op))
        is_nearest = isinstance(self._options.rounding, Nearest) and self._options.codebook_bits is None
        return self._loses_by_weights and is_nearest and sum(weights) <= _MOST_LEARNED

    def _is_narrow(self, path: str) -> bool:
        return self._precisions.weight_bits(path) < BITS["int8"]

    def _in_the_model(self, cause: Cause) -> Iterator[Change]:
        nodes = [node for node in cause.around if is_value(path_of(node))]
        if nodes:
            places = ", ".join(dict.fromkeys(n.source.location for n in nodes if n.source.location))
            shown = ", ".join(f"%{n.outputs[0].name}" for n in nodes) + (f" at {places}" if places else "")
            before = ", or applied to the data before the network" if self._starts(nodes) else ""
            words = f"in the model: {shown} in a module that `layers` keeps in float32{before}"
            yield Change(in_float=tuple(map(path_of, nodes)), words=words)
        for name in (reason.constant for reason in cause.reasons if reason.constant is not None):
            if name in self._graph.params:
                constant = self._graph.params[name]
                finite = constant[constant.isfinite()]
                rest = self._largest_beside(float(finite.abs().max()) if len(finite) else 0.0)
                limit = _BEYOND * rest + _MARGIN
                words = f"in the model: %{name} within -{limit:.3g} to {limit:.3g}"
                yield Change(constants={name: constant.clamp(-limit, limit)}, words=words)

    def _starts(self, nodes: Sequence[Node]) -> bool:
        """True if these nodes compute only from inputs and constants."""
        known = {v.name for v in (*self._graph.inputs, *self._graph.constants)}
        names = {node.outputs[0].name for node in nodes}
        for node in self._graph.nodes:
            if node.outputs[0].name in names and all(v.name in known for v in node.operands):
                known.add(node.outputs[0].name)
        return names <= known


def observers(options: QuantizeOptions) -> Iterator[Change]:
    """Observers other than that of the options."""
    yield from (Change({"observer": kind}) for kind in _OBSERVERS if kind != options.observer)


def _wide(nodes: Iterable[Node]) -> Iterator[Change]:
    """Activations of 16 bits for the operands of these nodes, if a spec can set them."""
    if paths := _paths(nodes):
        yield Change(activations=dict.fromkeys(paths, "int16"))


def _paths(nodes: Iterable[Node]) -> list[str]:
    """The module paths of nodes that have one."""
    return list(dict.fromkeys(path for path in map(path_of, nodes) if not is_value(path)))


def _of_eight_bits(precision: LayerPrecision) -> LayerPrecision:
    if isinstance(precision, LayerBits):
        return precision.model_copy(update={"weights": precision.weights and "int8"})
    return precision if precision == "float32" else "int8"
