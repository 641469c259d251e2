"""The bits of layers in the program over channels: which are open, what they cost, and what rounding loses.

Rounding adds noise with each weight, so that of a layer from which channels go the loss is taken in proportion to the
weights that stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir import Graph, Value
from ...ir.coupling import Coupling
from ...specs.options import LayerPrecision
from ..base import CostModel
from ..bits.costs import BYTE, BitLayer, bit_layers, precisions
from ..calibrate import Batch
from ..progress import Progress
from ..sensitivity import SensitivityTable, measure_sensitivity
from ..sensitivity.blocks import weight_of
from .cost import Bits, Costs, Term, element_term, with_terms
from .program import ROUNDING

BYTES = "weights"
"""The cost that the bytes of packed weights are."""


@dataclass(frozen=True)
class Storage:
    """The layers with the widths that their weights may have, and the loss of each of them at each."""

    layers: tuple[BitLayer, ...] = ()
    table: SensitivityTable | None = None

    def precisions(self, bits: Bits) -> dict[str, LayerPrecision]:
        """The decision as `quantize` reads it, by module path."""
        return precisions(self.layers, {n: (b, BYTE) for n, b in bits.items()}, says_activations=False)

    def uniform(self, width: int) -> Bits:
        """The width for all layers; the nearest one where a layer cannot have it."""
        return {layer.name: min(layer.weights, key=lambda w: (abs(w - width), -w)) for layer in self.layers}

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths that some layer may have."""
        return tuple(sorted({width for layer in self.layers for width in layer.weights}))

    def loss(self, layer: str, width: int) -> tuple[float, float]:
        """Loss increase by rounding all weights of the layer, and its standard error."""
        assert self.table is not None
        return next((s.loss, s.error) for s in self.table.scores if (s.layer, s.bits) == (layer, width))


CLOSED = Storage()
"""No layer whose bits are open."""


def open_storage(
    graph: Graph,
    bits: Sequence[int],
    samples: Sequence[Batch],
    model: CostModel | None,
    progress: Progress,
) -> Storage:
    """The layers of a float graph with those of the widths `bits` for which the target has kernels."""
    layers = bit_layers(graph, bits, (BYTE,), (), model)
    table = measure_sensitivity(graph, samples, weight_bits=sorted({*bits, BYTE}), progress=progress)
    return Storage(layers, table)


def with_storage(costs: Costs, coupling: Coupling, storage: Storage) -> Costs:
    """The costs with the bytes of the weights and the loss of their rounding, at the bits of each layer."""
    stored, lost = [], []
    for layer in storage.layers:
        weights = weights_of(layer)
        elements = sum(value.type.numel for value in weights)
        for width in layer.weights:
            loss, _ = storage.loss(layer.name, width)
            for value in weights:
                term = replace(element_term(coupling, value), when=(layer.name, width))
                stored.append(replace(term, coefficient=term.coefficient * width / BYTE))
                lost.append(replace(term, coefficient=term.coefficient * max(loss, 0.0) / elements))
    terms: Mapping[str, Sequence[Term]] = {BYTES: stored, ROUNDING: lost}
    widths = {layer.name: layer.weights for layer in storage.layers}
    return replace(with_terms(costs, coupling, terms), widths=widths)


def weights_of(layer: BitLayer) -> list[Value]:
    """The weights of a layer, a shared one once."""
    return list({weight_of(node).name: weight_of(node) for node in layer.nodes}.values())
