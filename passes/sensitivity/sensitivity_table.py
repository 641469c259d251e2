"""Sensitivity table: loss increase of each layer at each bit width, as data and as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import Tensor

from ...ir import Graph, Source, dump, element_bytes
from ..errors import PassError

FORMAT = 1

Kind = Literal["weight", "activation"]
Method = str  # name of a `SensitivityMethod`, or of a method of a package
Objective = Literal["classes", "values"]


@dataclass(frozen=True, slots=True)
class Score:
    """Loss increase by rounding of a layer's weights, or its input operand, to `bits`, with everything else in float.

    `layer` is a module path. `loss` is in nats for classes, else half the mean squared change of the outputs; `error`
    is its standard error over samples, and over probes if there are any.
    """

    layer: str
    kind: Kind
    bits: int
    loss: float
    error: float


@dataclass(frozen=True, slots=True)
class Curvature:
    """The Gauss-Newton block of the loss in a layer's weights, which is its Hessian if `is_exact`.

    `elements` is the number of weights, with a shared one counted once. `largest_eigenvalue` and `frobenius`, the
    norm of the block, are None unless requested.
    """

    layer: str
    elements: int
    trace: float
    trace_error: float
    largest_eigenvalue: float | None
    frobenius: float | None
    is_exact: bool


@dataclass(frozen=True)
class SensitivityTable:
    """Scores of all layers, weights before activations, layers in the order of the graph, bits ascending.

    `shared` lists module paths with a common weight: their score is that of the first of them. `digest` is that of
    the graph and the data (`digest_of`); a table that is read back is valid only for these.
    """

    method: Method
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()
    objective: Objective = "classes"
    samples: int = 0
    shards: int = 1
    curvatures: tuple[Curvature, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()
    digest: str = ""

    def score(self, layer: str, bits: int, *, kind: Kind = "weight") -> Score:
        """The score of one layer at one width; KeyError if it was not measured."""
        for score in self.scores:
            if (score.layer, score.kind, score.bits) == (layer, kind, bits):
                return score
        raise KeyError(f"{kind}s of layer {layer!r} at {bits} bits")

    def layers(self, *, kind: Kind = "weight") -> tuple[str, ...]:
        """The layers that have scores of this kind, in order."""
        return tuple(dict.fromkeys(s.layer for s in self.scores if s.kind == kind))

    def covers(self, *, method: Method, weight_bits: Iterable[int], activation_bits: Iterable[int]) -> bool:
        """True if the table has these widths by this method; together with `digest` it then can be reused."""
        widths = {(s.kind, s.bits) for s in self.scores}
        wanted = {("weight", b) for b in weight_bits} | {("activation", b) for b in activation_bits}
        return method == self.method and wanted <= widths

    def to_json(self) -> str:
        """Deterministic text: equal tables give equal bytes, and floats are restored bit for bit."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> SensitivityTable:
        """The table that `to_json` wrote; PassError for anything else."""
        try:
            found: dict[str, Any] = json.loads(text)  # Any: JSON, checked by the constructors
            if found.pop("format") != FORMAT:
                raise PassError("the sensitivity table has another format; measure it again")
            return SensitivityTable(
                **{
                    **found,
                    "scores": tuple(Score(**score) for score in found["scores"]),
                    "curvatures": tuple(Curvature(**row) for row in found["curvatures"]),
                    "notes": tuple(found["notes"]),
                    "shared": tuple(tuple(paths) for paths in found["shared"]),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            fact = f"it has no {err}" if isinstance(err, KeyError) else str(err)
            raise PassError(f"not a sensitivity table: {fact}; write it with `fxpress sensitivity`") from err


def digest_of(graph: Graph, batches: Sequence[Sequence[Tensor]], labels: Sequence[Tensor] = ()) -> str:
    """SHA-256 of the graph with its constants, the samples and their labels, without source lines."""
    bare = replace(graph, nodes=tuple(replace(n, source=Source(n.source.module)) for n in graph.nodes))
    digest = hashlib.sha256(dump(bare).encode())
    tensors = [graph.params[v.name] for v in graph.constants] + [x for batch in batches for x in batch]
    for tensor in (*tensors, *labels):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(element_bytes(tensor))
    return digest.hexdigest()
