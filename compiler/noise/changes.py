"""A candidate change against noise: in the options of `quantize`, in the data, or in the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ...ir import Node
from ...passes.quantize.layer_precisions import BITS, Precisions
from ...specs.options import LayerBits, LayerPrecision, QuantizeOptions
from ...specs.section import Section

EXCLUDE = "data.calibration.exclude"
"""The setting that excludes samples; all others are options of the pass."""

_VALUE = "%"  # prefix of a value name that replaces a module path
_NAMES = {bits: name for name, bits in BITS.items()}
_PLAIN = re.compile(r"\w[\w.]*( %)?")


@dataclass(frozen=True)
class Change:
    """Change of settings; layers by module path, or by result value if they have none (`path_of`).

    `options` are the changed options except `layers`, unless `layers` is the base for further layers. `excluded` are
    indices of calibration samples. `words` describe a change in the model: `constants` have other elements there, and
    nodes outside modules have a path.
    """

    options: Mapping[str, object] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=dict)
    in_float: tuple[str, ...] = ()
    excluded: frozenset[int] = frozenset()
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    words: str = ""

    @property
    def is_of_spec(self) -> bool:
        """True if only the spec changes."""
        return not self.words

    @property
    def is_of_integers(self) -> bool:
        """True if only the spec changes, and no layer becomes float."""
        return self.is_of_spec and not self.in_float

    def with_(self, other: Change) -> Change:
        """Both changes together; `other` takes precedence."""
        return Change(
            {**self.options, **other.options},
            {**self.weights, **other.weights},
            {**self.activations, **other.activations},
            tuple(dict.fromkeys((*self.in_float, *other.in_float))),
            self.excluded | other.excluded,
            {**self.constants, **other.constants},
            "; ".join(filter(None, dict.fromkeys((self.words, other.words)))),
        )

    def applied_to(self, precisions: Precisions) -> QuantizeOptions:
        """The options with this change. Its layers come last, and so take precedence."""
        options = precisions.options.model_copy(update=dict(self.options))
        widths = replace(precisions, options=options)
        layers: dict[str, LayerPrecision] = dict(options.layers)
        for path in dict.fromkeys((*self.weights, *self.activations, *self.in_float)):
            layers.pop(path, None)
            layers[path] = "float32" if path in self.in_float else self._bits(path, widths)
        return options.model_copy(update={"layers": layers})

    def _bits(self, path: str, widths: Precisions) -> LayerPrecision:
        """Bits of a layer, with unchanged ones repeated, because no other pattern applies to it."""
        weights = self.weights.get(path, _NAMES[widths.weight_bits(path)])
        activations = self.activations.get(path, _NAMES[widths.activation_bits(path)])
        bits = LayerBits.model_validate({"weights": weights, "activations": activations})
        if bits.weights is not None and activations == widths.options.activations:
            return bits.weights
        is_meant = path in self.weights or path in widths.decided or weights != widths.options.weights
        return bits if is_meant else bits.model_copy(update={"weights": None})


def settings(change: Change, precisions: Precisions, excluded: Sequence[int]) -> dict[str, str]:
    """Spec settings for a change, by option of the pass; `excluded` are indices of samples in their file."""
    before, after = precisions.options, change.applied_to(precisions)
    layers = {path: precision for path, precision in after.layers.items() if not path.startswith(_VALUE)}
    after = after.model_copy(update={"layers": layers})
    names = [n for n in QuantizeOptions.model_fields if getattr(after, n) != getattr(before, n)]
    found = {name: _written(getattr(after, name)) for name in names}
    return found | ({EXCLUDE: _written(tuple(excluded))} if change.excluded else {})


def path_of(node: Node) -> str:
    """The module path of a node; for a node outside modules, the value that it computes."""
    return node.source.module or f"{_VALUE}{node.outputs[0].name}"


def is_value(path: str) -> bool:
    """True if a path names a value, which a spec cannot do."""
    return path.startswith(_VALUE)


def _written(value: object) -> str:
    """A value as YAML on one line."""
    match value:
        case bool() | None:
            return json.dumps(value)
        case LayerBits():
            return _written(value.model_dump(mode="json", exclude_none=True))
        case Section():  # one of several kinds, with its parameters
            kind, others = value.model_dump()["kind"], value.model_dump(mode="json", exclude_defaults=True)
            return _written({"kind": kind, **others} if others else kind)
        case Mapping():
            return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in value.items()) + "}"
        case tuple():
            return "[" + ", ".join(map(_written, value)) + "]"
        case str():
            return value if _PLAIN.fullmatch(value) else json.dumps(value)
    return str(value)
