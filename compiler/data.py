"""Data sets: loading, conversion to model inputs, and measurement.

An input is an array [n, ...] of samples without the model's batch dimension, or of whole inputs [n, *shape]. If the
model has a state (an input that is an output of the previous call), samples are steps in the order of time:

    [n, ...]         one sequence of n steps, or as many sequences as the state has starting values
    [n, t, ...]      n sequences of t steps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from ..ir import Graph, TensorType, Value, rebatch, run
from ..ir.interpret import at_call
from ..passes.calibration.calibrate import Interpreter, passes_batches
from ..passes.masks import is_additive_mask
from ..specs import ArrayOrigin, ModuleSource, Transform
from ..specs.model import MEMORY
from ..specs.root_error import ArgumentError, expect
from ..specs.section import is_file, why_no_file
from .arrays import Arrays
from .errors import Problem, UserError, first_line, shorten
from .loading import call_source, find_source

_BATCH = 32
_NUMBERS = "iufb"  # kinds of numpy types that are numbers
_UNSEEN_SHARE = 0.01  # share of the values of an evaluation input: more than the tail of a distribution
_UNSEEN_MARGIN = 0.05  # share of the range of calibration, which quantization ranges rarely match exactly


@dataclass(frozen=True)
class Samples:
    """Model inputs, one tensor each in the model's order, and labels [n, ...] if there are any.

    An input is [n, ...]: samples without the model's batch dimension, which is dimension `axes[i]` of the model's
    input. If `axes[i]` is None it is [calls, *shape]: one input for each call. Default of `axes`: 0 for all. An input
    whose position `states` pairs with an output's name is [sequences, *shape]: the initial value of each sequence of
    `steps` calls; later calls take that output of the previous call.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None
    axes: tuple[int | None, ...] = ()
    states: Mapping[int, str] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        hint = "write Samples((x,))" if isinstance(self.inputs, Tensor) else ""
        expect(self.inputs, (tuple, list), "Samples(inputs)", "a tuple with a tensor for each input", hint)

    def __len__(self) -> int:
        if self._fed and all(self.axis(i) is None for i in self._fed):
            return len(self.inputs[self._fed[0]])
        return next((len(self.inputs[i]) for i in self._fed if self.axis(i) is not None), 0)

    def axis(self, index: int) -> int | None:
        """Batch dimension of an input; None for an input that is stored whole."""
        return self.axes[index] if self.axes else 0

    def first(self, count: int | None) -> Samples:
        """The first `count` samples; all if it is None."""
        if count is None or count >= len(self):
            return self
        kept = tuple(
            x[: -(-count // self.steps)] if i in self.states else x[: count * len(x) // len(self)]
            for i, x in enumerate(self.inputs)
        )
        return replace(self, inputs=kept, labels=None if self.labels is None else self.labels[:count])

    def without(self, positions: Collection[int]) -> Samples:
        """The samples without those at these positions; an input stored whole loses all samples of the same call.

        For a model with states, positions count sequences.
        """
        together = self.steps if self.states else max(len(self) // len(self.inputs[i]) for i in self._fed)
        gone = set(positions) if self.states else {position // together for position in positions}
        parts = len(self) // together
        kept = [part for part in range(parts) if part not in gone]

        def rows(x: Tensor) -> Tensor:
            size = len(x) // parts
            index = [part * size + row for part in kept for row in range(size)]
            return x[torch.tensor(index, dtype=torch.int64)]

        labels = None if self.labels is None else rows(self.labels)
        return replace(self, inputs=tuple(map(rows, self.inputs)), labels=labels)

    def calls(self, values: Sequence[Value]) -> int:
        """Number of calls of a model with inputs like `values` for these samples."""
        counts = [
            len(self.inputs[i]) // (1 if axis is None else int(values[i].type.shape[axis]))
            for i in self._fed
            for axis in (self.axis(i),)
        ]
        return min(counts, default=0)

    def call(self, values: Sequence[Value], index: int) -> list[Tensor]:
        """Inputs of a model with inputs like `values` at call `index`; initial values for states."""
        return [
            x[index // self.steps]
            if i in self.states
            else _call_input(x, value.type.shape, self.axis(i), index)
            for i, (x, value) in enumerate(zip(self.inputs, values, strict=True))
        ]

    @property
    def _fed(self) -> list[int]:
        """Positions of the inputs that are not states."""
        return [i for i in range(len(self.inputs)) if i not in self.states]


def _call_input(x: Tensor, shape: tuple[int, ...], axis: int | None, index: int) -> Tensor:
    if axis is None:
        return x[index]
    size = int(shape[axis])
    return x[index * size : (index + 1) * size].movedim(0, axis).contiguous()


@dataclass(frozen=True)
class Column:
    """Source array of a model input, and its transformation.

    `batch` is the input's batch dimension, if it has one; `state` is the output that the input continues, if any.
    `dynamic` are the dimensions whose size in samples may differ from `type`. `frames` is the time axis of an input
    of new frames: samples with more frames along it are recordings, which are cut into calls.
    """

    array: str
    type: TensorType
    transform: Transform = field(default_factory=Transform)
    batch: int | None = 0
    state: str | None = None
    dynamic: Collection[int] = ()
    frames: int | None = None


def read_samples(
    origin: ArrayOrigin | Arrays, columns: Sequence[Column], *, labels: str | None, limit: int | None
) -> Samples:
    """Samples of an npz file, a function or memory, at most `limit`; UserError for arrays that do not fit the inputs.

    A state without an array starts with zeros.
    """
    path = str(origin)
    needed = [column.array for column in columns if column.state is None] + ([labels] if labels else [])
    arrays = _read(origin, needed, optional=[c.array for c in columns if c.state is not None])
    single = [name for name, array in arrays.items() if not array.ndim]
    if single:
        hint = "give an array with the samples first"
        raise UserError([Problem("D103", path, f"array {name!r} is a single value", hint) for name in single])
    problems: list[Problem] = []
    found: dict[str, _Read] = {}
    stateful = any(column.state is not None or column.frames is not None for column in columns)
    for column in columns:
        if column.array in arrays:
            try:
                array = arrays[column.array] if stateful else arrays[column.array][:limit]
                found[column.array] = _read_column(array, column, in_sequences=stateful)
            except ValueError as err:
                fact = f"array {column.array!r} {err}"
                problems.append(Problem("D103", path, fact, "see `data.transform`"))
    if labels and arrays[labels].dtype.kind not in _NUMBERS:
        fact = f"array {labels!r} has dtype {arrays[labels].dtype}; numbers are needed"
        problems.append(Problem("D103", path, fact, "give the index of each class, from 0"))
    if not all(len(array) for array in arrays.values()):
        problems.append(Problem("D105", path, "has no samples", "give at least one"))
    if problems:
        raise UserError(problems)
    if stateful:
        samples = _sequences(path, columns, found, arrays[labels] if labels else None).first(limit)
    else:
        reads = [found[column.array] for column in columns]
        _check_lengths(path, columns, reads, {name: len(array) for name, array in arrays.items()}, labels)
        made = _labels(arrays[labels][:limit]) if labels else None
        samples = Samples(tuple(r.tensor for r in reads), made, tuple(r.axis for r in reads)).first(limit)
    given = [(column.array, tensor) for column, tensor in zip(columns, samples.inputs, strict=True)]
    given += [(labels, samples.labels)] if labels and samples.labels is not None else []
    _check_finite(path, given)
    return samples


def run_samples(graph: Graph, samples: Samples, *, interpreter: Interpreter = run) -> list[Tensor]:
    """Outputs for all samples, as `join` combines them: in batches if the graph supports them, else one by one."""
    expect(graph, Graph, "run_samples(graph, samples)", "a graph")
    expect(samples, Samples, "run_samples(graph, samples)", "`Samples`", "write Samples((x,))")
    if samples.states:
        rows = run_calls(graph.inputs, graph.output_names, samples, lambda x: interpreter(graph, x))
        return join(rows, own_batch(graph.inputs, samples))
    pieces = list(batches(graph, samples, interpreter=interpreter))
    rows = [interpreter(sized, inputs) for sized, inputs in pieces]
    return join(rows, own_batch(pieces[0][0].inputs, samples)) if pieces else []


def run_calls(
    values: Sequence[Value],
    outputs: Sequence[str],
    samples: Samples,
    call: Callable[[list[Tensor]], list[Tensor]],
) -> list[list[Tensor]]:
    """Outputs of each call of a model, in order.

    A state is the output of the previous call, except at the start of a sequence.
    """
    rows: list[list[Tensor]] = []
    for index in range(samples.calls(values)):
        inputs = samples.call(values, index)
        if samples.states and index % samples.steps:
            for state, output in samples.states.items():
                inputs[state] = rows[-1][outputs.index(output)].reshape(values[state].type.shape)
        rows.append(call(inputs))
    return rows


def unrolled(graph: Graph, samples: Samples, *, interpreter: Interpreter = run) -> Samples:
    """The samples with the value of each state at each call, so that calls are independent."""
    if not samples.states:
        return samples
    seen: list[list[Tensor]] = []

    def call(inputs: list[Tensor]) -> list[Tensor]:
        seen.append([inputs[state] for state in samples.states])
        return interpreter(graph, inputs)

    with torch.no_grad():
        run_calls(graph.inputs, graph.output_names, samples, call)
    columns = zip(samples.states, zip(*seen, strict=True), strict=True)
    found = {state: torch.stack(values) for state, values in columns}
    return replace(
        samples,
        inputs=tuple(found.get(i, x) for i, x in enumerate(samples.inputs)),
        axes=tuple(None if i in found else samples.axis(i) for i in range(len(samples.inputs))),
        states={},
        steps=0,
    )


def join(rows: Sequence[Sequence[Tensor]], batch: int) -> list[Tensor]:
    """The outputs of several runs combined; `batch` is the number of samples in one call.

    An output with a row for each sample becomes [n, ...], any other [n, *shape].
    """
    return [
        torch.cat(parts) if parts[0].shape[:1] == (batch,) else torch.stack(parts)
        for parts in zip(*rows, strict=True)
    ]


def batches(
    graph: Graph, samples: Samples, *, interpreter: Interpreter = run
) -> Iterator[tuple[Graph, list[Tensor]]]:
    """The graph re-typed for each batch, with the batch's inputs; the graph's own batch if it supports no other."""
    calls = samples.calls(graph.inputs)
    leads = all(samples.axis(i) == 0 for i in range(len(samples.inputs)))
    pair = [tuple(samples.call(graph.inputs, i)) for i in range(min(2, calls))]
    if not leads or calls < 2 or not passes_batches(graph, pair, interpreter=interpreter):
        yield from ((graph, samples.call(graph.inputs, i)) for i in range(calls))
        return
    graph = at_call(graph, pair[0])
    own = graph.inputs[0].type.shape[0]
    for start in range(0, len(samples), _BATCH):
        inputs = [x[start : start + _BATCH] for x in samples.inputs]
        count = len(inputs[0])
        yield (graph if count == own else rebatch(graph, count)), inputs


def own_batch(inputs: Sequence[Value], samples: Samples | None = None) -> int:
    """Batch size of a model: the batch dimension of its first input that has one."""
    axes = [0 if samples is None else samples.axis(i) for i in range(len(inputs))]
    shapes = [v.type.shape for v in inputs]
    return next(
        (int(shape[axis]) for shape, axis in zip(shapes, axes, strict=True) if shape and axis is not None), 1
    )


def correct_answers(output: Tensor, labels: Tensor) -> int:
    """Number of samples whose largest score is at their label [n]."""
    call = "correct_answers(output, labels)"
    expect(output, Tensor, call, "a tensor as `output`")
    expect(labels, Tensor, call, "a tensor as `labels`")
    if output.shape[:1] != labels.shape:
        fact = f"an output of shape {tuple(output.shape)} for labels of shape {tuple(labels.shape)}"
        raise ArgumentError(call, fact, "give one label [n] for each sample [n, ...]")
    return int((output.reshape(len(labels), -1).argmax(1) == labels).sum())


def snr_db(reference: Tensor, approximation: Tensor) -> float:
    """10 log10 of signal power over error power, over all elements; infinite if they are equal."""
    call = "snr_db(reference, approximation)"
    expect(reference, Tensor, call, "a tensor as `reference`")
    expect(approximation, Tensor, call, "a tensor as `approximation`")
    if reference.shape != approximation.shape:
        fact = f"tensors of the shapes {tuple(reference.shape)} and {tuple(approximation.shape)}"
        raise ArgumentError(call, fact, "give two tensors of the same shape")
    signal = reference.double().square().sum().item()
    noise = (reference.double() - approximation.double()).square().sum().item()
    if not noise:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def _labels(array: NDArray[np.generic]) -> Tensor:
    """Classes as int64, numbers as float32; [n] if there is one label for each sample."""
    dtype = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    single = array.size == len(array)
    return torch.from_numpy((array.reshape(-1) if single else array).astype(dtype))


def _read(
    origin: ArrayOrigin | Arrays, names: Sequence[str], *, optional: Sequence[str] = ()
) -> dict[str, NDArray[np.generic]]:
    if isinstance(origin, Arrays):
        return _named(str(origin), origin.by_name, names, optional)
    if isinstance(origin, Path):
        found: Mapping[str, NDArray[np.generic]] = _read_npz(origin, names, optional)
        return {name: _standard(array) for name, array in found.items()}
    if isinstance(origin, ModuleSource) and origin.module == MEMORY:
        fact, advice = "was in the memory of a Python program", "write the spec with `Compiled.write_spec`"
        raise UserError(Problem("D100", str(origin), fact, advice))
    made, place = find_source(origin, folder=Path.cwd()), str(origin)
    if not callable(made):
        fact = f"{origin.attribute} is a {type(made).__name__}"
        raise UserError(Problem("D101", place, fact, "name a function that returns arrays by name"))
    made_arrays = call_source(made, {}, place, remedy="it is called without arguments")
    if not isinstance(made_arrays, Mapping) or not all(
        isinstance(a, np.ndarray) for a in made_arrays.values()
    ):
        raise UserError(
            Problem("D101", place, "does not return numpy arrays by name", "return {name: array}")
        )
    return _named(place, made_arrays, names, optional)


def _named(
    place: str, found: Mapping[str, NDArray[np.generic]], names: Sequence[str], optional: Sequence[str]
) -> dict[str, NDArray[np.generic]]:
    """The arrays with these names, and those with optional names that exist."""
    _refuse_missing(place, names, list(found))
    return {name: _standard(found[name]) for name in (*names, *(n for n in optional if n in found))}


def _standard(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The array in a number type of torch: the machine's byte order, at most double precision."""
    if array.dtype.kind == "f" and array.dtype.itemsize > np.dtype(np.float64).itemsize:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _refuse_missing(place: str, names: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        has = f"it has {', '.join(known)}"
        raise UserError([Problem("D102", place, f"has no array {name!r}", has) for name in missing])


def _read_npz(path: Path, names: Sequence[str], optional: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    place = shorten(str(path))
    if not is_file(path):
        raise UserError(Problem("D100", place, why_no_file(path), "check the path of the data"))
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            fact = "contains a single array, as written by np.save"
            raise UserError(Problem("D101", place, fact, "write arrays by name, with np.savez"))
        with archive:
            _refuse_missing(place, names, archive.files)
            found = {name: archive[name] for name in (*names, *(n for n in optional if n in archive.files))}
    except (UserError, MemoryError):
        raise
    except (
        Exception
    ) as err:  # a damaged archive may raise any error, among them zlib, struct and tokenize errors
        fact = f"is not a readable npz file: {first_line(err)}"
        raise UserError(Problem("D101", place, fact, "write it with np.savez")) from err
    strange = [name for name, array in found.items() if not isinstance(array, np.ndarray)]
    if strange:
        fact = "is a file in the archive, but not an array"
        raise UserError(
            [Problem("D101", place, f"member {name!r} {fact}", "write it with np.savez") for name in strange]
        )
    return found


@dataclass(frozen=True)
class _Read:
    """An array as model inputs; `axis` as in `Samples`, `steps` of a sequence if the array has that dimension."""

    tensor: Tensor
    axis: int | None
    steps: int | None = None


def _read_column(array: NDArray[np.generic], column: Column, *, in_sequences: bool) -> _Read:
    if column.state is not None:
        read = _model_input(array, column)
        whole = read.tensor if read.axis is None else read.tensor.unsqueeze(1 + read.axis)
        if tuple(whole.shape[1:]) != column.type.shape:
            raise ValueError(f"contains samples; a state starts with arrays of shape {column.type.shape}")
        return _Read(whole, None)
    try:
        return _model_input(array, column)
    except ValueError as flat:
        if not in_sequences or array.ndim < 2:
            raise
        try:
            read = _model_input(array.reshape(-1, *array.shape[2:]), column)
        except ValueError:
            recording = _recordings(array, column)
            if recording is None:
                raise flat from None
            return recording
        return replace(read, steps=array.shape[1])


def _recordings(array: NDArray[np.generic], column: Column) -> _Read | None:
    """Samples with more frames than a call takes, cut into calls; None if the array has no such samples."""
    if column.frames is None:
        return None
    try:
        read = _model_input(array, replace(column, dynamic=(*column.dynamic, column.frames)))
    except ValueError:
        return None
    hop = int(column.type.shape[column.frames])
    at = place_of_axis(column.frames, read.axis)
    frames = read.tensor.shape[at]
    if frames % hop:
        raise ValueError(f"contains recordings of {frames} frames, not a multiple of the {hop} of a call")
    return replace(read, tensor=frames_in_steps(read.tensor, at, hop), steps=frames // hop)


def frames_in_steps(x: Tensor, at: int, hop: int) -> Tensor:
    """Samples [n, ...] with time on dimension `at` as calls of `hop` frames, [n * calls, ...].

    If the number of frames is not a multiple of the hop, the first ones are dropped.
    """
    calls = x.shape[at] // hop
    used = x.narrow(at, x.shape[at] - calls * hop, calls * hop)
    cut = used.reshape(*x.shape[:at], calls, hop, *x.shape[at + 1 :])
    return cut.movedim(at, 1).flatten(0, 1)


def place_of_axis(axis: int, batch: int | None) -> int:
    """Dimension of samples that is `axis` of the model's input: of [n, ...] without dimension `batch`, or of [n,
    *shape].
    """
    return axis + 1 if batch is None or axis < batch else axis


def _sequences(
    path: str, columns: Sequence[Column], found: Mapping[str, _Read], labels: NDArray[np.generic] | None
) -> Samples:
    """Samples of a model with states, from the arrays of the columns."""
    taken = [column for column in columns if column.state is None]
    fed = [found[column.array] for column in taken]
    calls = {len(read.tensor) // _size(read, column) for read, column in zip(fed, taken, strict=True)}
    starts = {len(found[c.array].tensor) for c in columns if c.state is not None and c.array in found}
    lengths = {read.steps for read in fed if read.steps is not None}
    if len(calls) > 1 or len(starts) > 1 or len(lengths) > 1:
        fact = f"arrays differ in length: {sorted(calls | starts | lengths)}"
        raise UserError(Problem("D104", path, fact, "give every input the same sequences"))
    if any(_size(read, column) != 1 for read, column in zip(fed, taken, strict=True)):
        hint = f"give arrays [steps, {', '.join(map(str, taken[0].type.shape))}]"
        raise UserError(Problem("D103", path, "a model with states takes one sample at a time", hint))
    total = min(calls, default=0)
    steps = min(lengths, default=total // min(starts, default=1))
    sequences = total // max(steps, 1)
    if not steps or sequences * steps != total or starts - {sequences}:
        fact = f"{total} steps are not {min(starts, default=1)} sequences of equal length"
        raise UserError(Problem("D104", path, fact, "give an initial state for each sequence, or none"))
    inputs = tuple(
        found[c.array].tensor
        if c.array in found
        else torch.zeros(sequences, *c.type.shape, dtype=c.type.dtype.torch)
        for c in columns
    )
    axes = tuple(found[c.array].axis if c.array in found else None for c in columns)
    states = {i: c.state for i, c in enumerate(columns) if c.state is not None}
    if labels is not None and lengths and labels.shape[:2] == (sequences, steps):
        labels = labels.reshape(-1, *labels.shape[2:])
    if labels is not None and len(labels) != total:
        fact = f"{len(labels)} labels for {total} steps"
        raise UserError(Problem("D104", path, fact, "give one for each step: [steps] or [sequences, steps]"))
    return Samples(inputs, None if labels is None else _labels(labels), axes, states, steps)


def _size(read: _Read, column: Column) -> int:
    """Number of samples of an input per call."""
    return 1 if read.axis is None else column.type.shape[read.axis]


def _check_lengths(
    path: str,
    columns: Sequence[Column],
    reads: Sequence[_Read],
    lengths: Mapping[str, int],
    labels: str | None,
) -> None:
    """UserError unless all inputs have samples for the same number of calls, and every sample has a label."""
    pairs = list(zip(columns, reads, strict=True))
    calls = {lengths[column.array] // _size(read, column) for column, read in pairs}
    samples = next((lengths[c.array] for c, read in pairs if read.axis is not None), min(calls, default=0))
    if len(calls) == 1 and (labels is None or lengths[labels] == samples):
        return
    fact = f"arrays differ in length: {sorted(set(lengths.values()))}"
    raise UserError(Problem("D104", path, fact))


def unseen_notes(inputs: Sequence[Value], calibration: Samples, evaluation: Samples) -> list[str]:
    """Notes on inputs whose evaluation data exceed the range of the calibration data, where integers saturate."""
    notes = []
    for index, value in enumerate(inputs):
        if index in evaluation.states or not value.type.dtype.is_floating or not value.type.numel:
            continue
        seen, given = (x[x.isfinite()] for x in (calibration.inputs[index], evaluation.inputs[index]))
        if not seen.numel() or not given.numel():
            continue
        low, high = (float(end) for end in seen.aminmax())
        margin = _UNSEEN_MARGIN * (high - low)
        outside = float(((given < low - margin) | (given > high + margin)).double().mean())
        if outside > _UNSEEN_SHARE:
            notes.append(
                f"input {value.name}: {outside:.1%} of the evaluation data are outside the range of the calibration "
                f"data ({low:.4g} to {high:.4g}), where integers saturate: calibrate on similar data"
            )
    return notes


def _model_input(array: NDArray[np.generic], column: Column) -> _Read:
    if array.dtype.kind not in _NUMBERS:
        raise ValueError(f"has dtype {array.dtype}; numbers are needed")
    transform, shape = column.transform, column.type.shape
    batch = column.batch if shape else None
    expected = shape if batch is None else shape[:batch] + shape[batch + 1 :]
    if transform.permutation is not None:
        if len(transform.permutation) != array.ndim:
            raise ValueError(f"has {array.ndim} dimensions; the layout {transform.layout} names others")
        array = array.transpose(transform.permutation)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if transform.reshape is not None:
        if len(array) and array[:1].size != math.prod(transform.reshape):
            raise ValueError(f"has samples of {array[:1].size} numbers; `reshape` makes {transform.reshape}")
        tensor = tensor.reshape(len(tensor), *transform.reshape)
    axis = batch
    shape = _with_sizes_of(tuple(tensor.shape[1:]), shape, batch, column.dynamic)
    expected = shape if batch is None else shape[:batch] + shape[batch + 1 :]
    if batch is not None and tuple(tensor.shape[1:]) == shape:
        # both readings give one sample per call, or the array has the model's own batches
        tensor, axis = (tensor.squeeze(1 + batch), batch) if shape[batch] == 1 else (tensor, None)
    if tuple(tensor.shape[1:]) != (shape if axis is None else expected):
        raise ValueError(f"has samples of shape {tuple(tensor.shape[1:])}; the model takes {expected}")
    wanted = column.type.dtype.torch
    if not wanted.is_floating_point and not transform.keeps_values:
        raise ValueError(f"is for an input of {column.type.dtype.name.lower()}, which has no scale or offset")
    if wanted.is_floating_point:
        tensor = tensor.to(torch.float64) * transform.scale + transform.offset
    elif not torch.equal(tensor.to(wanted).to(tensor.dtype), tensor):
        raise ValueError(
            f"contains numbers that {column.type.dtype.name.lower()}, the model's input type, cannot represent"
        )
    return _Read(tensor.to(wanted), axis)


def _with_sizes_of(
    sample: tuple[int, ...], shape: tuple[int, ...], batch: int | None, dynamic: Collection[int]
) -> tuple[int, ...]:
    """The shape of an input with the sizes of a sample in dynamic dimensions; a sample may omit the batch."""
    left_out = batch is not None and len(sample) == len(shape) - 1
    kept = [axis for axis in range(len(shape)) if not (left_out and axis == batch)]
    if len(kept) != len(sample):
        return shape
    given = {axis: size for axis, size in zip(kept, sample, strict=True) if axis in dynamic}
    return tuple(given.get(axis, size) for axis, size in enumerate(shape))


def _check_finite(path: str, arrays: Sequence[tuple[str, Tensor]]) -> None:
    problems = []
    for name, tensor in arrays:
        if is_additive_mask(tensor):
            continue
        bad = [i for i, sample in enumerate(tensor) if not bool(torch.isfinite(sample).all())]
        if bad:
            shown = ", ".join(map(str, bad[:5]))
            message = f"array {name!r} contains NaN or infinity in sample {shown}"
            problems.append(Problem("D106", path, message, "remove these samples"))
    if problems:
        raise UserError(problems)
