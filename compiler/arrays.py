"""Samples in memory: arrays and tensors by name, in place of an npz file, and as the bytes of one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LABELS = "labels"
"""The array of labels among arrays in memory."""

ArrayLike: TypeAlias = Tensor | NDArray[Any]  # Any: of whatever element type
SampleArrays: TypeAlias = ArrayLike | Sequence[ArrayLike] | Mapping[str, ArrayLike]
"""An array [n, ...] for each model input: one alone, several in the order of the inputs, or by name."""


@dataclass(frozen=True)
class Arrays:
    """Arrays by name; `place` is what messages call them."""

    place: str
    by_name: Mapping[str, NDArray[Any]]  # Any: of whatever element type

    def __str__(self) -> str:
        return self.place

    @staticmethod
    def of(data: SampleArrays, inputs: Sequence[str], *, place: str) -> Arrays:
        """The arrays of a model with these inputs; ValueError if there is not one for each."""
        if isinstance(data, Mapping):
            return Arrays(place, {str(name): as_array(array) for name, array in data.items()})
        arrays = [data] if isinstance(data, Tensor | np.ndarray) else list(data)
        if len(arrays) != len(inputs):
            raise ValueError(f"{place}: {len(arrays)} arrays for the inputs {', '.join(inputs)}")
        return Arrays(place, {name: as_array(array) for name, array in zip(inputs, arrays, strict=True)})

    def to_npz(self) -> bytes:
        """The npz file of these arrays."""
        return npz_bytes(self.by_name)


def as_array(array: ArrayLike) -> NDArray[Any]:  # Any: of whatever element type
    """A tensor as an array; bfloat16, which numpy lacks, as float32. TypeError for anything else."""
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype is torch.bfloat16 else array).numpy()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expects tensors and numpy arrays, got {type(array).__name__}")
    return array


def npz_bytes(arrays: Mapping[str, ArrayLike]) -> bytes:
    """An npz file of arrays under any names; numpy's own function takes some names for its arguments."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, as_array(array), allow_pickle=False)
    return content.getvalue()
