"""Check of the arguments of an emitted `forward`: a module accepts only the shapes for which it was compiled."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence

import torch

from ...ir import Graph, Value
from ...ir.sizes import Size, dimensions_of
from .literal import literal

_WORD = re.compile(r"\w+")


def check_shapes(
    inputs: dict[str, tuple[torch.Tensor, tuple[int | str, ...]]], /, **ranges: tuple[int, int | None]
) -> tuple[int, ...]:
    """The sizes of the dimensions in `ranges`; ValueError for inputs of shapes for which the module was not compiled.

    A size in the shape of an input is a number, or the name of a dimension, which has one size in all inputs.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, shape) in inputs.items():
        if tensor.dim() != len(shape):
            raise ValueError(f"input {name} has {tensor.dim()} dimensions; the module takes {len(shape)}")
        for axis, (expected, size) in enumerate(zip(shape, tensor.shape, strict=True)):
            if isinstance(expected, int):
                if size == expected:
                    continue
                allowed = f"{expected}"
            else:
                low, high = ranges[expected]
                known = sizes.setdefault(expected, size)
                if size == known and size >= low and (high is None or size <= high):
                    continue
                allowed = f"{low} or more" if high is None else f"{low} to {high}"
                allowed = f"{allowed} ({expected})" if size == known else f"{known} ({expected}) as before"
            raise ValueError(f"input {name} has size {size} in dimension {axis}; the module takes {allowed}")
    return tuple(sizes[name] for name in ranges)


def shape_check(
    graph: Graph, arguments: Sequence[str], variables: Mapping[str, str], body: Sequence[str]
) -> list[str]:
    """The statement of `forward` that checks its arguments and sets the dimensions' variables that `body` reads."""
    rows = [
        f"{json.dumps(value.name)}: ({argument}, {literal(_expected(value))})"
        for value, argument in zip(graph.inputs, arguments, strict=True)
    ]
    if not rows:
        return []
    ranges = [f"{d.name}=({d.low}, {d.high})" for d in graph.dimensions.values()]
    call = f"{check_shapes.__name__}({', '.join(['{' + ', '.join(rows) + '}', *ranges])})"
    read = {word for line in body for word in _WORD.findall(line)}
    targets = [name if name in read else "_" for name in variables.values()]
    if set(targets) <= {"_"}:
        return [call]
    return [f"{', '.join(targets)}{',' if len(targets) == 1 else ''} = {call}"]


def check_source() -> dict[str, str]:
    """Source of the function that the statement calls, by its name; it needs only `torch`."""
    return {check_shapes.__name__: inspect.getsource(check_shapes)}


def _expected(value: Value) -> tuple[int | str, ...]:
    """The shape with the names of dimensions in place of their sizes."""
    return tuple(
        next(iter(dimensions_of(size))) if isinstance(size, Size) else size for size in value.type.shape
    )
