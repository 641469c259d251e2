"""Growth of random graphs: one function per operator adds a node if possible.

Random graphs are made from a plan, a list of steps that are plain numbers. Steps are independent of each other, so
that a failing plan shrinks well: Hypothesis removes steps and lowers numbers, and each smaller plan gives a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TypeVar

import torch

from ..builder import Builder
from ..element_type import DType
from ..graph import Graph
from ..ops.base import Op
from ..tensor_type import TensorType, Value

MAX_NUMEL = 512
DIGITS = 5

T = TypeVar("T")
Grow = Callable[["Growth", Value, "Step"], "Value | tuple[Value, ...] | None"]


@dataclass(frozen=True)
class Step:
    """Plan of one node: its operator, the index of the value that it reads, and numbers for all other choices."""

    op: str
    back: int = 0
    partner: int = 0
    digits: tuple[int, ...] = (0,) * DIGITS

    def pick(self, index: int, choices: Sequence[T]) -> T:
        """One of `choices`, selected by digit `index`; 0 selects the first, which should be the simplest."""
        return choices[self.digits[index] % len(choices)]


class Growth:
    """A graph during growth: its builder, and the values that the next steps may read."""

    def __init__(self, seed: int, *, dtype: DType = DType.F32) -> None:
        self.dtype = dtype
        self.builder = Builder()
        self.values: list[Value] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._constants: list[Value] = []

    def input(self, type: TensorType) -> Value:
        """A further graph input; later steps can read it if it is floating point."""
        value = self.builder.input(self.builder.fresh_name("x"), type)
        if type.dtype.is_floating:
            self.values.append(value)
        return value

    def constant(self, *shape: int, positive: bool = False) -> Value:
        """A random constant with variance near 1 over its fan-in, or between 0.5 and 1.5."""
        noise = torch.rand if positive else torch.randn
        tensor = noise(shape, generator=self._generator, dtype=torch.float64)
        tensor = tensor + 0.5 if positive else tensor / max(1, prod(shape[1:])) ** 0.5
        value = self.builder.constant("w", tensor.to(self.dtype.torch))
        self._constants.append(value)
        return value

    def weight(self, step: Step, *shape: int) -> Value:
        """A random constant; sometimes an existing one of this shape, so that layers share it."""
        known = [v for v in self._constants if v.type.shape == shape]
        return known[0] if known and step.partner % 2 else self.constant(*shape)

    def partner(self, x: Value, step: Step) -> Value:
        """A value of the type of `x`, perhaps `x` itself."""
        same = [v for v in self.values if v.type == x.type]
        return same[-1 - step.partner % len(same)] if same else x

    def add(self, op: Op, *operands: Value | None) -> Value:
        """Appends a node with one result."""
        return self.builder.add(op, *operands)

    def add_many(self, op: Op, *operands: Value | None) -> tuple[Value, ...]:
        """Appends a node with several results."""
        return self.builder.append(op, operands, op.infer(*(v and v.type for v in operands)))

    def grow(self, step: Step) -> None:
        """Takes one step, or none if the operator does not fit the value that it would read."""
        x = self.values[-1 - step.back % len(self.values)]
        results = GROWS[step.op](self, x, step)
        for value in (results,) if isinstance(results, Value) else results or ():
            if 0 < value.type.numel <= MAX_NUMEL and value.type.dtype.is_floating:
                self.values.append(value)

    def embed(self, pattern: Graph, step: Step) -> None:
        """Appends the nodes of `pattern`; its inputs are values of the same types or new graph inputs."""
        current = {v.name: self.builder.constant(v.name, pattern.tensor(v)) for v in pattern.constants}
        for index, wanted in enumerate(pattern.inputs):
            fitting = [v for v in self.values if v.type == wanted.type]
            picked = step.pick(index % DIGITS, [None, *reversed(fitting)])
            current[wanted.name] = self.input(wanted.type) if picked is None else picked
        for node in pattern.nodes:
            operands = tuple(v and current[v.name] for v in node.inputs)
            results = self.builder.append(node.op, operands, [v.type for v in node.outputs])
            current |= {old.name: new for old, new in zip(node.outputs, results, strict=True)}
            self.values += results

    def graph(self, extra_outputs: Sequence[int] = ()) -> Graph:
        """The graph whose outputs are the values without readers, and those selected by `extra_outputs`, counted from
        the end.
        """
        nodes = self.builder.build(self.values).nodes
        read = {v.name for node in nodes for v in node.operands}
        made = {v.name for node in nodes for v in node.outputs}
        wanted = {self.values[-1 - back % len(self.values)].name for back in extra_outputs}
        outputs = [v for v in self.values if v.name in wanted or (v.name in made and v.name not in read)]
        return self.builder.build(outputs or self.values[-1:])


_GROWS: dict[str, Grow] = {}
GROWS: Mapping[str, Grow] = MappingProxyType(_GROWS)


def grows(*names: str) -> Callable[[Grow], Grow]:
    """Function decorator: the function adds a node of each named operator to a graph, or returns None if none fits."""

    def register(function: Grow) -> Grow:
        for name in names:
            if name in _GROWS:
                raise ValueError(f"growth by {name!r} is registered twice")
            _GROWS[name] = function
        return function

    return register
