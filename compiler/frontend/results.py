"""Names of the tensors in a module's result, from nested keys and fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Key = str | int  # a field or a mapping's key, or a position in a sequence


def result_names(result: pytree.TreeSpec, is_tensor: Sequence[bool]) -> tuple[str, ...]:
    """A name for each tensor among the leaves of a result, such as `logits`, `boxes.0` or `output_1`.

    A name is the path of keys, fields and positions below the sequences that the result begins with. A tensor in
    sequences alone is numbered.
    """
    paths = [path for path, tensor in zip(_paths(result), is_tensor, strict=True) if tensor]
    numbered = ["output"] if len(paths) == 1 else [f"output_{i}" for i in range(len(paths))]
    short = [".".join(map(str, _from_first_key(path))) for path in paths]
    known = Counter(name for name in short if name)
    names = tuple(
        number if not name else name if known[name] == 1 else f"output_{'.'.join(map(str, path))}"
        for number, name, path in zip(numbered, short, paths, strict=True)
    )
    return names if len(set(names)) == len(names) else tuple(numbered)


def register_dataclasses(result: object) -> bool:
    """Registers the dataclasses in a result with torch's tracer; False if there is none to register."""
    unknown = {type(part) for part in _parts(result) if is_dataclass(part)} - pytree.SUPPORTED_NODES.keys()
    for found in unknown:
        torch.export.register_dataclass(found)
    return bool(unknown)


def _paths(result: pytree.TreeSpec) -> list[tuple[Key, ...]]:
    """The path of each leaf, in the order of the leaves."""
    leaves = [torch.empty(0) for _ in range(result.num_leaves)]
    by_leaf = {id(leaf): path for path, leaf in _walk(pytree.tree_unflatten(leaves, result))}
    return [by_leaf.get(id(leaf), (position,)) for position, leaf in enumerate(leaves)]


def _walk(part: object) -> Iterator[tuple[tuple[Key, ...], object]]:
    if isinstance(part, Tensor):
        yield (), part
    for key, child in _children(part):
        for path, leaf in _walk(child):
            yield (key, *path), leaf


def _parts(part: object) -> Iterator[object]:
    yield part
    for _, child in _children(part):
        yield from _parts(child)


def _children(part: object) -> Iterator[tuple[Key, object]]:
    if isinstance(part, Mapping):
        yield from ((str(key), child) for key, child in part.items())
    elif isinstance(part, tuple | list):
        yield from zip(getattr(part, "_fields", range(len(part))), part, strict=True)
    elif is_dataclass(part):
        yield from ((field.name, getattr(part, field.name)) for field in fields(part))


def _from_first_key(path: tuple[Key, ...]) -> tuple[Key, ...]:
    first = next((at for at, key in enumerate(path) if isinstance(key, str)), len(path))
    return path[first:]
