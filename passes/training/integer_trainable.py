"""Trainable form of an integer graph: quantization-aware training with learned step sizes (LSQ).

Parameters are the real weights and biases, which each forward pass rounds, and the logarithms of step sizes. Weights
are scaled by their largest integer and biases by the range of their layer's output, so that one learning rate suits
all layers, independent of the scales after batch norm folding.

Weights with a codebook are rounded to its levels, which do not change. Where the captured model has the weights as
reals, they start there, within the interval that is rounded to their level.

The exported integers are those of the last forward pass: `run_integer` differs from it only by the rounding of
fixed-point multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ir import (
    Encoding,
    Graph,
    Numbers,
    Value,
    coded_weights,
    decode_codebooks,
    encode_codebooks,
    run,
)
from ...ir.interpret import Observer
from ...ir.ops.accumulate import bias_quantization
from ...specs.options import FinetuneOptions
from ..base import Context
from ..clean import is_unmoved
from ..weighted_layers import is_layer
from .encoding_groups import EncodingGroups, encoding_groups
from .reencode import reencode
from .step_size import Range, nearest_levels, round_to_levels, round_to_step, step_of
from .trainable import trainable_constants

Parameters = Mapping[str, Tensor]

_NARROW_BITS, _WIDE_BITS = 8, 16
_SHARE_OF_FINER = 0.5


@dataclass(frozen=True)
class Bias:
    """A bias, input and weight of its layer, whose step sizes determine its own, and the layer's output."""

    value: Value
    x: Value
    weight: Value
    y: Value


