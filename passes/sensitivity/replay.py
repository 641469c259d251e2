"""The part of a graph after a change, run again from the values of one run, with or without a tangent.

A tangent is propagated by forward-mode differentiation, so that J v costs about two runs of the part after the
change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.backends import mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...ir import Graph, Node, run
from ...ir.interpret import at_call

Operand = tuple[str, int]
"""An operand of a node: the name of the node's first result, and the position."""


class Replay:
    """One run of a graph with all its values."""

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        graph = self._graph = at_call(graph, inputs)
        self._values = {
            v.name: x for v, x in zip(graph.inputs, inputs, strict=True)
        }  # reads of constants at each use
        with torch.no_grad():
            run(graph, inputs, observe=lambda value, tensor: self._values.update({value.name: tensor}))
        self.outputs = [self.value(v.name) for v in graph.outputs]

    def value(self, name: str) -> Tensor:
        """A value of the run, or a constant."""
        value = self._values.get(name)
        return self._graph.params[name].detach() if value is None else value

    def changed(self, errors: Mapping[Operand, Tensor]) -> list[Tensor]:
        """The outputs with perturbations of some operands."""
        with torch.no_grad():
            return self._run({at: self._operand(at) + error for at, error in errors.items()})

    def shifted(self, errors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values that change if perturbations are added to some values, including these values."""
        fresh = {
            v.name: self._values[v.name] + errors[v.name] for v in self._graph.inputs if v.name in errors
        }
        with torch.no_grad():
            for node in self._graph.nodes:
                is_changed = any(v.name in fresh for v in node.operands)
                if not is_changed and not any(v.name in errors for v in node.outputs):
                    continue
                known = tuple(self._values[v.name] for v in node.outputs)
                results = self._call(node, fresh, {}) if is_changed else known
                for value, tensor in zip(node.outputs, results, strict=True):
                    error = errors.get(value.name)
                    fresh[value.name] = tensor if error is None else tensor + error
        return fresh

    def tangents(self, errors: Mapping[Operand, Tensor]) -> list[Tensor]:
        """Derivatives of the outputs in the direction of `errors`, perturbations of some operands."""
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # other kernels have no forward-mode derivative
            _without_mkldnn(),  # whose LSTM has none, either
            forward_ad.dual_level(),
        ):
            outputs = self._run({at: _dual(self._operand(at), error) for at, error in errors.items()})
            return [_tangent(y) for y in outputs]

    def _operand(self, at: Operand) -> Tensor:
        value = self._graph.producers[at[0]].inputs[at[1]]
        assert value is not None
        return self.value(value.name)

    def _run(self, changed: Mapping[Operand, Tensor]) -> list[Tensor]:
        fresh: dict[str, Tensor] = {}
        nodes = {name for name, _ in changed}
        for node in self._graph.nodes:
            if node.outputs[0].name in nodes or any(v.name in fresh for v in node.operands):
                for value, tensor in zip(node.outputs, self._call(node, fresh, changed), strict=True):
                    fresh[value.name] = tensor
        return [fresh[v.name] if v.name in fresh else self.value(v.name) for v in self._graph.outputs]

    def _call(
        self, node: Node, fresh: Mapping[str, Tensor], changed: Mapping[Operand, Tensor]
    ) -> tuple[Tensor, ...]:
        operands: list[Tensor | None] = [
            None if v is None else fresh[v.name] if v.name in fresh else self.value(v.name)
            for v in node.inputs
        ]
        for index in range(len(operands)):
            if (node.outputs[0].name, index) in changed:
                operands[index] = changed[node.outputs[0].name, index]
        results = node.op.reference(*operands)
        return results if isinstance(results, tuple) else (results,)


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """`mkldnn.flags(enabled=False)` sets other flags, too, which warns."""
    enabled, *_ = mkldnn.set_flags(False)
    try:
        yield
    finally:
        mkldnn.set_flags(enabled)


def _dual(x: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(x, tangent.contiguous())
    return dual


def _tangent(x: Tensor) -> Tensor:
    tangent: Tensor | None = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if tangent is None else tangent
