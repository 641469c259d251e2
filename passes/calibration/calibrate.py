"""Calibration: runs of the float graph on sample inputs, in batches if the graph supports larger ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ...ir import Graph, ShapeError, Value, rebatch, run
from ...ir.interpret import at_call, sizes_of_call
from ...ir.ops.recurrent import Lstm
from ...ir.sizes import Size
from ...specs.root_error import expect
from ..errors import CalibrationError
from ..masks import is_additive_mask
from ..progress_callback import Progress
from .observers import Collector, Statistics

_BATCH = 32
_BATCH_ELEMENTS = 1 << 24  # of the largest tensor: a batch then takes some hundred megabytes at most

Batch = tuple[Tensor, ...]
Interpreter = Callable[[Graph, Sequence[Tensor]], list[Tensor]]


def collect(
    graph: Graph, samples: Sequence[Batch], wanted: Mapping[str, Collection[int]], *, progress: Progress
) -> dict[str, Statistics]:
    """Statistics over all samples of the values in `wanted`, inputs and results.

    `wanted` lists, for each value, the dimensions along which means are computed. CalibrationError names the sample
    and the layer if a value is not finite.
    """
    check_samples(graph, samples)
    size = batch_size(graph, samples)
    if size > 1:
        graph = at_call(graph, samples[0])
    everything = range(len(samples))
    runs = [everything[at : at + size] for at in everything[::size]]
    graphs = {size: _for_samples(graph, size) for size in map(len, runs)}
    collectors = {name: Collector(len(runs), axes=axes) for name, axes in wanted.items()}
    for together in runs:
        inputs = stack([samples[index] for index in together])
        _observe(graphs[len(together)], inputs, collectors, together)
        progress("calibration", together.stop, len(samples))
    found = {name: collector.finish() for name, collector in collectors.items()}
    return {name: statistics for name, statistics in found.items() if statistics is not None}


def _for_samples(graph: Graph, count: int) -> Graph:
    return graph if count == 1 else rebatch(graph, count * graph.inputs[0].type.shape[0])


def check_samples(graph: Graph, samples: Sequence[Batch]) -> None:
    """Raises CalibrationError unless there are samples that fit the inputs, finite except for masks of 0 and -inf."""
    if not len(samples):
        raise CalibrationError("the calibration set is empty")
    for index, sample in enumerate(samples):
        if len(sample) != len(graph.inputs):
            raise CalibrationError(
                f"calibration sample {index} has {len(sample)} tensors; the model takes {len(graph.inputs)}"
            )
        for value, tensor in zip(graph.inputs, sample, strict=True):
            _check_tensor(value, tensor, index)
        try:
            sizes_of_call(graph, sample)
        except ShapeError as err:
            raise CalibrationError(f"calibration sample {index}: {err.message}") from err


def _check_tensor(value: Value, tensor: Tensor, index: int) -> None:
    what = f'calibration sample {index}, input "{value.name}"'
    expect(tensor, Tensor, what, "a tensor")
    if not _fits(tuple(tensor.shape), value.type.shape):
        raise CalibrationError(f"{what}: shape {tuple(tensor.shape)}; the model takes {value.type.shape}")
    if tensor.dtype != value.type.dtype.torch:
        raise CalibrationError(f"{what}: {tensor.dtype}; the model takes {value.type.dtype.torch}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()) and not is_additive_mask(tensor):
        raise CalibrationError(f"{what}: contains NaN or infinity")


def _fits(shape: tuple[int, ...], known: tuple[int, ...]) -> bool:
    return len(shape) == len(known) and all(
        isinstance(size, Size) or size == n for n, size in zip(shape, known, strict=True)
    )


def batch_size(graph: Graph, samples: Sequence[Batch]) -> int:
    """Batch size for calibration: more than one only if two samples together give the same results as alone."""
    if len({tuple(x.shape for x in sample) for sample in samples}) > 1:
        return 1
    largest = max((v.type.numel for v in graph.results), default=1)
    size = min(_BATCH, len(samples), max(_BATCH_ELEMENTS // max(largest, 1), 1))
    return size if size > 1 and passes_batches(graph, samples[:2]) else 1


def passes_batches(graph: Graph, pair: Sequence[Batch], *, interpreter: Interpreter = run) -> bool:
    """True if two samples in one batch give the same results as separately, in either order.

    Sizes alone are not sufficient: a reshape may treat the batch as another dimension and still fit. One order is not
    sufficient, either: a sort along the batch does not move samples that are already sorted.
    """
    firsts = {v.type.shape[:1] for v in graph.inputs}
    if len(firsts) != 1 or firsts == {()}:
        return False
    try:
        graph = at_call(graph, pair[0])
        double = rebatch(graph, 2 * graph.inputs[0].type.shape[0])
        with torch.no_grad():
            together = [interpreter(double, stack(ordered)) for ordered in (pair, pair[::-1])]
            alone = [interpreter(graph, sample) for sample in pair]
    except (ShapeError, RuntimeError):  # torch refuses sizes with a RuntimeError
        return False
    apart = [[torch.cat(rows) for rows in zip(*ordered, strict=True)] for ordered in (alone, alone[::-1])]
    return all(
        x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for xs, ys in zip(together, apart, strict=True)
        for x, y in zip(xs, ys, strict=True)
    )


def stack(samples: Sequence[Batch]) -> Batch:
    """Several samples as one batch."""
    if len(samples) == 1:  # inputs may be scalars
        return samples[0]
    return tuple(torch.cat(list(tensors)) for tensors in zip(*samples, strict=True))


def _observe(graph: Graph, inputs: Batch, collectors: dict[str, Collector], samples: range) -> None:
    cells = _Cells(graph)

    def observe(value: Value, tensor: Tensor) -> None:
        tensor = cells.represented(value, tensor)
        if value.name not in collectors:
            return
        if is_additive_mask(tensor):
            tensor = torch.zeros_like(tensor)  # addend of such a mask for kept scores
        if not bool(tensor.isfinite().all()):
            raise CalibrationError(_not_finite(graph, value, tensor, samples))
        collectors[value.name].add(tensor)

    with torch.no_grad():
        for value, tensor in zip(graph.inputs, inputs, strict=True):
            observe(value, tensor)
        run(graph, inputs, observe=observe)


class _Cells:
    """The cells of LSTMs: a run returns only the last ones, but the encoding must represent those of all steps."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        layers = ((node, node.op) for node in graph.nodes if isinstance(node.op, Lstm))
        self._layers = {node.outputs[-1].name: (node, op) for node, op in layers if op.is_single}
        self._read = {v.name for node, _ in self._layers.values() for v in (*node.operands, node.outputs[0])}
        self._tensors: dict[str, Tensor] = {}

    def represented(self, value: Value, tensor: Tensor) -> Tensor:
        """The tensor that the encoding of a value must represent: its own, or all cells of a recurrent layer."""
        if value.name in self._read:
            self._tensors[value.name] = tensor
        if value.name not in self._layers:
            return tensor
        node, op = self._layers[value.name]
        operands = [None if v is None else self._tensor(v) for v in node.inputs]
        return op.cells(operands, self._tensors[node.outputs[0].name])

    def _tensor(self, value: Value) -> Tensor:
        known = self._tensors.get(value.name)
        return self._graph.tensor(value) if known is None else known


def _not_finite(graph: Graph, value: Value, tensor: Tensor, samples: range) -> str:
    parts = tensor.chunk(len(samples)) if tensor.ndim and len(samples) > 1 else (tensor,)
    index = next(i for i, part in zip(samples, parts, strict=False) if not bool(part.isfinite().all()))
    node = graph.producers.get(value.name)
    layer = f"{node.op.name} {value} ({node.source})" if node is not None else f"input {value}"
    return f"calibration sample {index}: {layer} computes NaN or infinity"
