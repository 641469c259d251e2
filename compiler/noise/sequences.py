"""Noise of the outputs along sequences: a state passes the error of one call to the next.

If samples are measured one by one, states are those of the float network, so that errors do not add up.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...ir import Graph, decode_codebooks, run_integer
from ...passes import Context, find_pass
from ...specs.options import QuantizeOptions
from ..data import Samples, run_samples
from ..report import Noise
from .findings import change_of_options, output_ratio
from .ratios import Powers

_CALLS = 128


def along_sequences(
    noise: Noise,
    reference: Graph,
    integer: Graph,
    options: QuantizeOptions,
    context: Context,
    samples: Samples,
) -> Noise:
    """`noise` with the ratios of a network with states along `samples`; wider types are tried if one is low."""
    if not samples.states:
        return noise
    few = samples.first(min(len(samples), _CALLS))
    names, least = integer.output_names, options.least_snr
    before = _powers(reference, integer, few)
    rows = tuple(output_ratio(name, power, least) for name, power in zip(names, before, strict=True))
    changes = noise.changes
    if least is not None and any(row.is_low for row in rows) and not noise.is_low:
        tried = []
        for settings in _wider(options):
            changed = find_pass("quantize")(reference, options.model_copy(update=settings), context).graph
            tried.append(change_of_options(settings, rows, _powers(reference, changed, few), least))
        changes = (*changes, *sorted(tried, key=lambda change: change.is_enough, reverse=True))
    return noise.model_copy(update={"sequences": rows, "changes": changes})


def _powers(reference: Graph, integer: Graph, samples: Samples) -> list[Powers]:
    with torch.no_grad():
        expected = run_samples(reference, samples)
        found = run_samples(decode_codebooks(integer), samples, interpreter=run_integer)
    pairs = zip(expected, found, strict=True)
    return [Powers.of(x, y.reshape(x.shape), samples=len(samples)) for x, y in pairs]


def _wider(options: QuantizeOptions) -> Iterator[dict[str, str]]:
    """Options with more bits."""
    if options.weights != "int8":
        yield {"weights": "int8"}
    if options.activations == "int8":
        yield {"activations": "int16"}
        if options.weights != "int8":
            yield {"activations": "int16", "weights": "int8"}
