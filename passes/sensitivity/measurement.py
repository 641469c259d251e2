"""Sensitivity of each layer to the bits of its weights and of its input, by one of several methods."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...ir import Graph
from ...ir.graph import check_graph
from ...specs.options.assign_bits import SENSITIVITY_OWN
from ...specs.plugins import SENSITIVITY_METHODS, PluginError
from ...specs.root_error import expect
from ..calibration.calibrate import Batch
from ..errors import PassError
from ..progress_callback import Progress, silent
from ..workers import ALONE, SHARDS, Workers
from .blocks import Rounding, round_weight
from .curvature import DEFAULT_PRECISION, Precision, fisher, hawq, hawq_v2, norm
from .directions import gauss_newton, kl, quadratic
from .piecewise import is_piecewise_linear
from .sensitivity_table import Curvature, Method, Objective, Score, SensitivityTable, digest_of
from .study import Study, prepare

_ACTIVATION_METHODS: tuple[Method, ...] = ("gauss_newton", "quadratic", "kl")


def measure_sensitivity(
    graph: Graph,
    batches: Sequence[Batch],
    *,
    method: Method = "gauss_newton",
    weight_bits: Sequence[int] = (2, 4, 8),
    activation_bits: Sequence[int] = (),
    labels: Sequence[Tensor] | None = None,
    objective: Objective | None = None,
    class_axis: int | None = None,
    rounding: Rounding = round_weight,
    precision: Precision = DEFAULT_PRECISION,
    shards: int = SHARDS,
    workers: Workers = ALONE,
    progress: Progress = silent,
) -> SensitivityTable:
    """Scores of all layers of a float graph, after folding of batch norms, over samples with the graph's input shapes.

    With `labels`, a tensor of class indices for each batch, gauss_newton adds the first-order term: then a loss can
    be negative. `objective` and `class_axis` define the meaning of the outputs if their shape is ambiguous.
    `rounding` replaces that of `quantize`. The table is the same to the last bit for any number of `workers`.
    PassError if the sensitivity cannot be measured.
    """
    _check_arguments(graph, batches, "measure_sensitivity(graph, batches)")
    if not weight_bits and not activation_bits:
        raise PassError("no bit widths are given for weights or activations")
    if activation_bits and method not in _ACTIVATION_METHODS:
        raise PassError(f"method {method} scores weights; for activations use gauss_newton or kl")
    study = prepare(
        graph,
        batches,
        labels or (),
        objective=objective,
        class_axis=class_axis,
        rounding=rounding,
        shards=shards,
        workers=workers,
        progress=progress,
    )
    bits = tuple(sorted(set(weight_bits)))
    scores, curvatures = _score(study, method, bits, tuple(sorted(set(activation_bits))), precision)
    return SensitivityTable(
        method=method,
        scores=tuple(scores),
        notes=(*study.notes, *_approximations(study, method)),
        objective=study.loss.name,
        samples=len(study.samples),
        shards=len(study.shards),
        curvatures=tuple(curvatures),
        shared=tuple(block.modules for block in study.blocks if len(block.modules) > 1),
        digest=digest_of(graph, batches, labels or ()),
    )


def _check_arguments(graph: object, batches: object, call: str) -> None:
    """ArgumentError for a graph or batches of the wrong class."""
    check_graph(graph, call)
    hint = "for images [n, ...] of a single input: [(x[None],) for x in images]"
    expect(batches, Sequence, call, "a list with a tuple of tensors for each call", hint)


def measure_curvature(
    graph: Graph,
    batches: Sequence[Batch],
    *,
    objective: Objective | None = None,
    eigenvalues: bool = False,
    precision: Precision = DEFAULT_PRECISION,
    shards: int = SHARDS,
    workers: Workers = ALONE,
    progress: Progress = silent,
) -> tuple[Curvature, ...]:
    """Trace of each layer's Gauss-Newton block; with `eigenvalues` also the largest one and the norm of the block."""
    _check_arguments(graph, batches, "measure_curvature(graph, batches)")
    study = prepare(graph, batches, objective=objective, shards=shards, workers=workers, progress=progress)
    _, curvatures = hawq(study, ()) if eigenvalues else hawq_v2(study, (), precision)
    return tuple(curvatures)


def _score(
    study: Study,
    method: Method,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    precision: Precision,
) -> tuple[list[Score], list[Curvature]]:
    match method:
        case "gauss_newton":
            return gauss_newton(study, weight_bits, activation_bits), []
        case "quadratic":
            return quadratic(study, weight_bits, activation_bits), []
        case "kl":
            return kl(study, weight_bits, activation_bits), []
        case "hawq":
            return hawq(study, weight_bits)
        case "hawq_v2":
            return hawq_v2(study, weight_bits, precision)
        case "fisher":
            return fisher(study, weight_bits, precision), []
        case "norm":
            return norm(study, weight_bits), []
        case _:
            return _own_scores(study, method, weight_bits), []


def _own_scores(study: Study, method: Method, weight_bits: Sequence[int]) -> list[Score]:
    """The scores of a method of a package; PassError if the method cannot be used."""
    try:
        function = SENSITIVITY_METHODS.load(method)
    except PluginError as err:
        raise PassError(err.message) from err
    scores = function(study, weight_bits) if callable(function) else ()
    expected = {(block.layer, bits) for block in study.blocks for bits in weight_bits}
    if {(score.layer, score.bits) for score in scores} != expected:
        raise PassError(f"sensitivity method {method} does not return a score for each layer and bit width")
    return list(scores)


def _approximations(study: Study, method: Method) -> tuple[str, ...]:
    if method in ("kl", "norm") or method not in SENSITIVITY_OWN:
        return ()
    rough = [block.layer for block in study.blocks if not is_piecewise_linear(study.graph, block)]
    if not rough:
        return ()
    names = ", ".join(rough[:8]) + (f" and {len(rough) - 8} more" if len(rough) > 8 else "")
    return (
        f"after {names} the outputs are not piecewise linear in the weights: there the second derivative is "
        "approximated by its Gauss-Newton part, which is positive semi-definite",
    )
