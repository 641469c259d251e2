"""Data sets: npz files read and turned into what the model takes, and figures measured on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ir import Graph, TensorType, rebatch, run
from ..passes.calibrate import Interpreter, passes_batches
from ..specs import ArrayOrigin, Transform
from .errors import Problem, UserError
from .loading import call_source, find_source

_BATCH = 32
_NUMBERS = "iufb"  # kinds of numpy types that are numbers


@dataclass(frozen=True)
class Samples:
    """Model inputs, one tensor [n, ...] each in the model's order, and labels [n, ...] where there are any."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs[0]) if self.inputs else 0

    def first(self, count: int | None) -> Samples:
        """The first `count` samples; all when it is None."""
        labels = None if self.labels is None else self.labels[:count]
        return Samples(tuple(x[:count] for x in self.inputs), labels)


@dataclass(frozen=True)
class Column:
    """How one model input comes out of a file: the array, and what happens to it on the way."""

    array: str
    type: TensorType
    transform: Transform = field(default_factory=Transform)


def read_samples(
    origin: ArrayOrigin, columns: Sequence[Column], *, labels: str | None, limit: int | None
) -> Samples:
    """Samples of an npz file or a function, at most `limit`; UserError for what does not fit the model's inputs.

    Arrays are [n, ...] where the model's input without its batch dimension is [...].
    """
    path = str(origin)
    arrays = _read(origin, [column.array for column in columns] + ([labels] if labels else []))
    single = [name for name, array in arrays.items() if not array.ndim]
    if single:
        hint = "give an array with the samples first"
        raise UserError([Problem("D103", path, f"array {name!r} is a single value", hint) for name in single])
    problems, inputs = [], []
    for column in columns:
        try:
            inputs.append(_model_input(arrays[column.array][:limit], column))
        except ValueError as err:
            problems.append(Problem("D103", path, f"array {column.array!r} {err}", "see `data.transform`"))
    if labels and arrays[labels].dtype.kind not in _NUMBERS:
        fact = f"array {labels!r} has dtype {arrays[labels].dtype}; numbers are needed"
        problems.append(Problem("D103", path, fact, "give each class its number, from 0"))
    counts = {len(arrays[c.array]) for c in columns} | ({len(arrays[labels])} if labels else set())
    if len(counts) > 1:
        problems.append(Problem("D104", path, f"arrays differ in length: {sorted(counts)}"))
    if counts == {0}:
        problems.append(Problem("D105", path, "holds no samples", "calibration needs at least one"))
    if problems:
        raise UserError(problems)
    given = [(column.array, tensor) for column, tensor in zip(columns, inputs, strict=True)]
    given += [(labels, _labels(arrays[labels][:limit]))] if labels else []
    _check_finite(path, given)
    return Samples(tuple(inputs), given[-1][1] if labels else None)


def run_samples(graph: Graph, samples: Samples, *, interpreter: Interpreter = run) -> list[Tensor]:
    """Outputs [n, ...] for all samples: in batches where the graph carries them, else one by one."""
    pieces = batches(graph, samples, interpreter=interpreter)
    return [
        join(parts) for parts in zip(*(interpreter(sized, inputs) for sized, inputs in pieces), strict=True)
    ]


def join(parts: Sequence[Tensor]) -> Tensor:
    """Results of several runs, one after the other along the first dimension; single numbers get one."""
    return torch.cat([part if part.ndim else part.view(1) for part in parts])


def batches(
    graph: Graph, samples: Samples, *, interpreter: Interpreter = run
) -> Iterator[tuple[Graph, list[Tensor]]]:
    """The graph re-typed for each batch, with the batch's inputs; the graph's own batch where it takes no other."""
    own = own_batch(graph)
    pair = [tuple(x[i * own : (i + 1) * own] for x in samples.inputs) for i in range(2)]
    together = len(samples) >= 2 * own and passes_batches(graph, pair, interpreter=interpreter)
    size, end = (_BATCH, len(samples)) if together else (own, len(samples) - len(samples) % own)
    for start in range(0, end, size):
        inputs = [x[start : start + size] for x in samples.inputs]
        count = len(inputs[0])
        yield (graph if count == own else rebatch(graph, count)), inputs


