"""Rounding methods of stored weights: their interface, and the registry by the class of their options.

    @rounding_method(Gptq)
    def round_by_gptq(task: RoundingTask, options: Gptq) -> Rounded: ...

A method returns integers and an encoding for each weight of a float graph. It may also return another float graph: an
equivalent one whose weights lose less, or one with other norms and biases, trained with the integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...ir import CodedNumbers, Encoding, Entry, Graph, LazyTensor
from ...ir.coded_numbers import NUMBER_FORMS
from ...ir.spill import spilled
from ...specs.options import WeightOnlyOptions
from ...specs.options.rounding import Nearest
from ...specs.section import Section
from ..base import Context
from ..calibration.calibrate import Batch
from ..calibration.input_statistics import InputStatistics, inputs_by_block
from ..report import Decision, Table
from .groupwise import encode_groupwise, nearest_group_size, quantize_groupwise, relative_error
from .number_formats import FORMATS, encode_to_levels, quantize_to_format
from .stored_weights import StoredWeight

_SCALES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Coded:
    """Codes of a weight and their encoding; `error` is relative to the weight."""

    integers: Entry
    encoding: Encoding
    error: float

    @staticmethod
    def of(weight: Tensor, integers: Tensor, encoding: Encoding, *, in_file: bool = False) -> Coded:
        """The integers of a weight, with their error; `in_file`: stored in a temporary file."""
        coded = Coded(integers, encoding, relative_error(weight, integers, encoding))
        return coded.moved_to_file() if in_file else coded

    def loaded(self) -> Coded:
        """These codes as a tensor in memory."""
        return self if isinstance(self.integers, Tensor) else replace(self, integers=self.integers.read())

    def moved_to_file(self) -> Coded:
        """These codes in a temporary file, from which they are read at each use."""
        return replace(self, integers=spilled(self.integers)) if isinstance(self.integers, Tensor) else self

    def reals(self, dtype: torch.dtype) -> Tensor:
        """The reals that the codes represent."""
        codes = self.integers if isinstance(self.integers, Tensor) else self.integers.read()
        return self.encoding.dequantize(codes).to(dtype)


@dataclass(frozen=True)
class RoundingTask:
    """Weights of a float graph to be rounded, each with its bit width, and calibration samples."""

    graph: Graph
    weights: Mapping[str, StoredWeight]
    samples: Sequence[Batch]
    options: WeightOnlyOptions
    context: Context

    def is_lazy(self, name: str) -> bool:
        """True if a weight is read from a file at each use, so that its integers should not be in memory, either."""
        return isinstance(self.graph.params.entry(name), LazyTensor)

    @property
    def scales(self) -> torch.dtype:
        """Element type in which the scales of integers are chosen."""
        return _SCALES.get(self.options.scales_of(None), torch.float32)

    def with_stored_scales(self, encoding: Encoding, format: str | None = None) -> Encoding:
        """The encoding with scales in their stored form."""
        form = self.options.scales_of(format)
        if form not in NUMBER_FORMS:
            return encoding
        return replace(encoding, scale=CodedNumbers.of(encoding.scale.tensor(torch.float32), form))

    def group_size(self, shape: Sequence[int]) -> int | None:
        """Size of the groups of a weight of this shape; None if a row of a matrix has one scale."""
        size = nearest_group_size(shape[-1], self.options.group_size)
        return None if len(shape) == 2 and size == shape[1] else size

    def inputs_by_block(self, samples: Sequence[Batch]) -> Iterator[dict[str, InputStatistics]]:
        """Statistics of the inputs of the weights' linear layers in the float graph, block by block."""
        context = self.context
        return inputs_by_block(
            self.graph, self.weights, samples, workers=context.workers, progress=context.progress
        )

    def nearest(self, weight: Tensor, bits: int, format: str | None = None) -> tuple[Tensor, Encoding]:
        """Integers nearest to a weight, or codes of a number format, and their encoding."""
        size, observer = self.group_size(weight.shape), self.options.observer
        if format is None:
            codes, encoding = quantize_groupwise(
                weight, bits=bits, group_size=size, observer=observer, dtype=self.scales
            )
        else:
            form = self.options.scales_of(format)
            found, dtype = FORMATS[format], _SCALES.get(form, torch.float32)
            found = replace(found, is_power=found.is_power or form == "e8m0")
            codes, encoding = quantize_to_format(
                weight, found, group_size=size, observer=observer, dtype=dtype
            )
        stored = self.with_stored_scales(encoding, format)
        changed = not np.array_equal(stored.scale.array, encoding.scale.array)
        return encode(weight, stored) if changed else codes, stored


@dataclass(frozen=True)
class Rounded:
    """Result of a method: a float graph, and the integers that replace its weights, by name."""

    graph: Graph
    coded: Mapping[str, Coded]
    decisions: tuple[Decision, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


Options = TypeVar("Options", bound=Section)
RoundingMethod = Callable[[RoundingTask, Options], Rounded]
_METHODS: dict[type[Section], RoundingMethod[Any]] = {}  # Any: each method has its own options


def rounding_method(options: type[Options]) -> Callable[[RoundingMethod[Options]], RoundingMethod[Options]]:
    """Function decorator: registers a method."""

    def enter(method: RoundingMethod[Options]) -> RoundingMethod[Options]:
        _METHODS[options] = method
        return method

    return enter


def round_weights(task: RoundingTask, options: Section) -> Rounded:
    """The weights rounded by the method of these options."""
    return _METHODS[type(options)](task, options)


@rounding_method(Nearest)
def round_to_nearest(task: RoundingTask, options: Nearest) -> Rounded:
    """Each weight separately, to the nearest integers; no sample is run."""
    coded = {name: nearest_weight(task, task.graph, name) for name in task.weights}
    return Rounded(task.graph, coded)


def nearest_weight(task: RoundingTask, graph: Graph, name: str) -> Coded:
    """A constant rounded to nearest. The codes of a lazy one are lazy, too: computed from it at each use."""
    entry, stored = graph.params.entry(name), task.weights[name]
    weight = entry if isinstance(entry, Tensor) else entry.read()
    codes, encoding = task.nearest(weight, stored.bits, stored.format)
    coded = Coded.of(weight, codes, encoding)
    if isinstance(entry, Tensor):
        return coded
    lazy = LazyTensor(tuple(weight.shape), encoding.container.torch, lambda: encode(entry.read(), encoding))
    return Coded(lazy, encoding, coded.error)


def encode(weight: Tensor, encoding: Encoding) -> Tensor:
    """The codes nearest to a weight in an encoding without zero points."""
    return (encode_groupwise if encoding.levels is None else encode_to_levels)(weight, encoding)
