"""A captured module: its graph, and the mapping of arguments and results to the graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ...ir import Graph, run
from ...specs.root_error import ArgumentError, expect, shown

_CALL, _LIKE = "the call", "call it like the module, with the same numbers and texts as at capture"


@dataclass(frozen=True)
class TensorAt:
    """Position of a tensor among the graph's inputs or outputs."""

    index: int


@dataclass(frozen=True)
class Fixed:
    """A value other than a tensor, the same in every call."""

    value: object


Leaf = TensorAt | Fixed


@dataclass(frozen=True)
class Signature:
    """Mapping of a module's nested arguments and results to the inputs and outputs of a graph."""

    arguments: pytree.TreeSpec
    inputs: tuple[Leaf, ...]
    result: pytree.TreeSpec
    outputs: tuple[Leaf, ...]

    def flatten(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[Tensor]:  # Any: the arguments of the module
        """The graph's inputs; ArgumentError if the structure of the arguments differs from that at capture."""
        try:
            leaves = self.arguments.flatten_up_to((tuple(args), kwargs))
        except ValueError as err:
            raise ArgumentError(_CALL, f"was captured for other arguments: {err}", _LIKE) from err
        for leaf, known in zip(leaves, self.inputs, strict=True):
            if isinstance(known, Fixed) and (type(leaf), leaf) != (type(known.value), known.value):
                raise ArgumentError(_CALL, f"was captured for {known.value!r}, got {shown(leaf)}", _LIKE)
            if isinstance(known, TensorAt) and not isinstance(leaf, Tensor):
                raise ArgumentError(_CALL, f"was captured for a tensor, got {shown(leaf)}", _LIKE)
        return [leaf for leaf, known in zip(leaves, self.inputs, strict=True) if isinstance(known, TensorAt)]

    def unflatten(self, outputs: Sequence[Tensor]) -> Any:  # Any: the result of the module
        """The module's result from the graph's outputs."""
        leaves = [outputs[o.index] if isinstance(o, TensorAt) else o.value for o in self.outputs]
        return pytree.tree_unflatten(leaves, self.result)


@dataclass(frozen=True)
class Captured:
    """A captured module; `trainable` are the names of the constants that are parameters with a gradient.

    `deviation` is the largest difference from the module on the example arguments, relative to the largest element of
    its result: 0.0 means bit for bit, None that it was not measured.
    """

    graph: Graph
    signature: Signature
    trainable: frozenset[str] = frozenset()
    deviation: float | None = None


def as_callable(captured: Captured, *, graph: Graph | None = None) -> Callable[..., Any]:
    """A function with the module's arguments and result, computed only by the graph.

    `graph` may be the result of passes on the captured one.
    """
    expect(captured, Captured, "as_callable(captured)", "what `capture` gives")
    expect(graph, (Graph, NoneType), "as_callable(graph=...)", "a graph")
    chosen = captured.graph if graph is None else graph
    # torch chooses kernels by whether a weight requires a gradient, even if none is computed
    weights = {
        v.name: chosen.tensor(v).detach().requires_grad_()
        for v in chosen.constants
        if v.name in captured.trainable and not v.type.is_quantized
    }

    def call(*args: Any, **kwargs: Any) -> Any:  # Any: arguments and result of the module
        inputs = captured.signature.flatten(args, kwargs)
        for value, tensor in zip(chosen.inputs, inputs, strict=True):
            if tensor.dtype is not value.type.dtype.torch:
                fact = f"was captured for {value.type.dtype.torch}, got {tensor.dtype}"
                raise ArgumentError(f"input {value.name}", fact, "convert it with .to()")
        return captured.signature.unflatten(run(chosen, inputs, params=weights))

    return call
