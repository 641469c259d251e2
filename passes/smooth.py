"""The pass `smooth`: outliers of activations move into the weights that read them (SmoothQuant).

    s_j = max|x_j|^a / max|W_j|^(1 - a),   W' = W diag(s),   x' = x / s folded into the producer of x

over input channels j of linear layers. Source: Xiao et al., SmoothQuant: Accurate and efficient post-training
quantization for large language models, ICML 2023. `channel_scales` finds where a factor can be moved.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..ir import Graph, Value, run
from ..specs.options import SmoothOptions
from .base import Context, PassResult, register
from .calibration.calibrate import Batch, check_samples
from .channel_scales import NoSite, Site, find_sites, normalized
from .progress_callback import Progress
from .report import Cell, Decision, PassReport, Table

_COLUMNS = ("layer", "channels", "range_spread_before", "range_spread_after")


@register(SmoothOptions)
def smooth(graph: Graph, options: SmoothOptions, context: Context) -> PassResult:
    """An equivalent graph in which channels of the inputs of linear layers have more similar ranges."""
    sites = list(find_sites(graph))
    values = {site.value.name for site in sites if isinstance(site, Site)}
    largest = _largest(graph, values, context.calibration[: options.samples], context.progress)
    smoothed, decisions, rows = graph, list[Decision](), list[tuple[Cell, ...]]()
    for site in sites:
        first = site.readers[0]
        reason = site.reason if isinstance(site, NoSite) else None
        if any(context.selects_any(options.keep, node.source) for node in site.readers):
            reason = "the spec keeps one of the layers"
        if isinstance(site, NoSite) or reason is not None:
            decisions.append(Decision("smooth", first.output.name, first.source, False, reason or ""))
            continue
        inputs = largest[site.value.name]
        read = torch.stack([smoothed.tensor(v).abs().amax(0).float() for v in site.weights]).amax(0)
        scale = normalized(inputs**options.strength / read ** (1 - options.strength))
        smoothed = smoothed.with_params(site.scaled(smoothed, scale))
        text = f"{len(scale)} input channels scaled by {float(scale.min()):.3g} to {float(scale.max()):.3g}"
        decisions.append(Decision("smooth", first.output.name, first.source, True, text))
        rows.append(
            (first.source.module or first.output.name, len(scale), _spread(inputs), _spread(inputs / scale))
        )
    report = PassReport("smooth", tuple(decisions), (Table("inputs", _COLUMNS, tuple(rows)),))
    return PassResult(smoothed, report)


def _largest(
    graph: Graph, values: Collection[str], samples: Sequence[Batch], progress: Progress
) -> dict[str, Tensor]:
    """The largest magnitude of each element of the last dimension of these values."""
    check_samples(graph, samples)
    found: dict[str, Tensor] = {}

    def observe(value: Value, x: Tensor) -> None:
        if value.name in values:
            most = x.abs().reshape(-1, x.shape[-1]).amax(0).float()
            found[value.name] = torch.maximum(found[value.name], most) if value.name in found else most

    with torch.no_grad():
        for index, sample in enumerate(samples):
            run(graph, sample, observe=observe)
            progress("calibration", index + 1, len(samples))
    return found


def _spread(largest: Tensor) -> float:
    """The largest range of a channel relative to the mean of all: the loss of precision with one scale for all
    channels.
    """
    return float(largest.max() / largest.mean().clamp(min=1e-30))
