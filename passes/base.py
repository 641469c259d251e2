"""Pass interface, registry of passes, and the context that the pipeline provides.

    @register(FuseOptions)
    def fuse(graph: Graph, options: FuseOptions, context: Context) -> PassResult: ...

    fused = fuse(graph, disable=["residual"]).graph

The options define the pass's name in the spec and the data that it needs. A user's pass is added through the entry
point group `fxpress.passes`: the entry has the name of the pass, and its object is a function decorated with
`register`.
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
from ..specs.options import PassOptions, QuantizeOptions, Teacher
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

    `result` is the value that it computes, `module` the user's module path. Cycles are None for a core without
    published timing.
    """

    result: str
    module: str
    flash_bytes: int
    instructions: int
    cycles: int | None


@dataclass(frozen=True, slots=True)
class ArenaBlock:
    """A block of the arena: the first value in it, "" for scratch memory, and the steps of its use."""

    value: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted cost of one run on the target: all steps in order, and the totals.

    `flash_bytes` is the size of the linked C, `arena_bytes` the planned arena for the order of execution. Cycles are
    None for a core without published timing.
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
        """Bytes of flash of the target; None without a limit."""

    @property
    def ram_limit(self) -> int | None:
        """Bytes of memory of the target; None without a limit."""

    def predict(self, graph: Graph, *, layers: Mapping[str, Precision] = {}) -> Cost:
        """Cost of `graph` after the remaining passes, with these layers at these bit widths.

        PassError if the target does not support it.
        """

    def weight_bits(self, node: Node) -> tuple[int, ...]:
        """Storage bits of weights for which the target has a kernel for `node`."""

    def activation_bits(self, node: Node) -> tuple[int, ...]:
        """Storage bits of activations for which the target has a kernel for `node`."""


def limits_of_target(costs: CostModel) -> dict[str, float]:
    """The limits of `flash` and `ram` of the target in bytes; PassError if it has neither."""
    both = {"flash": costs.flash_limit, "ram": costs.ram_limit}
    limits = {name: float(limit) for name, limit in both.items() if limit is not None}
    if not limits:
        raise PassError(
            "the budget is that of the target, which has no limit of flash or ram; set them under `target`"
        )
    return limits


def _load_nothing(source: FileSource | ModuleSource) -> object:
    """Default loader, which always fails."""
    raise PassError(f"{source} cannot be loaded here")


def _no_teacher(teacher: Teacher) -> Graph:
    """The graph of a teacher where nothing captures one."""
    raise PassError(f"the teacher {teacher.source} cannot be captured here")


@dataclass(frozen=True)
class Context:
    """Inputs of a pass in addition to graph and options. Data that the spec does not define are empty or None.

    `calibration` holds input tuples, each with exactly the graph's input shapes; `labels` a tensor for each of them.
    `original` is the captured graph. `statistics`, if given, are calibration statistics by value, so that calibration
    does not run again. `selects(pattern, module)` is True if a layer selector of the spec matches a module path;
    `load(source)` returns the object of a `file.py:name` in the spec, `teacher(options)` the graph of another model
    with the same inputs. `progress(label, done, total)` is called during long computations. `state` maps each input
    that takes an output of the previous call to that output. `workers` are the processes that share work on samples;
    the result does not depend on their number.
    """

    calibration: Sequence[tuple[Tensor, ...]] = ()
    labels: Sequence[Tensor] = ()
    cost: CostModel | None = None
    original: Graph | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    selects: Callable[[str, str], bool] = layer_matches
    load: Callable[[FileSource | ModuleSource], object] = _load_nothing
    teacher: Callable[[Teacher], Graph] = _no_teacher
    progress: Progress = silent
    state: Mapping[str, str] = field(default_factory=dict)
    workers: Workers = ALONE

    def __post_init__(self) -> None:
        call, what = "Context(calibration=...)", "a list with a tuple of tensors for each call"
        hint = "for images [n, ...] of a single input: [(x[None],) for x in images]"
        expect(self.calibration, Sequence, call, what, hint)
        if len(self.calibration):
            expect(self.calibration[0], (tuple, list), call, what, hint)
        call, what = "Context(labels=...)", "a list with a tensor for each call"
        expect(self.labels, Sequence, call, what)
        if len(self.labels):
            expect(self.labels[0], Tensor, call, what)

    @property
    def available(self) -> frozenset[str]:
        """The data that this context has, in the terms of `PassOptions.needs`."""
        given = {"calibration": len(self.calibration) > 0, "labels": len(self.labels) > 0}
        return frozenset(need for need, is_given in given.items() if is_given)

    def selects_any(self, patterns: Iterable[str], source: Source) -> bool:
        """True if one of these layer selectors of the spec matches the source of a node."""
        return any(self.selects(pattern, source.module) for pattern in patterns)


@dataclass(frozen=True)
class PassResult:
    """The rewritten graph and the report.

    A pass that adds states has the inputs, each with the output that it continues, in `state`. `frames` are the time
    axes, by name, of inputs that take new frames in place of a window.
    """

    graph: Graph
    report: PassReport
    state: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, int] = field(default_factory=dict)


PassFunction = Callable[[Graph, Options, Context], PassResult]


@dataclass(frozen=True)
class Pass(Generic[Options]):
    """A registered pass. It can be called like the decorated function, or with options by name."""

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
        """Runs the pass and verifies the returned graph; MissingNeedError before the pass runs.

        `settings` are options by name, as in a spec, in place of `options`: `fuse(graph, keep=["head"])`. SpecError
        for invalid options, and for patterns that match no layer.
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
            raise ArgumentError(call, fact, "pass the options either as one object or by name")
        expect(
            options, self.options, call, f"options of class {self.options.__name__}", "or pass them by name"
        )
        self._check_order(graph)
        missing = self.missing(options, context)
        if missing:
            raise MissingNeedError(f'pass "{self.name}"', *missing)
        result = self.function(graph, options, context)
        verify(result.graph)
        lost = sorted(graph.precisions.keys() - result.graph.precisions.keys())
        if lost:
            raise VerifyError(f"pass {self.name} loses the bits of {', '.join(lost)}; copy graph.precisions")
        return result

    def _check_order(self, graph: Graph) -> None:
        """OrderError for an integer graph if a spec does not allow `quantize` before this pass."""
        ran = [_QUANTIZE] if any(value.type.is_quantized for value in graph.results) else []
        for code, fact, _ in faults(self.options, [*self.options.after, *ran], self.options.followed_by):
            raise OrderError(code, fact)

    def missing(self, options: Options, context: Context) -> tuple[str, ...]:
        """Inputs that the pass needs with these options and that the context lacks."""
        return tuple(sorted({need for need, _ in options.needed()} - context.available))


_PASSES: dict[str, Pass[Any]] = {}  # Any: each pass has its own options
PASSES: Mapping[str, Pass[Any]] = MappingProxyType(_PASSES)


def register(options: type[Options]) -> Callable[[PassFunction[Options]], Pass[Options]]:
    """Function decorator: registers a pass under the name in its options."""

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
    """The pass with this name, from the registry or a package's entry point; UnknownPassError has the nearest names."""
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
