"""Pass interface, registry of passes, and the context that the pipeline provides.

    @register(FuseOptions)
    def fuse(graph: Graph, options: FuseOptions, context: Context) -> PassResult: ...

    fused = fuse(graph, disable=["residual"]).graph

The options say the pass's name in the spec and what it needs. A pass of a user's joins through the entry
point group `fxpress.passes`: the entry's name is the pass's, its object a function decorated with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ..ir import Graph, Node, Precision, Source, VerifyError, verify
from ..ir.graph import check_graph
from ..specs import FileSource, ModuleSource, layer_matches, match_layers, plugins
from ..specs.options import PassOptions, QuantizeOptions
from ..specs.order import faults
from ..specs.plugins import PluginError
from ..specs.root_error import ArgumentError, expect, shown
from ..specs.write import read_values
from .calibration.observers import Statistics
from .errors import MissingNeedError, OrderError, PassError, UnknownPassError
from .progress_callback import Progress, silent
from .report import PassReport
from .workers import ALONE, Workers

Options = TypeVar("Options", bound=PassOptions)
_QUANTIZE = QuantizeOptions.pass_name()


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Predicted cost of one step of the program on the target; code and constants count at their first use.

    `result` is the value that it makes, `module` the user's module path. Cycles are None where the core has none.
    """

    result: str
    module: str
    flash_bytes: int
    instructions: int
    cycles: int | None


@dataclass(frozen=True, slots=True)
class ArenaBlock:
    """A piece of the arena: the value that it holds first, "" for scratch memory, and the steps of its use."""

    value: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted cost of one run on the target: all steps in order, and the totals.

    `flash_bytes` is all that the linked C takes, `arena_bytes` the arena as planned for the order of execution. Cycles
    are None for a core whose timing is not published.
    """

    nodes: tuple[NodeCost, ...]
    flash_bytes: int
    arena_bytes: int
    instructions: int
    cycles: int | None
    arena: tuple[ArenaBlock, ...] = ()


class CostModel(Protocol):
    """Cost model of the target, provided by the pipeline."""

    @property
    def flash_limit(self) -> int | None:
        """Bytes of flash of the target; None if it does not bind."""

    @property
    def ram_limit(self) -> int | None:
        """Bytes of memory of the target; None if it does not bind."""

    def predict(self, graph: Graph, *, layers: Mapping[str, Precision] = {}) -> Cost:
        """Cost of `graph` after the remaining passes, with these layers at these bit widths.

        PassError if the target cannot carry it.
        """

    def weight_bits(self, node: Node) -> tuple[int, ...]:
        """Storage bits of weights for which the target has a kernel for `node`."""

    def activation_bits(self, node: Node) -> tuple[int, ...]:
        """Storage bits of activations for which the target has a kernel for `node`."""


def limits_of_target(costs: CostModel) -> dict[str, float]:
    """The bytes of `flash` and of `ram` that the target has, those that bind; PassError if neither does."""
    both = {"flash": costs.flash_limit, "ram": costs.ram_limit}
    limits = {name: float(limit) for name, limit in both.items() if limit is not None}
    if not limits:
        raise PassError(
            "the budget is the target's, which has neither flash nor ram; give them under `target`"
        )
    return limits


def _load_nothing(source: FileSource | ModuleSource) -> object:
    """Loading where nobody said how."""
    raise PassError(f"{source} cannot be loaded here")


@dataclass(frozen=True)
class Context:
    """Inputs of a pass besides graph and options. Anything that the spec does not give is empty or None.

    `calibration` holds input tuples, each with exactly the graph's input shapes; `labels` a tensor for each of
    them. `original` is the graph as it was captured. `statistics`, where given, are what calibration saw, by value: it
    does not run again.
    `selects(pattern, module)` says whether a layer selector of the spec means a module path, `load(source)` gives what
    a `file.py:name` of the spec names. `progress(label, done, total)` is called as long work goes on.
    `state` names the inputs that take what an output gave at the call before, each with that output. `workers` are the
    processes that share work on samples; the result does not depend on their number.
    """

    calibration: Sequence[tuple[Tensor, ...]] = ()
    labels: Sequence[Tensor] = ()
    cost: CostModel | None = None
    original: Graph | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    selects: Callable[[str, str], bool] = layer_matches
    load: Callable[[FileSource | ModuleSource], object] = _load_nothing
    progress: Progress = silent
    state: Mapping[str, str] = field(default_factory=dict)
    workers: Workers = ALONE

    def __post_init__(self) -> None:
        call, what = "Context(calibration=...)", "a list with a tuple of tensors for each call"
        hint = "of images [n, ...] for one input: [(x[None],) for x in images]"
        expect(self.calibration, Sequence, call, what, hint)
        if len(self.calibration):
            expect(self.calibration[0], (tuple, list), call, what, hint)
        call, what = "Context(labels=...)", "a list with a tensor for each call"
        expect(self.labels, Sequence, call, what)
        if len(self.labels):
            expect(self.labels[0], Tensor, call, what)

    @property
    def available(self) -> frozenset[str]:
        """The needs that this context satisfies, in the words of `PassOptions.needs`."""
        given = {"calibration": len(self.calibration) > 0, "labels": len(self.labels) > 0}
        return frozenset(need for need, is_given in given.items() if is_given)

    def selects_any(self, patterns: Iterable[str], source: Source) -> bool:
        """Whether one of these layer selectors of the spec means where `source` says that a node comes from."""
        return any(self.selects(pattern, source.module) for pattern in patterns)


@dataclass(frozen=True)
class PassResult:
    """The rewritten graph and the report.

    A pass that makes states names the inputs and the outputs that they continue in `state`. `frames` are the time axes
    of inputs that take new frames in place of a window, by name.
    """

    graph: Graph
    report: PassReport
    state: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, int] = field(default_factory=dict)


PassFunction = Callable[[Graph, Options, Context], PassResult]


@dataclass(frozen=True)
class Pass(Generic[Options]):
    """A registered pass. It can be called like the function it was made from, or with options by name."""

    options: type[Options]
    function: PassFunction[Options]

    @property
    def name(self) -> str:
        """The pass's name in the spec."""
        return self.options.pass_name()

    def __call__(
        self,
        graph: Graph,
        options: Options | None = None,
        context: Context = Context(),
        **settings: object,
    ) -> PassResult:
        """Run the pass and verify what it gives back; MissingNeedError before anything runs.

        `settings` are options by name, as in a spec, in place of `options`: `fuse(graph, keep=["head"])`. SpecError
        for those that a spec could not have, and for patterns that match no layer.
        """
        call = f"{self.name}(graph, ...)"
        check_graph(graph, call)
        expect(context, Context, call, "a `Context` as `context`", "write Context(calibration=...)")
        if options is None:
            options = read_values(self.options, settings, name=f"{self.name}(...)")
            match_layers(
                [pattern for _, pattern in options.layer_patterns()], [n.source.module for n in graph.nodes]
            )
        elif settings:
            fact = f"both an options object and {', '.join(settings)}"
            raise ArgumentError(call, fact, "give the options either as one object or by name")
        expect(
            options, self.options, call, f"options of class {self.options.__name__}", "or give them by name"
        )
        self._check_order(graph)
        missing = self.missing(options, context)
        if missing:
            raise MissingNeedError(f'pass "{self.name}"', *missing)
        result = self.function(graph, options, context)
        verify(result.graph)
        lost = sorted(graph.precisions.keys() - result.graph.precisions.keys())
        if lost:
            raise VerifyError(f"pass {self.name} loses the bits of {', '.join(lost)}; keep graph.precisions")
        return result

    def _check_order(self, graph: Graph) -> None:
        """OrderError on an integer graph where a spec could not have `quantize` before this pass."""
        ran = [_QUANTIZE] if any(value.type.is_quantized for value in graph.results) else []
        for code, fact, _ in faults(self.options, [*self.options.after, *ran], self.options.followed_by):
            raise OrderError(code, fact)

    def missing(self, options: Options, context: Context) -> tuple[str, ...]:
        """Inputs that the pass needs with these options, and the context lacks."""
        return tuple(sorted({need for need, _ in options.needed()} - context.available))


