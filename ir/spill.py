"""Tensors in temporary files, so that the results of a pass on a model larger than memory need no memory either.

The files are in the folder for temporary files (`TMPDIR`), which should not be in memory itself. A file is removed
when the last tensor that is read from it is freed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from .params import LazyTensor, Params
from .tensor_files import open_tensors, write_tensors


@dataclass(frozen=True)
class _Spilled:
    """Reader of a tensor from a folder that exists as long as this object."""

    read: Callable[[], Tensor]
    folder: TemporaryDirectory[str]

    def __call__(self) -> Tensor:
        return self.read()


def spilled(tensor: Tensor) -> LazyTensor:
    """The tensor as a lazy one, read from a temporary file at each use."""
    entry = spill(Params({"tensor": tensor})).entry("tensor")
    assert isinstance(entry, LazyTensor)
    return entry


def spill(tensors: Params) -> Params:
    """The tensors, written one after the other to a temporary file; all lazy."""
    folder = TemporaryDirectory(prefix="fxpress-")
    file = Path(folder.name) / "tensors.safetensors"
    write_tensors(file, tensors)
    return Params({name: _kept(entry, folder) for name, entry in open_tensors(file).entries.items()})


def _kept(entry: Tensor | LazyTensor, folder: TemporaryDirectory[str]) -> LazyTensor:
    assert isinstance(entry, LazyTensor)
    return LazyTensor(entry.shape, entry.dtype, _Spilled(entry.load, folder))
