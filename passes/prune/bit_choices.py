"""Bit widths of layers in the integer program over channels: choices, costs, and rounding loss.

Each rounded weight adds noise, so the rounding loss of a pruned layer is proportional to its remaining weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir import Graph, Precision, Value
from ...ir.coupling import Coupling
from ..assign_bits.bit_costs import BYTE, BitLayer, bit_layers, precisions
from ..base import CostModel
from ..calibration.calibrate import Batch
from ..progress_callback import Progress
from ..sensitivity import SensitivityTable, measure_sensitivity
from ..sensitivity.blocks import weight_of
from .channel_costs import Bits, Costs, Term, element_term, with_terms
from .channel_program import ROUNDING

BYTES = "weights"
"""Name of the resource: bytes of packed weights."""


@dataclass(frozen=True)
class BitChoices:
    """Layers with free bit widths, and the loss of each layer at each width."""

    layers: tuple[BitLayer, ...] = ()
    table: SensitivityTable | None = None

    def precisions(self, bits: Bits) -> dict[str, Precision]:
        """Layer precisions for `quantize`, by module path."""
        return precisions(self.layers, {n: (b, BYTE) for n, b in bits.items()}, says_activations=False)

    def uniform(self, width: int) -> Bits:
        """One width for all layers, or the nearest allowed one."""
        return {layer.name: min(layer.weights, key=lambda w: (abs(w - width), -w)) for layer in self.layers}

    @property
    def widths(self) -> tuple[int, ...]:
        """Union of the allowed widths of all layers."""
        return tuple(sorted({width for layer in self.layers for width in layer.weights}))

    def loss(self, layer: str, width: int) -> tuple[float, float]:
        """Loss increase by rounding all weights of the layer, and its standard error."""
        assert self.table is not None
        return next((s.loss, s.error) for s in self.table.scores if (s.layer, s.bits) == (layer, width))


NO_BIT_CHOICES = BitChoices()
"""No layer has a free bit width."""


def measure_bit_choices(
    graph: Graph,
    bits: Sequence[int],
    samples: Sequence[Batch],
    model: CostModel | None,
    progress: Progress,
) -> BitChoices:
    """Choices for a float graph: the widths of `bits` for which the target has kernels."""
    layers = bit_layers(graph, bits, (BYTE,), (), model)
    table = measure_sensitivity(graph, samples, weight_bits=sorted({*bits, BYTE}), progress=progress)
    return BitChoices(layers, table)


def with_bit_costs(costs: Costs, coupling: Coupling, choices: BitChoices) -> Costs:
    """The costs with terms for weight bytes and rounding loss at each bit width."""
    stored, lost = [], []
    for layer in choices.layers:
        weights = weights_of(layer)
        elements = sum(value.type.numel for value in weights)
        for width in layer.weights:
            loss, _ = choices.loss(layer.name, width)
            for value in weights:
                term = replace(element_term(coupling, value), when=(layer.name, width))
                stored.append(replace(term, coefficient=term.coefficient * width / BYTE))
                lost.append(replace(term, coefficient=term.coefficient * max(loss, 0.0) / elements))
    terms: Mapping[str, Sequence[Term]] = {BYTES: stored, ROUNDING: lost}
    widths = {layer.name: layer.weights for layer in choices.layers}
    return replace(with_terms(costs, coupling, terms), widths=widths)


def weights_of(layer: BitLayer) -> list[Value]:
    """Weights of a layer, without duplicates."""
    return list({weight_of(node).name: weight_of(node) for node in layer.nodes}.values())