@dataclass(frozen=True)
class IntegerTrainable:
    """Trainable form of an integer graph. Parameter `step:NAME`: log growth of the step size of a weight or a group."""

    graph: Graph
    weights: tuple[Value, ...]  # of all layers on integers
    biases: tuple[Bias, ...]  # of all layers on integers
    trained: frozenset[str]  # names of constants that are parameters, quantized or not
    groups: EncodingGroups
    units: Mapping[str, Tensor]  # of weights and biases
    learns_steps: bool
    levels: Mapping[str, Tensor]  # integers of the codebooks of weights
    known: Mapping[str, Tensor]  # weights with a codebook, as reals of the captured model
    finer: frozenset[str] = frozenset()  # groups of activations with more bits, for a teacher

    @staticmethod
    def of(graph: Graph, options: FinetuneOptions, context: Context) -> IntegerTrainable:
        """Trainable form of a graph, restricted by the options."""
        weights: dict[str, Value] = {}
        biases: dict[str, Bias] = {}
        levels = _codebooks(graph)
        graph = decode_codebooks(graph)
        for node in graph.nodes:
            if not is_layer(node.op) or not node.output.type.is_quantized:
                continue
            x, weight, bias = node.operand("x"), node.operand("weight"), node.optional("bias")
            if not graph.is_constant(weight):
                continue
            weights[weight.name] = weight
            if bias is not None and graph.is_constant(bias):
                biases[bias.name] = Bias(bias, x, weight, node.output)
        names = frozenset(
            value.name
            for value in trainable_constants(graph, options, context)
            if not value.type.is_quantized or value.name in weights or value.name in biases
        )
        groups = encoding_groups(graph)
        units = {
            value.name: _along(_start(_encoding(value)), value) * _outermost(value, levels)
            for value in weights.values()
        }
        units |= {
            name: _start(_encoding(bias.y)) * 2 ** _encoding(bias.y).bits for name, bias in biases.items()
        }
        return IntegerTrainable(
            graph,
            tuple(weights.values()),
            tuple(biases.values()),
            names,
            groups,
            units,
            options.learn_steps,
            levels,
            _known(graph, levels, context.original),
        )

    def start(self) -> dict[str, Tensor]:
        """Initial parameters: the dequantized constants, and zero growth of each step size."""
        parameters = {name: self.graph.params[name].detach().clone() for name in sorted(self.trained)}
        for value in (*self.weights, *(bias.value for bias in self.biases)):
            if value.name in self.trained:
                real = _encoding(value).dequantize(self.graph.tensor(value))
                parameters[value.name] = real / self.units[value.name]
                if value.name in self.known:
                    parameters[value.name] = self._between_levels(value, parameters[value.name])
        if self.learns_steps:
            kept = [weight for weight in self.weights if weight.name in self.trained]
            parameters |= {_step(weight.name): torch.zeros_like(_start(_encoding(weight))) for weight in kept}
            parameters |= {_step(group): torch.zeros(()) for group in sorted(self.groups.learnable)}
        return parameters

    def forward(
        self, batched: Graph, inputs: Sequence[Tensor], parameters: Parameters, *, observe: Observer
    ) -> list[Tensor]:
        """Differentiable outputs, with constants and all computed values fake-quantized."""
        steps = {
            group: self._step(group, encoding, parameters)
            for group, encoding in self.groups.encodings.items()
        }

        def rounding(value: Value, tensor: Tensor) -> Tensor:
            if value.name not in self.groups.rounded:
                return tensor
            group = self.groups.of[value.name]
            if group not in self.finer:
                return round_to_step(tensor, *steps[group], self._range(group))
            (start, growth), more = steps[group], _bits_more(self.groups.encodings[group])
            return round_to_step(tensor, start / 2**more, growth, self._range(group, more=more))

        params = {name: parameters[name] for name in self.trained}
        params |= {
            value.name: self._rounded_weight(value, parameters)
            for value in self.weights
            if value.name in self.trained
        }
        params |= {bias.value.name: self._rounded_bias(bias, parameters) for bias in self.biases}
        return run(batched, inputs, params=params, observe=observe, rounding=rounding)

    def with_finer_activations(self, generator: torch.Generator) -> IntegerTrainable:
        """The form with more bits in the same range for half of the groups of activations, chosen at random.

        Fewer than 8 bits become 8, and 8 become 16. Source: Boo et al., Stochastic precision ensemble, AAAI 2021.
        """
        groups = sorted(self.groups.elements)
        chosen = (torch.rand(len(groups), generator=generator) < _SHARE_OF_FINER).tolist()
        return replace(
            self, finer=frozenset(name for name, is_finer in zip(groups, chosen, strict=True) if is_finer)
        )

    def export(self, parameters: Parameters) -> Graph:
        """The graph with the trained integers and step sizes; unchanged constants keep their bytes."""
        encodings = {
            name: self._grown(group, self.groups.encodings[group], parameters)
            for name, group in self.groups.of.items()
        }
        constants = {
            name: parameters[name].detach().contiguous()
            for name in self.trained
            if self.graph.params[name].is_floating_point()
        }
        start = self.start()
        for value in self.weights:
            encoding = self._grown(value.name, _encoding(value), parameters)
            is_same = value.name not in start or torch.equal(start[value.name], parameters[value.name])
            if encoding == _encoding(value) and is_same:
                continue
            encodings[value.name] = encoding
            ratio = (self._real(value.name, parameters) / _along(_start(encoding), value)).detach()
            if value.name in self.levels:
                integers = nearest_levels(ratio, self.levels[value.name])
            else:
                integers = ratio.round().clamp(-encoding.qmax, encoding.qmax)
            constants[value.name] = integers.to(encoding.container.torch).contiguous()
        for bias in self.biases:
            encoding = bias_quantization(
                encodings.get(bias.x.name, _encoding(bias.x)),
                encodings.get(bias.weight.name, _encoding(bias.weight)),
            )
            name = bias.value.name
            is_same = name not in start or torch.equal(start[name], parameters[name])
            if encoding == _encoding(bias.value) and is_same:
                continue
            encodings[name] = encoding
            real = self._real_bias(bias, parameters).detach()
            constants[name] = encoding.quantize(real.double()).to(torch.int32)
        return encode_codebooks(reencode(self.graph, encodings, constants), self.levels)

    def _between_levels(self, value: Value, stored: Tensor) -> Tensor:
        """The weight of the captured model, clipped to the outermost levels, where it rounds to the stored one."""
        known = (self.known[value.name] / self.units[value.name]).clamp(-1, 1)
        levels = self.levels[value.name] / _outermost(value, self.levels)
        return torch.where(nearest_levels(known, levels) == nearest_levels(stored, levels), known, stored)

    def _real(self, name: str, parameters: Parameters) -> Tensor:
        return parameters[name] * self.units[name]

    def _real_bias(self, bias: Bias, parameters: Parameters) -> Tensor:
        if bias.value.name in parameters:
            return self._real(bias.value.name, parameters)
        return _encoding(bias.value).dequantize(self.graph.tensor(bias.value))

    def _step(self, name: str, encoding: Encoding, parameters: Parameters) -> tuple[Tensor, Tensor | None]:
        return _start(encoding), parameters.get(_step(name))

    def _range(self, group: str, *, more: int = 0) -> Range:
        encoding = self.groups.encodings[group]
        zero = encoding.zero_point[0]
        low, high = ((end - zero) << more for end in (encoding.qmin, encoding.qmax))
        return Range.of(low, high, elements=self.groups.elements[group])

    def _rounded_weight(self, value: Value, parameters: Parameters) -> Tensor:
        encoding = _encoding(value)
        within = Range.of(-encoding.qmax, encoding.qmax, elements=value.type.numel // len(encoding.scale))
        start, growth = self._step(value.name, encoding, parameters)
        along = None if growth is None else _along(growth, value)
        real, step = self._real(value.name, parameters), _along(start, value)
        if value.name in self.levels:
            return round_to_levels(real, step, along, self.levels[value.name], gain=within.gain)
        return round_to_step(real, step, along, within)

    def _rounded_bias(self, bias: Bias, parameters: Parameters) -> Tensor:
        """The bias rounded to the product of both step sizes, with a straight-through gradient."""
        real = self._real_bias(bias, parameters)
        with torch.no_grad():
            group = self.groups.of.get(bias.x.name, "")
            x = step_of(*self._step(group, _encoding(bias.x), parameters))
            step = x * step_of(*self._step(bias.weight.name, _encoding(bias.weight), parameters))
            error = (real / step).round() * step - real
        return real + error

    def _grown(self, name: str, encoding: Encoding, parameters: Parameters) -> Encoding:
        """The encoding with its trained step size; unchanged if the step size has not changed."""
        start, growth = self._step(name, encoding, parameters)
        if growth is None or not bool(growth.any()):
            return encoding
        steps = step_of(start, growth.detach())
        return replace(encoding, scale=Numbers.of_reals(steps.reshape(-1).tolist()))


def _bits_more(encoding: Encoding) -> int:
    """Bits that are added to an activation in a teacher."""
    return max(_NARROW_BITS - encoding.bits, 0) or _WIDE_BITS - _NARROW_BITS


def _codebooks(graph: Graph) -> dict[str, Tensor]:
    """Integers of the codebook of each weight that has one."""
    coded, found = coded_weights(graph), dict[str, Tensor]()
    for value in graph.constants:
        encoding = value.type.quantization
        if value.name in coded and encoding is not None and encoding.levels is not None:
            found[value.name] = encoding.levels.tensor(torch.float32)
    return found


def _known(graph: Graph, levels: Mapping[str, Tensor], original: Graph | None) -> dict[str, Tensor]:
    """Weights with a codebook that the captured model has as reals in the same shape."""
    if original is None:
        return {}
    names = [name for name in levels if is_unmoved(original, graph, name)]
    return {name: original.params[name].float() for name in names}


def _outermost(value: Value, levels: Mapping[str, Tensor]) -> int:
    """Largest magnitude of an integer of a weight."""
    found = levels.get(value.name)
    return _encoding(value).qmax if found is None else max(int(found.abs().max()), 1)


def _step(name: str) -> str:
    """Parameter name of the growth of a step size; no constant of a graph contains a colon."""
    return f"step:{name}"


def _encoding(value: Value) -> Encoding:
    assert value.type.quantization is not None
    return value.type.quantization


def _start(encoding: Encoding) -> Tensor:
    """Step sizes: a scalar, or a vector along the axis."""
    scale = torch.tensor(encoding.scale)
    return scale[0] if encoding.axis is None else scale


def _along(steps: Tensor, value: Value) -> Tensor:
    """Step sizes in a shape that broadcasts against the tensor of a value."""
    return _encoding(value).spread(steps, value.type.shape)
