"""Constants of a graph: a mapping of names to tensors that are read on access.

A model larger than memory is a graph whose constants are lazy: shape and element type are stored, the elements are
read at each use and not kept. Replacing some constants makes a mapping with other entries and reads none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from types import NoneType

import torch
from torch import Tensor

from ..specs.root_error import expect
from .element_type import element_bytes
from .errors import ShapeError

_LARGE_BYTES = 1 << 22
_C_LIBRARY = ctypes.CDLL(None)


def release_memory() -> None:
    """Returns freed memory to the system: glibc keeps blocks below 32 MB, and long-lived small blocks fragment them."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass(frozen=True, slots=True, eq=False)
class LazyTensor:
    """A tensor that `load` reads or computes at each use; its shape and element type are available without reading."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    def read(self) -> Tensor:
        """The tensor; ShapeError if `load` gives another shape or element type."""
        if prod(self.shape) * self.dtype.itemsize >= _LARGE_BYTES:
            release_memory()
        tensor = self.load()
        if (tuple(tensor.shape), tensor.dtype) != (self.shape, self.dtype):
            raise ShapeError(
                f"a lazy tensor of {self.shape} {self.dtype} is read as {tuple(tensor.shape)} {tensor.dtype}"
            )
        return tensor


Entry = Tensor | LazyTensor


class Params(Mapping[str, Tensor]):
    """Tensors by name; each `params[name]` reads a lazy one again."""

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        expect(entries, (Mapping, NoneType), "Params(entries)", "tensors by name")
        self._entries = dict(entries_of(entries or {}))
        self._digests: dict[str, str] = {}

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry.read() if isinstance(entry, LazyTensor) else entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __or__(self, changed: Mapping[str, Entry]) -> Params:
        """These tensors with others added or replaced; nothing is read."""
        merged = Params({**self._entries, **entries_of(changed)})
        merged._digests = {name: digest for name, digest in self._digests.items() if name not in changed}
        return merged

    def only(self, names: Collection[str]) -> Params:
        """The tensors with these names, in the order of this mapping; nothing is read."""
        return Params({name: entry for name, entry in self._entries.items() if name in names})

    def renamed(self, rename: Callable[[str], str]) -> Params:
        """The same tensors under other names; nothing is read."""
        return Params({rename(name): entry for name, entry in self._entries.items()})

    def __eq__(self, other: object) -> bool:
        """True if names and elements are equal; lazy tensors are read in pairs, unless they are the same entry."""
        if not isinstance(other, Params):
            return NotImplemented
        return self.keys() == other.keys() and all(_is_same(self, other, name) for name in self)

    __hash__ = None  # type: ignore[assignment]  # tensors are compared, never keys

    def __repr__(self) -> str:
        lazy = sum(isinstance(entry, LazyTensor) for entry in self._entries.values())
        return f"<Params of {len(self)} tensors, {lazy} of them lazy>"

    @property
    def entries(self) -> dict[str, Entry]:
        """The tensors as stored; lazy ones are not read."""
        return dict(self._entries)

    def entry(self, name: str) -> Entry:
        """A tensor as stored; a lazy one is not read."""
        return self._entries[name]

    @property
    def has_lazy(self) -> bool:
        """True if a tensor is lazy."""
        return any(isinstance(entry, LazyTensor) for entry in self._entries.values())

    @property
    def numel(self) -> int:
        """Total number of elements."""
        return sum(prod(entry.shape) for entry in self._entries.values())

    @property
    def bytes(self) -> int:
        """Total size in bytes."""
        return sum(prod(entry.shape) * entry.dtype.itemsize for entry in self._entries.values())

    def digest(self, name: str) -> str:
        """SHA-256 of element type, shape and elements, in hexadecimal digits; computed once."""
        if name not in self._digests:
            tensor = self[name]
            head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
            self._digests[name] = sha256(head + element_bytes(tensor)).hexdigest()
        return self._digests[name]


def entries_of(tensors: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Entries of a mapping; lazy tensors are not read."""
    return tensors.entries if isinstance(tensors, Params) else tensors


def _is_same(a: Params, b: Params, name: str) -> bool:
    x, y = a.entry(name), b.entry(name)
    if x is y:
        return True
    if x.dtype != y.dtype or tuple(x.shape) != tuple(y.shape):
        return False
    left, right = a[name], b[name]
    return torch.equal(left, right) or _equal_with_nan(left, right)


def _equal_with_nan(x: Tensor, y: Tensor) -> bool:
    return x.is_floating_point() and bool(torch.isclose(x, y, rtol=0.0, atol=0.0, equal_nan=True).all())
