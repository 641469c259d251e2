"""Checks of the files that a spec names: existence and contents. Nothing is imported."""

import ast
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from .data import Dataset, Evaluation
from .errors import Problem, near_miss, quoted
from .model import MEMORY, ArrayOrigin, FileSource, ModuleSource
from .model_folder import CONFIG_FILE, FolderSource
from .options import PassOptions
from .paths import format_path
from .section import Section, is_file
from .spec import Spec
from .tree import Location, Node, place_of

_Fault = tuple[str, Location, str, str]
_DYNAMIC = ("globals", "exec", "setattr", "__getattr__")


def named_files(section: Section) -> Iterator[Path]:
    """Paths of all files that a section names, at any depth."""
    for _, value in section:
        yield from _paths(value)


def _paths(value: object) -> Iterator[Path]:
    match value:
        case Path():
            yield value
        case FileSource():
            yield value.path
        case FolderSource():
            yield from value.files
        case Section():
            yield from named_files(value)
        case Mapping():
            yield from chain.from_iterable(map(_paths, value.values()))
        case tuple():
            yield from chain.from_iterable(map(_paths, value))


def check_files(spec: Spec, root: Node) -> list[Problem]:
    """Problems for missing files, and for attributes and arrays that a file does not contain."""
    found = [*_source(spec.model.source, ("model", "source")), *_weights(spec)]
    for key, dataset in (("calibration", spec.data.calibration), ("evaluation", spec.data.evaluation)):
        if dataset is not None:
            found += _dataset(("data", key), dataset, list(spec.model.fed))
    for index, options in enumerate(spec.passes):
        found += _option_files(options, ("passes", index))
    return _located(found, root)


def check_source(spec: Spec, root: Node) -> list[Problem]:
    """Problems if the file of the model does not exist or does not contain the attribute that the spec names."""
    return _located(_source(spec.model.source, ("model", "source")), root)


def _located(faults: Iterable[_Fault], root: Node) -> list[Problem]:
    return [
        Problem(code, place_of(root, location), f"{format_path(location)}: {message}", hint)
        for code, location, message, hint in faults
    ]


def _option_files(section: Section, location: Location) -> Iterator[_Fault]:
    """A problem for each file that options read, also those of options inside, and that is not there."""
    for inside, file in _files_read(section, location):
        if isinstance(file, FileSource):
            yield from _source(file, inside)
        elif not is_file(file):
            yield _missing(inside, file)


def files_of_passes(spec: Spec) -> Iterator[tuple[str, Path]]:
    """The files that passes read, each with the path of its option, such as `passes[1].plan`."""
    for index, options in enumerate(spec.passes):
        for location, file in _files_read(options, ("passes", index)):
            yield format_path(location), file.path if isinstance(file, FileSource) else file


def _files_read(section: Section, location: Location) -> Iterator[tuple[Location, Path | FileSource]]:
    """The files that options name, also those of options inside, but for those that a pass writes."""
    written = section.written if isinstance(section, PassOptions) else frozenset[str]()
    for name, value in section:
        inside = (*location, name)
        if isinstance(value, FileSource) or (isinstance(value, Path) and name not in written):
            yield inside, value
        elif isinstance(value, Section):
            yield from _files_read(value, inside)


def _missing(location: Location, path: Path) -> _Fault:
    if os.path.isdir(path):
        return "S311", location, f"{quoted(str(path))} is a directory, not a file", "name a file in it"
    beside = (
        [p.name for p in path.parent.iterdir() if p.suffix == path.suffix] if path.parent.is_dir() else []
    )
    near = near_miss(path.name, sorted(beside)) if beside else ""
    return (
        "S311",
        location,
        f"file not found: {quoted(str(path))}",
        near or "paths are relative to the file they are written in",
    )


def _folder(source: FolderSource, location: Location) -> Iterator[_Fault]:
    hint = "name a local folder with config.json and safetensors files; nothing is downloaded"
    if not source.path.is_dir():
        yield "S311", location, f"folder not found: {quoted(str(source.path))}", hint
    elif not is_file(source.path / CONFIG_FILE):
        yield "S312", location, f"the folder {quoted(str(source.path))} has no {CONFIG_FILE}", hint


def _source(source: ArrayOrigin | FolderSource, location: Location) -> Iterator[_Fault]:
    if isinstance(source, FolderSource):
        yield from _folder(source, location)
    if isinstance(source, ModuleSource) and source.module == MEMORY:
        hint = "`Compiled.write_spec` writes a spec and saves such arrays as files"
        yield "S311", location, f"{source} is an array in the memory of a Python program", hint
    if not isinstance(source, FileSource):
        return
    if not is_file(source.path):
        yield _missing(location, source.path)
        return
    try:
        names = _names(source.path)
    except (SyntaxError, ValueError, RecursionError, OSError) as err:
        line = f" in line {err.lineno}" if isinstance(err, SyntaxError) else ""
        reason = err.msg if isinstance(err, SyntaxError) else str(err)
        yield "S312", location, f"{source.path} cannot be read as Python{line}: {reason}", "correct the file"
        return
    first = source.attribute.partition(".")[0]
    if names is not None and first not in names:
        public = [name for name in names if not name.startswith("_")]
        yield (
            "S312",
            location,
            f"{source.path.name} does not define {quoted(first)}",
            near_miss(first, public),
        )


def _names(path: Path) -> list[str] | None:
    """The names that a Python file defines or imports; None if they cannot be determined statically."""
    tree = ast.parse(path.read_bytes())
    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Name(id=name) if isinstance(node.ctx, ast.Store):
                names.append(name)
            case ast.alias(name=name, asname=other):
                names.append(other or name.partition(".")[0])
            case ast.Name(id=name) if name in _DYNAMIC:
                return None
    return None if "*" in names or "__getattr__" in names else list(dict.fromkeys(names))


def _weights(spec: Spec) -> Iterator[_Fault]:
    weights = spec.model.weights
    if weights is not None and not is_file(weights):
        yield _missing(("model", "weights"), weights)


def _dataset(location: Location, dataset: Dataset, inputs: list[str]) -> Iterator[_Fault]:
    if isinstance(dataset, Evaluation) and isinstance(dataset.metric, FileSource):
        yield from _source(dataset.metric, (*location, "metric"))
    if dataset.file is None:
        yield from _source(dataset.origin, (*location, "source"))
        return
    if not is_file(dataset.file):
        yield _missing((*location, "file"), dataset.file)
        return
    try:
        with zipfile.ZipFile(dataset.file) as archive:
            arrays = [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as err:
        yield (
            "S312",
            (*location, "file"),
            f"{dataset.file} is not an npz file: {err}",
            "write it with numpy.savez",
        )
        return
    wanted: list[tuple[Location, str]] = [
        ((*location, "inputs", name), dataset.array(name)) for name in inputs
    ]
    wanted += [((*location, "labels"), dataset.labels)] if dataset.labels else []
    for where, array in wanted:
        if array not in arrays:
            message = f"{dataset.file.name} has no array {quoted(array)}"
            yield "S312", where, message, near_miss(array, arrays)