_PASSES: dict[str, Pass[Any]] = {}  # Any: each pass has its own options
PASSES: Mapping[str, Pass[Any]] = MappingProxyType(_PASSES)


def register(options: type[Options]) -> Callable[[PassFunction[Options]], Pass[Options]]:
    """Function decorator: enter a pass in the registry under the name that its options declare."""

    if not (isinstance(options, type) and issubclass(options, PassOptions)):
        fact = f"expects a subclass of PassOptions, got {shown(options)}"
        raise ArgumentError("register(options)", fact, "write @register(MyOptions)")

    def enter(function: PassFunction[Options]) -> Pass[Options]:
        name = options.pass_name()
        if name in _PASSES:
            raise ValueError(f"pass {name!r} is registered twice")
        _PASSES[name] = Pass(options, function)
        return _PASSES[name]

    return enter


def find_pass(name: str) -> Pass[Any]:  # Any: each pass has its own options
    """The pass of this name, from the registry or a package's entry point; UnknownPassError names the nearest."""
    expect(name, str, "find_pass(name)", "the name of a pass")
    if name not in _PASSES and name in plugins.PASSES.names():
        try:
            plugins.PASSES.load(name)
        except PluginError as err:
            raise UnknownPassError(err.message) from err
    if name not in _PASSES:
        known = sorted({*_PASSES, *plugins.PASSES.names()})
        near = get_close_matches(name, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
        raise UnknownPassError(f'unknown pass "{name}"; {hint}')
    return _PASSES[name]
