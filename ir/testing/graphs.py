"""Strategies for graphs: random ones, quantized ones, and an example for each operator."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ..element_type import DType
from ..graph import Graph, Node
from ..interpret import run_integer
from ..tensor_type import TensorType
from ..verify import verify
from .growth import DIGITS, GROWS, Growth, Step
from .integers import to_integers
from .tensors import inputs

_EITHER = {"linear", "relu", "clamp", "add", "sub", "mul", "concat", "slice", "reshape", "permute", "softmax"}
_CONVOLUTIONAL = {
    "conv",
    "conv_transpose",
    "batch_norm",
    "max_pool",
    "avg_pool",
    "adaptive_avg_pool",
    "mean",
    "split",
}
_ENLARGING = {"pad", "resize_nearest", "resize_linear"}
_SMOOTH = {"leaky_relu", "prelu", "hardswish", "sigmoid", "silu"}
CNN_OPS = frozenset(_EITHER | _CONVOLUTIONAL | _ENLARGING | _SMOOTH)
MLP_OPS = frozenset(_EITHER | {"tanh", "gelu", "layer_norm", "matmul"})
DEFAULT_OPS = CNN_OPS | MLP_OPS
INTEGER_OPS = DEFAULT_OPS - {"batch_norm"}

_IMAGES = [
    TensorType((n, c, h, w)) for n, c, h, w in [(1, 1, 2, 2), (1, 2, 4, 4), (2, 3, 5, 4), (1, 4, 6, 6)]
]
_SIGNALS = [TensorType(shape) for shape in [(1, 2, 6), (2, 4, 5), (1, 1, 8)]]
_VECTORS = [TensorType(shape) for shape in [(1, 4), (2, 6), (3, 1)]]


def graphs(
    *,
    ops: Collection[str] = DEFAULT_OPS,
    max_steps: int = 5,
    input_types: Sequence[TensorType] = (*_IMAGES, *_SIGNALS, *_VECTORS),
    dtype: DType = DType.F32,
) -> SearchStrategy[Graph]:
    """Valid graphs of operators named in `ops` on floats of `dtype`, grown in at most `max_steps` steps.

    They branch and join, share constants, and have one or two inputs and several outputs, some of which are
    intermediates that other nodes read, too. A step adds a node, or a chain that rewrites match. Shrinks towards few
    nodes, small shapes and plain attributes.
    """
    types = tuple(replace(type, dtype=dtype) for type in input_types)
    return _plans(tuple(sorted(ops)), max_steps, types).map(_Plan.graph)


def quantized_graphs(
    *,
    ops: Collection[str] = INTEGER_OPS,
    max_steps: int = 4,
    input_types: Sequence[TensorType] = (*_IMAGES, *_VECTORS),
) -> SearchStrategy[Graph]:
    """Valid graphs that compute on integers, with float inputs and outputs.

    Scales come from a run of the float graph on random data, so that values use their range and some saturate. Each
    value has its own encoding if the operator allows it.
    """

    def quantized(graph: Graph) -> SearchStrategy[Graph]:
        return inputs(graph, extreme=False).map(lambda sample: verify(to_integers(graph, sample)))

    return graphs(ops=ops, max_steps=max_steps, input_types=input_types).flatmap(quantized)


def graphs_around(
    pattern: Graph, *, ops: Collection[str] = DEFAULT_OPS, max_steps: int = 3
) -> SearchStrategy[Graph]:
    """Valid graphs that contain the nodes of `pattern` in random surroundings of operators named in `ops`.

    Operands of the pattern may be computed, shared or inputs; each of its values, also an intermediate, may be read
    by further nodes or be an output. Shrinks towards the pattern alone.
    """
    steps = st.lists(_steps(tuple(sorted(ops))), max_size=max_steps).map(tuple)
    extra = st.lists(st.integers(0, max_steps), max_size=2).map(tuple)
    return st.builds(_Surroundings, st.just(pattern), _SEEDS, steps, _steps(("relu",)), steps, extra).map(
        _Surroundings.graph
    )


@dataclass(frozen=True)
class Example:
    """A graph of one node, with weights as constants, and tensors for its inputs."""

    graph: Graph
    inputs: list[Tensor]

    @property
    def node(self) -> Node:
        """The node."""
        return self.graph.nodes[0]


@st.composite
def examples(
    draw: st.DrawFn,
    name: str,
    *,
    input_types: Sequence[TensorType] = (*_IMAGES, *_SIGNALS, *_VECTORS),
    extreme: bool = False,
) -> Example:
    """Nodes of operator `name` on random tensors; `extreme` adds constant ones at the ends of the range."""
    growth = Growth(draw(_SEEDS))
    growth.input(draw(st.sampled_from(input_types)))
    growth.grow(draw(_steps((name,))))
    graph = growth.graph()
    chosen = [node for node in graph.nodes if node.op.name == name]
    assume(chosen)
    tensors: dict[str, Tensor] = {}
    fed = draw(inputs(graph, extreme=extreme))
    run_integer(graph, fed, observe=lambda value, tensor: tensors.update({value.name: tensor}))
    tensors.update({v.name: t for v, t in zip(graph.inputs, fed, strict=True)})
    node = chosen[-1]
    varying = tuple({v.name: v for v in node.operands if v.name in tensors}.values())
    params = graph.params.only({v.name for v in node.operands})
    alone = verify(Graph(varying, node.outputs, (node,), params))
    return Example(alone, [tensors[v.name].to(v.type.dtype.torch) for v in varying])


@dataclass(frozen=True)
class _Plan:
    """Plan of a random graph. A failing test prints the plan, so that the graph can be rebuilt."""

    seed: int
    input_type: TensorType
    two_inputs: bool
    steps: tuple[tuple[Step, ...], ...]
    extra_outputs: tuple[int, ...]

    def graph(self) -> Graph:
        """The graph; steps that do not fit are skipped."""
        growth = Growth(self.seed, dtype=self.input_type.dtype)
        for _ in range(1 + self.two_inputs):
            growth.input(self.input_type)
        for step in chain.from_iterable(self.steps):
            growth.grow(step)
        return verify(growth.graph(self.extra_outputs))


@dataclass(frozen=True)
class _Surroundings:
    """Plan of a random graph around a pattern."""

    pattern: Graph
    seed: int
    before: tuple[Step, ...]
    feed: Step
    after: tuple[Step, ...]
    extra_outputs: tuple[int, ...]

    def graph(self) -> Graph:
        """The pattern with the steps `before` and `after` it."""
        floating = [v.type for v in self.pattern.inputs if v.type.dtype.is_floating]
        growth = Growth(self.seed, dtype=floating[0].dtype if floating else DType.F32)
        for type in floating[:1] if self.before else ():
            growth.input(type)
            for step in self.before:
                growth.grow(step)
        growth.embed(self.pattern, self.feed)
        for step in self.after:
            growth.grow(step)
        return verify(growth.graph(self.extra_outputs))


_SEEDS = st.integers(0, 2**16)
_BACK = (0, 0, 0, 0, 1, 2)  # usually the value just computed, so that chains grow
_MOTIFS = (
    "conv batch_norm",
    "conv batch_norm relu",
    "conv add",
    "conv add clamp",
    "conv relu",
    "conv conv",
    "pad conv",
    "pad max_pool",
    "conv_transpose batch_norm",
    "linear batch_norm relu",
    "linear relu",
    "linear linear",
    "linear add",
    "relu clamp",
    "clamp clamp",
    "permute permute",
    "reshape reshape",
    "permute reshape permute",
    "split concat",
    "concat conv",
    "batch_norm conv",
    "mul add",
)
_MOSTLY = (False, True, True, True, True, True)  # a chain shrinks by loss of members
_POPULAR = {
    "conv": 6,
    "linear": 3,
    "batch_norm": 3,
    "relu": 3,
    "clamp": 2,
    "add": 3,
    "concat": 2,
    "max_pool": 2,
}


@lru_cache
def _plans(
    ops: tuple[str, ...], max_steps: int, input_types: tuple[TensorType, ...]
) -> SearchStrategy[_Plan]:
    single = _steps(tuple(name for name in ops for _ in range(_POPULAR.get(name, 1)))).map(
        lambda step: (step,)
    )
    motifs = [_motif(names) for names in map(str.split, _MOTIFS) if set(names) <= set(ops)]
    steps = st.one_of(st.just(()), single, *([st.one_of(motifs)] if motifs else []))
    return st.builds(
        _Plan,
        _SEEDS,
        st.sampled_from(input_types),
        st.booleans(),
        st.tuples(*(steps for _ in range(max_steps))),
        st.lists(st.integers(0, max_steps), max_size=2).map(tuple),
    )


def _motif(names: Sequence[str]) -> SearchStrategy[tuple[Step, ...]]:
    """A chain of operators, each on the result of the previous one."""
    first, *rest = names
    following = [st.builds(replace, _steps((name,)), back=st.just(0)) for name in rest]
    members = [st.tuples(st.sampled_from(_MOSTLY), step) for step in (_steps((first,)), *following)]
    return st.tuples(*members).map(lambda drawn: tuple(step for present, step in drawn if present))


@lru_cache
def _steps(ops: tuple[str, ...]) -> SearchStrategy[Step]:
    unknown = sorted(set(ops) - GROWS.keys())
    if unknown:
        raise ValueError(f"no function grows a graph by {', '.join(unknown)}; register it with @grows")
    digits = st.tuples(*(st.integers(0, 5) for _ in range(DIGITS)))
    return st.builds(Step, st.sampled_from(ops), st.sampled_from(_BACK), st.integers(0, 5), digits)
