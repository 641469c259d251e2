"""Samples in memory: arrays and tensors by name, instead of an npz file, and their conversion to one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..specs.root_error import ArgumentError, expect

_FORMS = "an array or a tensor [n, ...], a list or a mapping of them, or the path of an npz file"

LABELS = "labels"
"""Name of the array of labels among arrays in memory."""

ArrayLike: TypeAlias = Tensor | NDArray[Any]  # Any: any element type
SampleArrays: TypeAlias = ArrayLike | Sequence[ArrayLike] | Mapping[str, ArrayLike]
"""An array [n, ...] for each model input: one alone, several in the order of the inputs, or by name."""


@dataclass(frozen=True)
class Arrays:
    """Arrays by name; messages show `place` as their origin."""

    place: str
    by_name: Mapping[str, NDArray[Any]]  # Any: any element type

    def __str__(self) -> str:
        return self.place

    @staticmethod
    def of(
        data: SampleArrays, inputs: Sequence[str], *, place: str, call: str, states: Collection[str] = ()
    ) -> Arrays:
        """Arrays passed to `call` for a model with these inputs; ArgumentError unless there is one for each input.

        The arrays of `states` may all be omitted.
        """
        if isinstance(data, Mapping):
            named = {str(name): array for name, array in data.items()}
        else:
            expect(data, (Tensor, np.ndarray, list, tuple), call, _FORMS)
            arrays = [data] if isinstance(data, Tensor | np.ndarray) else list(data)
            own = [name for name in inputs if name not in states]
            inputs = own if len(arrays) == len(own) else inputs
            if len(arrays) != len(inputs):
                fact = f"{len(arrays)} arrays for the inputs {', '.join(inputs)}"
                hint = f'give one [n, ...] for each input; labels by name, as "{LABELS}" of a mapping'
                raise ArgumentError(call, fact, hint)
            named = dict(zip(inputs, arrays, strict=True))
        return Arrays(place, {name: as_array(a, f"{call}, {name}") for name, a in named.items()})

    def to_npz(self) -> bytes:
        """The npz file of these arrays."""
        return npz_bytes(self.by_name)


def as_array(array: ArrayLike, place: str) -> NDArray[Any]:  # Any: any element type
    """A tensor as an array; bfloat16, which numpy lacks, as float32. ArgumentError for anything else."""
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype is torch.bfloat16 else array).numpy()
    expect(array, np.ndarray, place, "a tensor or a numpy array", "convert a list with numpy.array(...)")
    return array


def npz_bytes(arrays: Mapping[str, ArrayLike]) -> bytes:
    """An npz file of arrays with any names; numpy's own function reserves some names for its arguments."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, as_array(array, name), allow_pickle=False)
    return content.getvalue()