def own_batch(graph: Graph) -> int:
    """How many samples the graph takes at once: the first size of its first input."""
    return graph.inputs[0].type.shape[0] if graph.inputs and graph.inputs[0].type.shape else 1


def correct_answers(logits: Tensor, labels: Tensor) -> int:
    """How many rows have their largest entry at the label."""
    return int((logits.flatten(1).argmax(1) == labels).sum())


def snr_db(reference: Tensor, approximation: Tensor) -> float:
    """10 log10 of signal over error power, over all elements; infinite when they are equal."""
    signal = reference.double().square().sum().item()
    noise = (reference.double() - approximation.double()).square().sum().item()
    if not noise:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def _labels(array: NDArray[np.generic]) -> Tensor:
    """Classes as int64, numbers as float32; [n] where there is one for each sample."""
    dtype = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    single = array.size == len(array)
    return torch.from_numpy((array.reshape(-1) if single else array).astype(dtype))


def _read(origin: ArrayOrigin, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    if isinstance(origin, Path):
        return _read_npz(origin, names)
    made, place = find_source(origin, folder=Path.cwd()), str(origin)
    if not callable(made):
        fact = f"{origin.attribute} is a {type(made).__name__}"
        raise UserError(Problem("D101", place, fact, "name a function that gives arrays by name"))
    found = call_source(made, {}, place)
    if not isinstance(found, Mapping) or not all(isinstance(a, np.ndarray) for a in found.values()):
        raise UserError(Problem("D101", place, "does not give numpy arrays by name", "return {name: array}"))
    _refuse_missing(place, names, list(found))
    return {name: found[name] for name in names}


def _refuse_missing(place: str, names: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        has = f"it has {', '.join(known)}"
        raise UserError([Problem("D102", place, f"has no array {name!r}", has) for name in missing])


def _read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise UserError(Problem("D100", str(path), "there is no such file", "check `data`"))
    try:
        with np.load(path, allow_pickle=False) as archive:
            _refuse_missing(str(path), names, archive.files)
            return {name: archive[name] for name in names}
    except (ValueError, OSError, BadZipFile, EOFError) as err:
        raise UserError(
            Problem("D101", str(path), f"is not a readable npz file: {err}", "write it with np.savez")
        ) from err


def _model_input(array: NDArray[np.generic], column: Column) -> Tensor:
    if array.dtype.kind not in _NUMBERS:
        raise ValueError(f"has dtype {array.dtype}; numbers are needed")
    transform, expected = column.transform, column.type.shape[1:]
    if transform.permutation is not None:
        if len(transform.permutation) != array.ndim:
            raise ValueError(f"has {array.ndim} dimensions; the layout {transform.layout} names others")
        array = array.transpose(transform.permutation)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if transform.reshape is not None:
        if len(array) and array[:1].size != math.prod(transform.reshape):
            raise ValueError(
                f"holds samples of {array[:1].size} numbers; `reshape` makes {transform.reshape}"
            )
        tensor = tensor.reshape(len(tensor), *transform.reshape)
    if tuple(tensor.shape[1:]) != expected:
        raise ValueError(f"holds samples of shape {tuple(tensor.shape[1:])}; the model takes {expected}")
    wanted = column.type.dtype.torch
    if not wanted.is_floating_point:
        return tensor.to(wanted)
    return (tensor.to(torch.float64) * transform.scale + transform.offset).to(wanted)


def _check_finite(path: str, arrays: Sequence[tuple[str, Tensor]]) -> None:
    problems = []
    for name, tensor in arrays:
        bad = [i for i, sample in enumerate(tensor) if not bool(torch.isfinite(sample).all())]
        if bad:
            shown = ", ".join(map(str, bad[:5]))
            message = f"array {name!r} holds NaN or infinity in sample {shown}"
            problems.append(Problem("D106", path, message, "leave these samples out"))
    if problems:
        raise UserError(problems)
