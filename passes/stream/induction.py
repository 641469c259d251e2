"""Check of a streamed network against its window network, by induction.

If the states have the values of the window network in one window, a call with the next frames must give the outputs of
the next window, and its states. So by induction two neighbouring windows prove that all later calls are correct,
without a run from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...ir import Graph, Value, run, run_integer
from ...ir.interpret import round_to_encoding
from ...ir.ops.quantize import Dequantize, Quantize
from ..errors import PassError
from .streamed_graph import Ring, Streamed

_WINDOWS = 3
_TOLERANCE = 1e-9


def check_streamed(
    graph: Graph, streamed: Streamed, axes: Mapping[str, int], hop: int, samples: Sequence[Sequence[Tensor]]
) -> str:
    """Compares both networks on neighbouring windows; returns a note on the comparison. PassError if they differ.

    `samples` are inputs of the window network, joined along time; without samples the windows are random. Graphs that
    compute on integers are compared byte for byte, others in float64 to the last digits.
    """
    recording = _recording(graph, axes, hop * _WINDOWS, samples)
    windows = [
        [
            x.narrow(axes[v.name], hop * index, v.type.shape[axes[v.name]]) if v.name in axes else x
            for v, x in zip(graph.inputs, recording, strict=True)
        ]
        for index in range(_WINDOWS + 1)
    ]
    is_exact = _is_exact(graph)
    before: dict[str, Tensor] = {}
    for index, window in enumerate(windows):
        seen, expected = _run_window(graph, window, is_exact=is_exact)
        if index:
            new = [
                x.narrow(axes[v.name], x.shape[axes[v.name]] - hop, hop) if v.name in axes else x
                for v, x in zip(graph.inputs, window, strict=True)
            ]
            states = [before[ring.state] for ring in streamed.rings]
            found = _run(streamed.graph, [*new, *states], is_exact=is_exact)
            wanted = _newest_outputs(graph, streamed, expected, found)
            wanted += [_kept(seen, ring) for ring in streamed.rings]
            _compare(streamed.graph.output_names, found, wanted, is_exact=is_exact)
        before = {ring.state: _kept(seen, ring) for ring in streamed.rings}
    how = "byte for byte" if is_exact else "to 9 digits, in float64"
    what = "calibration data" if samples else "random frames"
    return f"equal to the window network {how} on {_WINDOWS} calls with {what}"


def _recording(
    graph: Graph, axes: Mapping[str, int], more: int, samples: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """Frames for all windows: those of the samples one after the other, or random ones."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index, value in enumerate(graph.inputs):
        axis = axes.get(value.name)
        given = [sample[index] for sample in samples]
        if axis is None:
            found.append(given[0] if given else _random(value, value.type.shape, generator))
            continue
        count = value.type.shape[axis] + more
        joined = torch.cat(given, axis) if given else None
        if joined is None or joined.shape[axis] < count:
            shape = (*value.type.shape[:axis], count, *value.type.shape[axis + 1 :])
            if joined is None:
                joined = _random(value, shape, generator)
            else:  # too few frames: they are repeated in another order
                order = torch.randint(joined.shape[axis], (count,), generator=generator)
                joined = joined.index_select(axis, order)
        found.append(joined.narrow(axis, 0, count))
    return found


def _random(value: Value, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = value.type.dtype.torch
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _is_exact(graph: Graph) -> bool:
    """True if all computation is on integers: the same bytes for any number of elements per call."""
    real = [
        node
        for node in graph.nodes
        if not any(value.type.is_quantized for value in node.outputs)
        and any(value.type.dtype.is_floating for value in node.outputs)
    ]
    has_integers = any(value.type.is_quantized for value in graph.results)
    return has_integers and all(isinstance(node.op, Dequantize | Quantize) for node in real)


def _run(graph: Graph, inputs: Sequence[Tensor], *, is_exact: bool) -> list[Tensor]:
    return _run_window(graph, inputs, is_exact=is_exact)[1]


def _run_window(
    graph: Graph, inputs: Sequence[Tensor], *, is_exact: bool
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """All values by name, quantized ones as reals, and the outputs."""
    inputs = [x if is_exact else _double(None, x) for x in inputs]
    seen: dict[str, Tensor] = {value.name: x for value, x in zip(graph.inputs, inputs, strict=True)}

    def observe(value: Value, tensor: Tensor) -> None:
        encoding = value.type.quantization
        is_code = is_exact and encoding is not None
        seen[value.name] = encoding.dequantize(tensor) if is_code and encoding is not None else tensor

    with torch.no_grad():
        if is_exact:
            return seen, run_integer(graph, inputs, observe=observe)
        params = {v.name: _double(v, graph.params[v.name]) for v in graph.constants}
        return seen, run(graph, inputs, observe=observe, params=params, rounding=_rounded)


def _double(value: Value | None, tensor: Tensor) -> Tensor:
    if value is not None and value.type.quantization is not None:
        return value.type.quantization.dequantize(tensor, dtype=torch.float64)
    return tensor.double() if tensor.is_floating_point() else tensor


def _rounded(value: Value, tensor: Tensor) -> Tensor:
    """A result in float64, also of a conversion to float32, rounded to its encoding."""
    return round_to_encoding(value, _double(None, tensor))


def _kept(seen: Mapping[str, Tensor], ring: Ring) -> Tensor:
    """Contents of a ring after a window: as many elements as before it, up to the newest."""
    return seen[ring.value.name].narrow(ring.axis, ring.start + ring.moves, ring.stop - ring.start)


def _newest_outputs(
    graph: Graph, streamed: Streamed, expected: Sequence[Tensor], found: Sequence[Tensor]
) -> list[Tensor]:
    """The outputs of a window; for outputs with a time axis the newest elements."""
    newest = []
    for name, wanted, got in zip(graph.output_names, expected, found, strict=False):
        axis = streamed.output_axes.get(name)
        if axis is None:
            newest.append(wanted)
        else:
            count = got.shape[axis]
            newest.append(wanted.narrow(axis, wanted.shape[axis] - count, count))
    return newest


def _compare(
    names: Sequence[str], found: Sequence[Tensor], wanted: Sequence[Tensor], *, is_exact: bool
) -> None:
    for name, got, expected in zip(names, found, wanted, strict=True):
        if is_exact or not got.is_floating_point():
            is_equal = torch.equal(got, expected.to(got.dtype))
        else:
            scale = float(expected.abs().max()) if expected.numel() else 0.0
            is_equal = torch.allclose(
                got, expected, rtol=0.0, atol=_TOLERANCE * max(scale, 1e-30), equal_nan=True
            )
        if not is_equal:
            raise PassError(
                f"the streamed network differs from the window network in {name}; please report this"
            )
