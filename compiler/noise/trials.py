"""Changes of `quantize` that may help against noise, each tried: the graph is quantized anew and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from torch import Tensor

from ...ir import Graph, IRError, Node, Source
from ...ir.ops.base import Quantized
from ...ir.ops.quantize import Dequantize, Quantize, Requantize
from ...passes import Context, PassError, find_pass
from ...passes.calibrate import collect
from ...passes.quantization.observers import Statistics
from ...passes.quantization.plan import make_plan
from ...passes.quantization.precision import Precisions
from ...passes.quantize import prepare
from ...specs.options import (
    LayerBits,
    LayerPrecision,
    MinMax,
    MseSearch,
    Nearest,
    Observer,
    Percentile,
    QuantizeOptions,
)
from ..data import own_batch
from .propagation import Propagation
from .reasons import Kind, Reason

_OBSERVERS: Mapping[str, Observer] = {
    "minmax": MinMax(),
    "percentile": Percentile(),
    "{kind: percentile, coverage: 99.9 %}": Percentile.model_validate({"coverage": "99.9 %"}),
    "mse": MseSearch(),
}
_VALUE = "%"  # in front of the name of a value that stands for a module path
_BEYOND = 2.0  # times the largest other magnitude, and
_MARGIN = 16.0  # more: what "never" may be made, of which e^-16 is left behind a softmax


@dataclass(frozen=True)
class Change:
    """A change of the options of `quantize`, of the calibration samples, or of constants of the model."""

    text: str
    options: QuantizeOptions
    left_out: int | None = None
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_of_options(self) -> bool:
        """Whether the spec alone changes."""
        return self.left_out is None and not self.constants

    @property
    def is_in_float(self) -> bool:
        """Whether it leaves layers in float."""
        return "float32" in self.options.layers.values()


@dataclass(frozen=True)
class Trial:
    """A change with the ratios that it gives, by target; empty where it cannot be made."""

    change: Change
    snr_db: Mapping[str, float]


class Trials:
    """Quantizes a float graph again and again; rounding to nearest stands in for a rounding that is learned."""

    def __init__(
        self,
        graph: Graph,
        options: QuantizeOptions,
        context: Context,
        propagation: Propagation,
        targets: Sequence[str],
    ) -> None:
        self.graph, self.context = _with_paths(graph), replace(context, selects=_or_exactly(context.selects))
        self.options = options.model_copy(update={"rounding": Nearest()})
        self._propagation, self._targets = propagation, targets
        self._known: dict[str, Trial] = {}

    def measure(self, change: Change) -> Trial:
        """The ratios of all targets after a change."""
        if change.text not in self._known:
            self._known[change.text] = Trial(change, self._ratios(change))
        return self._known[change.text]

    def unchanged(self) -> Change:
        """No change."""
        return Change("", self.options)

    def whole(self) -> Iterator[Change]:
        """Changes that concern all layers."""
        for text, observer in _OBSERVERS.items():
            if observer != self.options.observer:
                yield Change(f"observer: {text}", self._with(observer=observer))
        if self.options.activations == "int8":
            yield Change("activations: int16", self._with(activations="int16"))

    def local(self, name: str, reasons: Sequence[Reason]) -> Iterator[Change]:
        """Changes that concern a value: more bits, float, and what its reasons call for."""
        around = self._around(name)
        for reason in reasons:
            yield from self._for_reason(reason, around.maker)
        if around.readers:
            wide: dict[str, LayerPrecision] = {path: self._wide(path) for path in around.readers}
            yield self._with_layers(wide)
        makers = () if around.maker is None else (around.maker,)
        smallest, all_of_them = around.movers or makers, (*makers, *around.movers, *around.readers)
        for paths in dict.fromkeys([smallest, tuple(dict.fromkeys(all_of_them))]):
            if paths:
                yield self._with_layers(dict.fromkeys(paths, "float32"))

    def together(self, changes: Sequence[Change]) -> Change:
        """Changes of options as one."""
        layers: dict[str, LayerPrecision] = {}
        fields: dict[str, object] = {}
        for change in changes:
            layers |= {k: v for k, v in change.options.layers.items() if self.options.layers.get(k) != v}
            fields |= {
                name: getattr(change.options, name)
                for name in QuantizeOptions.model_fields
                if name != "layers" and getattr(change.options, name) != getattr(self.options, name)
            }
        joined = self._with_layers(layers)
        others = [change.text for change in changes if change.options.layers == self.options.layers]
        text = ", ".join(dict.fromkeys([*([joined.text] if layers else []), *others]))
        return Change(text, joined.options.model_copy(update=fields))

    def _for_reason(self, reason: Reason, maker: str | None) -> Iterator[Change]:
        if reason.kind is Kind.WEIGHTS and maker is not None:
            if Precisions(self.options, self.context.layers, self.context.selects).weight_bits(maker) < 8:
                yield self._with_layers({maker: LayerBits(weights="int8")})
            if not self.options.per_channel:
                yield Change("per_channel: true", self._with(per_channel=True))
        if reason.sample is not None:
            yield Change(f"calibration without sample {reason.sample}", self.options, left_out=reason.sample)
        if reason.constant is not None and reason.constant in self.graph.params:
            constant = self.graph.params[reason.constant]
            finite = constant[constant.isfinite()]
            rest = self._largest_other(float(finite.abs().max()) if len(finite) else 0.0)
            limit = _BEYOND * rest + _MARGIN
            text = f"%{reason.constant} within -{limit:.3g} to {limit:.3g}"
            yield Change(text, self.options, constants={reason.constant: constant.clamp(-limit, limit)})

    def _largest_other(self, constant: float) -> float:
        """Largest magnitude below that of a constant, of all values that are not made from it."""
        seen = chain.from_iterable(s.batches for s in self._statistics.values())
        others = [abs(end) for ends in seen for end in ends if abs(end) < constant / 2]
        return max(others, default=1.0)

    def _wide(self, module: str) -> LayerBits:
        """16 bits for what a layer reads; the bits of its weights as they are."""
        bits = Precisions(self.options, self.context.layers, self.context.selects).weight_bits(module)
        own = {2: "int2", 4: "int4", 8: "int8"}[bits]
        weights = None if own == self.options.weights else own
        return LayerBits.model_validate({"weights": weights, "activations": "int16"})

    def _around(self, name: str) -> _Around:
        """The paths of what makes a value, of what moves it on, and of what computes with it then."""
        graph = self._propagation.graph
        origin = name
        while origin in graph.producers and _converts(graph.producers[origin]):
            origin = graph.producers[origin].operands[0].name
        waiting, passed, movers, readers = [name, origin], {name, origin}, [], []
        while waiting:
            for node in graph.users.get(waiting.pop(0), ()):
                if not _converts(node) and node.op.quantized is not Quantized.MOVE:
                    readers.append(path_of(node))
                    continue
                if not _converts(node):
                    movers.append(path_of(node))
                waiting += [v.name for v in node.outputs if v.name not in passed]
                passed.update(v.name for v in node.outputs)
        maker = path_of(graph.producers[origin]) if origin in graph.producers else None
        return _Around(maker, tuple(dict.fromkeys(movers)), tuple(dict.fromkeys(readers)))

    def _with(self, **update: object) -> QuantizeOptions:
        return self.options.model_copy(update=update)

    def _with_layers(self, layers: Mapping[str, LayerPrecision]) -> Change:
        kept = {name: p for name, p in self.options.layers.items() if name not in layers}
        shown = ", ".join(f"{name}: {_shown(precision)}" for name, precision in layers.items())
        nameless = [name for name in layers if name.startswith(_VALUE)]
        condition = f" (once modules of their own make {', '.join(nameless)})" if nameless else ""
        return Change(f"layers: {{{shown}}}{condition}", self._with(layers={**kept, **layers}))

    @cached_property
    def _statistics(self) -> dict[str, Statistics]:
        return self._collected(self.graph, self.context)

    def _collected(self, graph: Graph, context: Context) -> dict[str, Statistics]:
        """What calibration sees of every value that any change may make an integer."""
        samples = context.calibration[: self.options.samples]
        prepared = prepare(graph, samples)
        plan = make_plan(prepared.graph, lambda module: False, in_float=prepared.in_float)
        return collect(prepared.graph, samples, plan.observed, progress=context.progress)

    def _ratios(self, change: Change) -> Mapping[str, float]:
        graph, context = self.graph, self.context
        if change.is_of_options:
            context = replace(context, statistics=self._statistics)
        if change.left_out is not None:
            left_out = change.left_out // own_batch(graph.inputs)
            kept = [x for i, x in enumerate(context.calibration) if i != left_out]
            context = replace(context, calibration=kept)
        if change.constants:
            graph = graph.with_params(change.constants)
        try:
            integer = find_pass("quantize")(graph, change.options, context).graph
            return self._propagation.ratios_in(integer, self._targets)
        except (PassError, IRError):  # a change that this network does not take
            return {}


@dataclass(frozen=True)
class _Around:
    """Layer paths next to a value; the maker is None for an input of the graph."""

    maker: str | None
    movers: tuple[str, ...]
    readers: tuple[str, ...]


def path_of(node: Node) -> str:
    """The module path of a node; of one in no module, the value that it makes."""
    return node.source.module or f"{_VALUE}{node.outputs[0].name}"


def _with_paths(graph: Graph) -> Graph:
    """The graph with a path for each node, so that a change can concern it alone."""
    nodes = tuple(replace(n, source=Source(path_of(n), n.source.location)) for n in graph.nodes)
    return replace(graph, nodes=nodes)


def _or_exactly(selects: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Selection by the spec's patterns; the name of a value selects that alone."""

    def select(pattern: str, path: str) -> bool:
        return pattern == path if path.startswith(_VALUE) else selects(pattern, path)

    return select


def _converts(node: Node) -> bool:
    return isinstance(node.op, Quantize | Dequantize | Requantize)


def _shown(precision: LayerPrecision) -> str:
    if isinstance(precision, str):
        return precision
    said = precision.model_dump(exclude_none=True)
    return "{" + ", ".join(f"{key}: {value}" for key, value in said.items()) + "}"
