"""Artifact of the torch backend: a Python file, its tensors, and the module built from both."""

from __future__ import annotations

import copyreg
import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...ir import Params
from ...ir.tensor_files import shards, tensor_file, write_tensors
from .. import packed_linear

SOURCE_FILE = "model.py"
_KERNELS = (
    tuple(
        packed_linear.FOLDER / name
        for name in (packed_linear.SOURCE, packed_linear.HEADER, packed_linear.NORM)
    ),
    (Path(__file__).with_name("int8_layers.c"),),
)


@dataclass(frozen=True)
class TorchArtifact:
    """An emitted module. `tensors` are its state by key; `aliases` are keys whose tensor is stored under another key.

    A module with a C kernel has a copy of its files next to its source. Tensors of a lazy graph are lazy: `save` has
    one of them in memory at a time. `max_shard_bytes` divides them among several files; None: one file.
    """

    class_name: str
    source: str
    tensors: Params
    aliases: Mapping[str, str]
    notes: tuple[str, ...] = ()
    max_shard_bytes: int | None = None

    def build(self) -> nn.Module:
        """The module with its tensors (copies), in evaluation mode."""
        with NoInitialisation():
            module: nn.Module = module_class(self.source, self.class_name)()
        places = module.state_dict()
        assert places.keys() == self.tensors.keys() | self.aliases.keys()
        with torch.no_grad():  # one after the other: lazy tensors are computed when they are read
            for key, place in places.items():
                place.copy_(self.tensors[self.aliases.get(key, key)])
        return module.eval()

    @property
    def contents(self) -> dict[str, bytes | Params]:
        """The source, the tensors of each weights file, and the index if there are several, by file name."""
        return {**self._sources, **shards(self.tensors, self.max_shard_bytes)}

    def files(self) -> dict[str, bytes]:
        """The source and the tensors as files, by name; the same artifact gives the same bytes."""
        return {
            name: content if isinstance(content, bytes) else b"".join(tensor_file(content))
            for name, content in self.contents.items()
        }

    def save(self, directory: Path) -> list[Path]:
        """Writes the files of `files` to `directory`, tensor by tensor."""
        contents = {directory / name: content for name, content in self.contents.items()}
        for path, content in contents.items():
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                write_tensors(path, content)
        return list(contents)

    @property
    def _sources(self) -> dict[str, bytes]:
        sources = {SOURCE_FILE: self.source.encode()}
        return sources | {path.name: path.read_bytes() for path in _kernel_files(self.source)}


def _kernel_files(source: str) -> tuple[Path, ...]:
    """The C files of the kernel that an emitted file names, all in one folder."""
    return next((files for files in _KERNELS if f'"{files[0].name}"' in source), ())


def module_class(source: str, name: str) -> type[nn.Module]:
    """The class `name` of an emitted file.

    Its instances can be pickled, copied and passed to `torch.save`: they include the source.
    """
    cls: type[nn.Module] = _definitions(source)[name]
    return cls


def restore(source: str, name: str) -> nn.Module:
    """An instance of an emitted class without state, for unpickling."""
    cls = module_class(source, name)
    return cls.__new__(cls)


@cache
def _definitions(source: str) -> Mapping[str, Any]:  # the definitions of the file
    filename = f"<fxpress module {sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    place = next((path.with_name(SOURCE_FILE) for path in _kernel_files(source)), Path(SOURCE_FILE))
    namespace: dict[str, Any] = {"__name__": "fxpress_module", "__file__": str(place)}
    exec(compile(source, filename, "exec", dont_inherit=True), namespace)
    for item in namespace.values():
        if isinstance(item, type) and item.__module__ == "fxpress_module":
            copyreg.pickle(item, partial(_reduce, source))
    return namespace


def _reduce(source: str, module: nn.Module) -> tuple[Callable[..., nn.Module], tuple[str, str], object]:
    get_state: Callable[[], object] = module.__getstate__
    return restore, (source, type(module).__name__), get_state()


class NoInitialisation(TorchFunctionMode):
    """Skips random initialisation, which costs time and would advance the user's random generator."""

    def __torch_function__(
        self,
        func: Callable[..., Any],  # any torch function
        types: Sequence[type],
        args: tuple[Any, ...] = (),  # its arguments
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # its result
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)
