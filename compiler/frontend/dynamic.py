"""Dynamic dimensions of inputs: tracing of a module with sizes that each call chooses.

Torch traces with symbolic sizes and reports which of them the module fixes, bounds or makes equal. It treats sizes of
0 and 1, and equal sizes, as fixed, so the example is traced at other sizes, with its elements repeated or dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection
from torch.utils import _pytree as pytree

from ...ir.sizes import Dimension
from ...ir.symbolic import Symbols, resized, traced_sizes
from ..errors import Problem, UserError

Range = tuple[int | None, int | None]
_TORCH = str(Path(torch.__file__).parent)
_SEVERAL = 2  # the least size without a special case in torch


@dataclass(frozen=True)
class DynamicInputs:
    """The dynamic dimensions of the tensors among a module's arguments: by position of the tensor, then by axis."""

    names: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def wanted(self) -> dict[str, Dimension]:
        """The dimensions as the user defined them."""
        found = {}
        for name, example in self.examples.items():
            low, high = self.ranges.get(name, (None, None))
            found[name] = Dimension(name, example, min(example, 1) if low is None else low, high)
        return found

    def resized(self, arguments: Any, sizes: Mapping[str, int]) -> Any:  # Any: the arguments of the module
        """The arguments with elements repeated or dropped along dynamic dimensions, to these sizes."""
        leaves, spec = pytree.tree_flatten(arguments)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for position, axes in self.names.items():
            at = tensors[position]
            leaves[at] = resized(leaves[at], {axis: sizes[name] for axis, name in axes.items()})
        return pytree.tree_unflatten(leaves, spec)

    def traced(self, arguments: Any) -> Any:  # Any: the arguments of the module
        """The arguments at the sizes for tracing."""
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        fixed = {
            n for i, s in enumerate(shapes) for axis, n in enumerate(s) if axis not in self.names.get(i, {})
        }
        wanted = self.wanted
        sizes = dict(zip(wanted, traced_sizes(wanted, frozenset(fixed)), strict=True))
        return pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self.resized(arguments, sizes)
        )

    def shapes(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # Any: torch's own
        """The dynamic dimensions in the form of torch's tracer; `args` and `kwargs` are the traced arguments."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        collection = ShapesCollection()
        for position, axes in self.names.items():
            collection[tensors[position]] = dict.fromkeys(axes, Dim.AUTO)
        return collection.dynamic_shapes(model, args, kwargs)


FIXED = DynamicInputs()
"""No dynamic dimension."""


def dynamic_inputs(
    model: nn.Module,
    args: Sequence[Any],  # Any: the arguments of the module
    kwargs: Mapping[str, Any],
    dynamic: Mapping[str, Mapping[int, str]],
    ranges: Mapping[str, Range],
    input_names: Sequence[str] | None,
) -> DynamicInputs:
    """The dynamic dimensions, by the inputs' names; UserError for dimensions that do not exist or fit."""
    tensors = [leaf for leaf in pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(leaf, Tensor)]
    names = list(input_names) if input_names is not None else _argument_names(model, args, kwargs, tensors)
    found: dict[int, dict[int, str]] = {}
    examples: dict[str, int] = {}
    problems: list[Problem] = []
    for name, axes in dynamic.items():
        place = f"input {name}"
        if name not in names:
            hint = f"there are {', '.join(filter(None, names))}"
            problems.append(Problem("M215", place, "is not a tensor argument of forward", hint))
            continue
        position = names.index(name)
        shape = tuple(tensors[position].shape)
        for axis, dimension in axes.items():
            if not -len(shape) <= axis < len(shape):
                fact = f"has no dimension {axis}; its shape is {shape}"
                problems.append(Problem("M215", place, fact, "count from 0"))
                continue
            size = shape[axis]
            found.setdefault(position, {})[axis % len(shape)] = dimension
            if examples.setdefault(dimension, size) != size:
                fact = f"{dimension} has size {size}, and {examples[dimension]} in another input"
                problems.append(Problem("M215", place, fact, "a dimension has the same size in all inputs"))
    problems += [
        Problem(
            "M215", f"dimension {name}", "is not a dimension of an input", f"there are {', '.join(examples)}"
        )
        for name in ranges
        if name not in examples
    ]
    if problems:
        raise UserError(problems)
    return DynamicInputs(found, examples, dict(ranges))


def _argument_names(
    model: nn.Module,
    args: Sequence[Any],  # Any: the arguments of the module
    kwargs: Mapping[str, Any],
    tensors: Sequence[Tensor],
) -> list[str]:
    """Parameters of `forward` whose arguments are tensors, in the order of the tensors; "" for tensors inside other
    arguments.
    """
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    named = {id(value): name for name, value in bound.items() if isinstance(value, Tensor)}
    return [named.get(id(tensor), "") for tensor in tensors]


@dataclass(frozen=True)
class TracedDimensions:
    """Dimensions as found by the tracer, and the size of each of its symbols."""

    dimensions: Mapping[str, Dimension]
    symbols: Symbols

    def shape(self, inputs: DynamicInputs, position: int, traced: Tensor) -> tuple[int, ...]:
        """The shape of an input, with the sizes of the dynamic dimensions."""
        axes = inputs.names.get(position, {})
        return tuple(
            self.dimensions[axes[axis]].size if axis in axes else int(n)
            for axis, n in enumerate(traced.shape)
        )


def traced_dimensions(
    inputs: DynamicInputs,
    given: Sequence[fx.Node],
    ranges: Mapping[sympy.Symbol, Any],  # Any: torch's value ranges
    several: Set[str] = frozenset(),
) -> TracedDimensions:
    """The dimensions with the ranges that the module supports; UserError if the module fixes or bounds one further.

    `given` are the placeholders of the tensors. Dimensions in `several` are at least two unless the user gave a
    range.
    """
    symbols: dict[sympy.Symbol, str] = {}
    dimensions = dict(inputs.wanted)
    problems: list[Problem] = []
    for position, axes in inputs.names.items():
        tensor = given[position].meta["val"]
        for axis, name in axes.items():
            size = tensor.shape[axis]
            symbol = getattr(getattr(size, "node", None), "expr", None)
            if not isinstance(symbol, sympy.Symbol):
                problems.append(_fixed(given[position], axis, name, size))
            elif symbols.setdefault(symbol, name) != name:
                fact = f"{name} and {symbols[symbol]} are equal in every call"
                problems.append(
                    Problem("M216", f"input {given[position].name}", fact, "give both the same name")
                )
    for symbol, name in symbols.items():
        try:
            dimensions[name] = _bounded(inputs, dimensions[name], ranges.get(symbol), name in several)
        except UserError as err:
            problems += err.problems
    if problems:
        raise UserError(problems)
    return TracedDimensions(dimensions, {symbol: dimensions[name].size for symbol, name in symbols.items()})


def _bounded(
    inputs: DynamicInputs,
    dimension: Dimension,
    found: Any,  # Any: torch's value range
    is_several: bool,
) -> Dimension:
    """The dimension within the range that the tracer found."""
    low, high = inputs.ranges.get(dimension.name, (None, None))
    lower = 1 if found is None or found.lower <= _SEVERAL else int(found.lower)
    upper = None if found is None or not found.upper.is_Integer else int(found.upper)
    place = f"dimension {dimension.name}"
    if low is not None and low < lower:
        fact = f"`min` is {low}; the module needs at least {lower}"
        raise UserError(Problem("M216", place, fact, f"raise it to {lower}"))
    if upper is not None and high is not None and high > upper:
        fact = f"`max` is {high}; the module supports up to {upper}"
        raise UserError(Problem("M216", place, fact, f"lower it to {upper}"))
    if not lower <= dimension.example <= (upper or dimension.example):
        fact = f"the example's size is {dimension.example}; the module supports {lower}..{upper or ''}"
        raise UserError(Problem("M216", place, fact, "choose an example within the range"))
    chosen = low or max(lower, _SEVERAL if is_several else 1)
    return replace(dimension, low=chosen, high=upper if high is None else high)


def _fixed(node: fx.Node, axis: int, name: str, size: Any) -> Problem:  # Any: an integer or a symbolic one
    """Problem of a dimension that the module fixes, with the line that does so if the tracer reports it."""
    environment = node.meta["val"].fake_mode.shape_env
    guards = [g for g in environment.guards if isinstance(g.expr, sympy.Eq) and size in g.expr.args]
    places = [place for guard in guards if (place := _place(guard.sloc))]
    fact = f"the module fixes dimension {axis} ({name}) at {size}{f' at {places[0]}' if places else ''}"
    return Problem(
        "M216", f"input {node.name}", fact, "remove it from `dynamic`, or compute with the tensor's size"
    )


def _place(location: Any) -> str:  # Any: torch's own
    """Line of the user, or of a package, at which the tracer fixed a size; empty if it is in torch."""
    frame = location.framework_loc
    if isinstance(frame, FrameSummary) and not frame.filename.startswith(_TORCH):
        return f"{frame.filename}:{frame.lineno}"
    return location.maybe_user_loc or ""
