"""Training of an integer graph: real weights and biases that are rounded in each run, on grids whose steps are learned.

Weights are learned in units of their largest integer, biases in units of their layer's output range: an optimizer's
steps then mean the same in each layer, whatever folding of batch norms has made of its scale.

Afterwards the integers are those that were computed with last: `run_integer` gives what was trained, but for the
rounding of its fixed-point multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ir import Graph, Quantization, Value, run
from ...ir.interpret import Observer
from ...ir.ops.accumulate import bias_quantization
from ...specs.options import FinetuneOptions
from ..base import Context
from ..layers import is_layer
from .grid_groups import GridGroups, grid_groups
from .regrid import regrid
from .step_size import Range, round_to_step, step_of
from .student import trainable

Learned = Mapping[str, Tensor]


@dataclass(frozen=True)
class Bias:
    """A bias, the values whose steps make its own, and the result of its layer."""

    value: Value
    x: Value
    weight: Value
    y: Value


@dataclass(frozen=True)
class IntegerStudent:
    """Weights and biases in their units, under their names; the growth of steps under `step:` and weight or group."""

    graph: Graph
    weights: tuple[Value, ...]  # of all layers on integers
    biases: tuple[Bias, ...]  # of all layers on integers
    trained: frozenset[str]  # names of constants that are learned, quantized or not
    groups: GridGroups
    units: Mapping[str, Tensor]  # of weights and biases
    learns_steps: bool

    @staticmethod
    def of(graph: Graph, options: FinetuneOptions, context: Context) -> IntegerStudent:
        """What the options let learn of a graph."""
        weights: dict[str, Value] = {}
        biases: dict[str, Bias] = {}
        for node in graph.nodes:
            x, weight, bias = (node.operand(index) for index in range(3))
            if not is_layer(node.op) or not graph.is_constant(weight) or not node.output.type.is_quantized:
                continue
            assert x is not None and weight is not None
            weights[weight.name] = weight
            if bias is not None and graph.is_constant(bias):
                biases[bias.name] = Bias(bias, x, weight, node.output)
        names = frozenset(
            value.name
            for value in trainable(graph, options, context)
            if not value.type.is_quantized or value.name in weights or value.name in biases
        )
        groups = grid_groups(graph)
        units = {
            value.name: _along(_start(_grid(value)), value) * _grid(value).qmax for value in weights.values()
        }
        units |= {name: _start(_grid(bias.y)) * 2 ** _grid(bias.y).bits for name, bias in biases.items()}
        return IntegerStudent(
            graph, tuple(weights.values()), tuple(biases.values()), names, groups, units, options.learn_steps
        )

    def start(self) -> dict[str, Tensor]:
        """What the integers stand for, and steps that have not grown."""
        learned = {name: self.graph.params[name].detach().clone() for name in sorted(self.trained)}
        for value in (*self.weights, *(bias.value for bias in self.biases)):
            if value.name in self.trained:
                real = _grid(value).dequantize(self.graph.tensor(value))
                learned[value.name] = real / self.units[value.name]
        if self.learns_steps:
            kept = [weight for weight in self.weights if weight.name in self.trained]
            learned |= {_step(weight.name): torch.zeros_like(_start(_grid(weight))) for weight in kept}
            learned |= {_step(group): torch.zeros(()) for group in sorted(self.groups.learnable)}
        return learned

    def answer(
        self, batched: Graph, inputs: Sequence[Tensor], learned: Learned, *, observe: Observer
    ) -> list[Tensor]:
        """The graph run on rounded constants, with every computed value rounded to its learned grid."""
        steps = {group: self._step(group, grid, learned) for group, grid in self.groups.grids.items()}

        def rounding(value: Value, tensor: Tensor) -> Tensor:
            if value.name not in self.groups.rounded:
                return tensor
            group = self.groups.of[value.name]
            return round_to_step(tensor, *steps[group], self._range(group))

        params = {name: learned[name] for name in self.trained}
        params |= {
            value.name: self._rounded_weight(value, learned)
            for value in self.weights
            if value.name in self.trained
        }
        params |= {bias.value.name: self._rounded_bias(bias, learned) for bias in self.biases}
        return run(batched, inputs, params=params, observe=observe, rounding=rounding)

    def taught(self, learned: Learned) -> Graph:
        """The integers and grids that were computed with; what did not change keeps its bytes."""
        grids = {
            name: self._grown(group, self.groups.grids[group], learned)
            for name, group in self.groups.of.items()
        }
        constants = {
            name: learned[name].detach().contiguous()
            for name in self.trained
            if self.graph.params[name].is_floating_point()
        }
        start = self.start()
        for value in self.weights:
            grid = self._grown(value.name, _grid(value), learned)
            is_same = value.name not in start or torch.equal(start[value.name], learned[value.name])
            if grid == _grid(value) and is_same:
                continue
            grids[value.name] = grid
            step = _along(_start(grid), value)
            integers = (self._real(value.name, learned) / step).round().clamp(-grid.qmax, grid.qmax)
            constants[value.name] = integers.detach().to(grid.container.torch).contiguous()
        for bias in self.biases:
            grid = bias_quantization(
                grids.get(bias.x.name, _grid(bias.x)), grids.get(bias.weight.name, _grid(bias.weight))
            )
            name = bias.value.name
            is_same = name not in start or torch.equal(start[name], learned[name])
            if grid == _grid(bias.value) and is_same:
                continue
            grids[name] = grid
            real = self._real_bias(bias, learned).detach()
            constants[name] = grid.quantize(real.double()).to(torch.int32)
        return regrid(self.graph, grids, constants)

    def _real(self, name: str, learned: Learned) -> Tensor:
        return learned[name] * self.units[name]

    def _real_bias(self, bias: Bias, learned: Learned) -> Tensor:
        if bias.value.name in learned:
            return self._real(bias.value.name, learned)
        return _grid(bias.value).dequantize(self.graph.tensor(bias.value))

    def _step(self, name: str, grid: Quantization, learned: Learned) -> tuple[Tensor, Tensor | None]:
        return _start(grid), learned.get(_step(name))

    def _range(self, group: str) -> Range:
        grid = self.groups.grids[group]
        zero = grid.zero_point[0]
        return Range.of(grid.qmin - zero, grid.qmax - zero, elements=self.groups.elements[group])

    def _rounded_weight(self, value: Value, learned: Learned) -> Tensor:
        grid = _grid(value)
        within = Range.of(-grid.qmax, grid.qmax, elements=value.type.numel // len(grid.scale))
        start, growth = self._step(value.name, grid, learned)
        along = None if growth is None else _along(growth, value)
        return round_to_step(self._real(value.name, learned), _along(start, value), along, within)

    def _rounded_bias(self, bias: Bias, learned: Learned) -> Tensor:
        """The bias on the product of both steps, with the gradient passed straight through."""
        real = self._real_bias(bias, learned)
        with torch.no_grad():
            group = self.groups.of.get(bias.x.name, "")
            x = step_of(*self._step(group, _grid(bias.x), learned))
            step = x * step_of(*self._step(bias.weight.name, _grid(bias.weight), learned))
            error = (real / step).round() * step - real
        return real + error

    def _grown(self, name: str, grid: Quantization, learned: Learned) -> Quantization:
        """The grid after its step has grown; itself where it has not."""
        start, growth = self._step(name, grid, learned)
        if growth is None or not bool(growth.any()):
            return grid
        steps = step_of(start, growth.detach())
        return replace(grid, scale=tuple(steps.reshape(-1).tolist()))


def _step(name: str) -> str:
    """Name of the growth of a step among what is learned; no constant of a graph has it."""
    return f"step:{name}"


def _grid(value: Value) -> Quantization:
    assert value.type.quantization is not None
    return value.type.quantization


def _start(grid: Quantization) -> Tensor:
    """The steps of a grid: a number, or a vector for its axis."""
    scale = torch.tensor(grid.scale)
    return scale[0] if grid.axis is None else scale


def _along(steps: Tensor, value: Value) -> Tensor:
    """Steps such that they broadcast against the tensor of a value."""
    return _grid(value).spread(steps, value.type.shape)
