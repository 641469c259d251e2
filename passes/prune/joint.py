"""Report of channels and bits chosen together: predicted and measured loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...ir import Graph, Precision
from ...ir.coupling import Coupling
from ..assign_bits.bit_costs import BYTE, BitLayer
from ..assign_bits.bit_report import BITS_FILE, TABLE_FILE, bits_yaml
from ..assign_bits.mix_loss import mean_and_error, mix_losses
from ..calibration.calibrate import Batch
from ..report import Cell, Decision, Table
from .allocation import Allocation
from .bit_choices import BitChoices, weights_of
from .channel_program import Measured
from .cut_losses import divergence, outputs_of, study_of


@dataclass(frozen=True)
class DecidedBits:
    """The bits of layers by module path, in the form that `quantize` reads, with their tables, decisions and files."""

    layers: Mapping[str, Precision] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    decisions: tuple[Decision, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Joint:
    """An allocation of channels and bits, with the losses on which it is based."""

    choices: BitChoices
    utility: Measured
    allocation: Allocation

    def decided(self, coupling: Coupling, cut: Graph, samples: Sequence[Batch]) -> DecidedBits:
        """The bits, and predicted and measured losses; `cut` is the graph before repairs."""
        assert self.choices.table is not None
        layers = self.choices.precisions(self.allocation.bits)
        return DecidedBits(
            layers,
            (self._bits(cut), self._losses(coupling, cut, samples)),
            tuple(self._decision(layer, cut) for layer in self.choices.layers),
            {BITS_FILE: bits_yaml(layers).encode(), TABLE_FILE: self.choices.table.to_json().encode()},
        )

    def _bits(self, cut: Graph) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for layer in self.choices.layers:
            width, left = self.allocation.bits[layer.name], _share_left(layer, cut)
            loss, error = (left * figure for figure in self.choices.loss(layer.name, width))
            rows.append((layer.name, width, round(left * layer.weight_bytes(width)), loss, error))
        return Table("bits", ("layer", "weight_bits", "weight_bytes", "loss", "loss_error"), tuple(rows))

    def _losses(self, coupling: Coupling, cut: Graph, samples: Sequence[Batch]) -> Table:
        bits, kept = self.allocation.bits, self.allocation.kept
        study = study_of(coupling.graph, samples)
        channels = 0.0 - sum(self.utility.of(group, int(count)) for group, count in enumerate(kept))
        left = {layer.name: _share_left(layer, cut) for layer in self.choices.layers}
        rounding = sum(left[name] * self.choices.loss(name, width)[0] for name, width in bits.items())
        mix = {name: (width, BYTE) for name, width in bits.items()}
        rounded, _ = mean_and_error(mix_losses(cut, samples, mix, rounds_activations=False))
        rows = (
            ("channels", channels, divergence(study, outputs_of(study, coupling.graph), cut)),
            ("rounding", rounding, rounded),
        )
        return Table("loss", ("of", "predicted", "measured"), rows)

    def _decision(self, layer: BitLayer, cut: Graph) -> Decision:
        """The bits of a layer, with the loss at other widths."""
        left, chosen = _share_left(layer, cut), self.allocation.bits[layer.name]
        losses = {width: left * self.choices.loss(layer.name, width)[0] for width in layer.weights}
        others = [f"{width} bits: {losses[width]:.3g}" for width in layer.weights if width != chosen]
        reason = "; ".join([f"{chosen} bits, predicted loss {losses[chosen]:.3g}", *others])
        node = layer.nodes[0]
        return Decision("prune", node.outputs[0].name, node.source, True, reason)


def _share_left(layer: BitLayer, cut: Graph) -> float:
    """Share of the weights that are kept."""
    weights = weights_of(layer)
    return sum(cut.params[v.name].numel() for v in weights) / sum(v.type.numel for v in weights)
