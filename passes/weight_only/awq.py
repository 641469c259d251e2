"""Scales of input channels that protect the weights of large activations (AWQ).

    s_j = mean|x_j|^a,   W' = W diag(s),   x' = x / s folded into the producer of x
    a = argmin sum over layers of |x (round(W') diag(1 / s) - W)^T|^2,   a evenly spaced from 0 to 1

Channels with large inputs get a finer step relative to their weights. With a = 0 nothing changes, so that the error on
the samples never exceeds that of rounding to nearest. Source: Lin et al., AWQ: Activation-aware weight quantization,
MLSys 2024. Layers whose inputs cannot absorb the factor (`channel_scales`) are rounded unscaled, and reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...ir import Source
from ...specs.options import Awq
from ..calibration.input_statistics import InputStatistics
from ..channel_scales import NoSite, Site, find_sites, normalized
from ..report import Cell, Decision, Table
from .rounding_methods import Rounded, RoundingTask, round_weights, rounding_method

_COLUMNS = ("layer", "exponent", "error_nearest", "error")


@rounding_method(Awq)
def round_by_awq(task: RoundingTask, options: Awq) -> Rounded:
    """The weights rounded by the method `then`, after scaling of their input channels."""
    sites = list[tuple[str, Site | NoSite, Source]]()  # site by its first weight
    for site in find_sites(task.graph):
        if read := [node for node in site.readers if node.operand("weight").name in task.weights]:
            sites.append((read[0].operand("weight").name, site, read[0].source))
    best = dict[str, _Scales]()
    for inputs in task.inputs_by_block(task.samples[: options.samples]):
        for name, site, _ in sites:
            if isinstance(site, Site) and name in inputs:
                best[name] = _search(task, site, inputs[name], options.steps)
    graph, decisions, rows = task.graph, list[Decision](), list[tuple[Cell, ...]]()
    for name, site, source in sites:
        if isinstance(site, NoSite):
            decisions.append(Decision("awq", name, source, False, f"no scales: {site.reason}"))
            continue
        found = best[name]
        rows.append((source.module or name, found.exponent, found.error_nearest, found.error))
        text = f"input channels scaled by mean|x|^{found.exponent:.2g}"
        decisions.append(Decision("awq", name, source, found.exponent > 0, text))
        graph = graph.with_params(site.scaled(graph, found.scale))
    result = round_weights(replace(task, graph=graph), options.then)
    tables = (Table("awq", _COLUMNS, tuple(rows)), *result.tables)
    return replace(result, decisions=(*decisions, *result.decisions), tables=tables)


@dataclass(frozen=True)
class _Scales:
    """Scales of a site; errors are squared errors of its layers' outputs on the samples, relative to the outputs."""

    exponent: float
    scale: Tensor
    error_nearest: float
    error: float


def _search(task: RoundingTask, site: Site, inputs: InputStatistics, steps: int) -> _Scales:
    """The exponent with the least error of the outputs, the smallest of equal ones."""
    weights = {v.name: task.graph.tensor(v).float() for v in site.weights if v.name in task.weights}
    hessian = inputs.hessian.float()
    power = sum(_error(weight, hessian) for weight in weights.values()) or 1.0
    found = list[_Scales]()
    for step in range(steps):
        scale = normalized(inputs.mean_magnitude.float() ** (step / steps))
        error = sum(
            _error(_rounded(task, weight * scale, task.weights[name].bits) / scale - weight, hessian)
            for name, weight in weights.items()
        )
        found.append(_Scales(step / steps, scale, found[0].error if found else error / power, error / power))
    return min(found, key=lambda scales: scales.error)


def _rounded(task: RoundingTask, weight: Tensor, bits: int) -> Tensor:
    integers, encoding = task.nearest(weight, bits)
    return encoding.dequantize(integers)


def _error(change: Tensor, hessian: Tensor) -> float:
    """|x change^T|^2 for x^T x = hessian."""
    return float(((change @ hessian) * change).sum())
