"""Safetensors files: read tensor by tensor from one file, or from the shards of a folder, and written the same way.

A file has the length of a header in 8 bytes, the header in JSON (element type, shape and position of each tensor),
then the elements: wide element types first, so that all are aligned. An index file of Hugging Face,
`model.safetensors.index.json`, has the shard of each tensor under `weight_map`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..specs.root_error import expect
from .element_type import element_bytes
from .errors import ShapeError
from .params import Entry, LazyTensor, Params

INDEX_SUFFIX = ".safetensors.index.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", f"model{INDEX_SUFFIX}"
_ELEMENTS = {  # widest first, like the reference implementation of safetensors
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _ELEMENTS.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_ELEMENTS.values())}
_ALIGNMENT = 8


def open_tensors(path: Path) -> Params:
    """The tensors of a safetensors file, of the shards of an index file, or of a folder with either; all lazy.

    A tensor is mapped from its file at each use. ShapeError for element types that the IR lacks, and for a tensor of
    the index that its shard does not contain; FileNotFoundError if a file is missing or a folder has no safetensors
    files, SafetensorError for a damaged file.
    """
    expect(path, Path, "open_tensors(path)", "a pathlib.Path", "write Path(...)")
    tensors = Params()
    for file, names in _shards(path).items():
        tensors = tensors | _tensors_of(file, names)
    return tensors


def shard_files(path: Path) -> list[Path]:
    """The safetensors files of a path: the file itself, or the files of an index file or a folder."""
    return sorted(_shards(path))


def _shards(path: Path) -> dict[Path, frozenset[str] | None]:
    """The files, each with the names of the tensors to read; None for all tensors."""
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        if indices:
            return _shards(indices[0])
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{path} has no *{INDEX_SUFFIX} and no *.safetensors")
        return dict.fromkeys(files)
    if not path.name.endswith(INDEX_SUFFIX):
        return {path: None}
    shards: dict[Path, set[str]] = {}
    for name, file in _weight_map(path).items():
        shards.setdefault(path.parent / file, set()).add(name)
    return {file: frozenset(names) for file, names in shards.items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    """The file of each tensor, relative to the index file's folder."""
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as err:
        raise ShapeError(f"{index} is not a JSON file: {err}") from err
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(f, str) for f in places.values()):
        raise ShapeError(f"{index} has no weight_map of tensors to files")
    return places


def _tensors_of(file: Path, names: frozenset[str] | None) -> dict[str, LazyTensor]:
    if not file.is_file():
        raise FileNotFoundError(f"file not found: {file}")
    try:
        return _described(file, names)
    except SafetensorError as err:
        raise SafetensorError(f"{file}: {err}") from err


def _described(file: Path, names: frozenset[str] | None) -> dict[str, LazyTensor]:
    found = {}
    with safe_open(file, framework="pt") as opened:
        stored = frozenset(opened.keys())  # the content is not a mapping
        for name in sorted(stored if names is None else names):
            if name not in stored:
                raise ShapeError(f"{file} does not contain {name}, which the index file lists there")
            described = opened.get_slice(name)
            element = described.get_dtype()
            if element not in _ELEMENTS:
                raise ShapeError(f"{file}: {name} has elements of type {element}, which are not supported")
            shape = tuple(described.get_shape())
            found[name] = LazyTensor(shape, _ELEMENTS[element], partial(_read, file, name))
    return found


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def write_tensors(path: Path, tensors: Params) -> None:
    """Writes a safetensors file with one tensor in memory at a time; equal tensors give equal bytes."""
    expect(path, Path, "write_tensors(path, tensors)", "a pathlib.Path", "write Path(...)")
    expect(tensors, Params, "write_tensors(path, tensors)", "`Params`", "write Params({name: tensor})")
    with path.open("wb") as file:
        for part in tensor_file(tensors):
            file.write(part)


def shards(tensors: Params, max_bytes: int | None) -> dict[str, Params | bytes]:
    """Files `model-*.safetensors` with at most `max_bytes` of tensors each, and their index.

    One file `model.safetensors` if all tensors fit, or without a limit. A tensor is not divided: a larger one has its
    own file.
    """
    parts, used = list[dict[str, Entry]]([{}]), 0
    for name, entry in tensors.entries.items():
        size = prod(entry.shape) * entry.dtype.itemsize
        if max_bytes is not None and parts[-1] and used + size > max_bytes:
            parts.append({})
            used = 0
        parts[-1][name] = entry
        used += size
    if len(parts) == 1:
        return {WEIGHTS_FILE: tensors}
    names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    places = {name: file for file, part in zip(names, parts, strict=True) for name in part}
    index = {"metadata": {"total_size": tensors.bytes}, "weight_map": places}
    files: dict[str, Params | bytes] = {file: Params(part) for file, part in zip(names, parts, strict=True)}
    return files | {INDEX_FILE: (json.dumps(index, indent=2) + "\n").encode()}


def tensor_file(tensors: Params) -> Iterator[bytes]:
    """The bytes of a safetensors file: its header, then the elements of one tensor after the other."""
    names = sorted(tensors, key=lambda name: (_RANKS[tensors.entry(name).dtype], name))
    header, end = dict[str, object](), 0
    for name in names:
        entry = tensors.entry(name)
        start, end = end, end + prod(entry.shape) * entry.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    yield len(padded).to_bytes(8, "little") + padded
    for name in names:
        yield element_bytes(tensors[name])
