"""Loading of a spec: base specs, overrides, types, pass order, target, cross-section checks.

All steps work on the tree of nodes, which keeps the position of each value. All problems of a spec are raised
together, sorted by position.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from types import NoneType
from typing import Any

from pydantic import ValidationError

from .diagnosis import diagnose
from .errors import Place, Problem, SpecError, near_miss, quoted
from .files import check_files, check_source, files_of_passes, named_files
from .fitting import check_fit
from .order import check_order
from .overrides import OVERRIDES, apply_overrides
from .paths import format_path, parse_path
from .plugins import TARGETS as TARGETS_OF_PACKAGES
from .plugins import PluginError
from .reader import Reading, read_file, read_text
from .root_error import expect
from .section import Section, is_file, resolve
from .selectors import layer_matches, unmatched_pattern
from .spec import Spec
from .target import CORES, Target, TargetChoice, is_target_file
from .target import FOLDER as TARGETS
from .tree import LocatedText, Location, Mapping, Node, Scalar, find, key_place, merge, plain
from .write import flow_text

PRESETS = Path(__file__).parent / "presets"
"""Folder of the presets that are part of fxpress."""

_PRESET_PREFIX = "preset/"
_PROJECT_MARKS = ("pyproject.toml", ".git")


@dataclass(frozen=True)
class Origin:
    """Origin of a value: position in a file or in an override; None for a default."""

    place: Place | None

    def __str__(self) -> str:
        return str(self.place) if self.place else "default"


@dataclass(frozen=True)
class Setting:
    """One value of a spec with its path, origin and meaning; `text` is the value as YAML."""

    path: str
    value: Any  # any: a value of the type of its field
    text: str
    origin: Origin
    description: str


@dataclass(frozen=True)
class Loaded:
    """A valid spec, its target, and the origin of every value.

    `files` are the files that were read: the spec, its base specs, and the user's target file.
    """

    spec: Spec
    target: Target
    path: Path
    files: tuple[Path, ...]
    root: Mapping

    def read_files(self) -> tuple[Path, ...]:
        """Files that were read or that the spec names; a compilation must not overwrite them."""
        return (*self.files, *named_files(self.spec))

    def pass_files(self) -> Iterator[tuple[str, Path]]:
        """Files that passes read, each with the path of its option, such as `passes[1].plan`."""
        return files_of_passes(self.spec)

    def settings(self) -> Iterator[Setting]:
        """All values of the spec in order, with defaults."""
        return _settings(self.spec, self.spec.model_dump(mode="json", by_alias=True), (), self.root)

    def origin(self, path: str) -> Origin:
        """Origin of the value at a path such as `passes[1].samples`; SpecError if the path does not exist."""
        location = parse_path(path)
        node = find(self.root, location) if location else None
        if node is not None:
            return Origin(node.place)
        known = [setting.path for setting in self.settings()]
        if path in known:
            return Origin(None)
        raise SpecError(
            [Problem("S132", None, f"{quoted(path)} is not a key of the spec", near_miss(path, known))]
        )

    def canonical_text(self) -> str:
        """Spec and target as JSON, defaults written out, paths relative to the spec: equal for equal meanings."""
        context = {"folder": str(Path(os.path.realpath(self.path)).parent)}
        spec = self.spec.model_dump(mode="json", by_alias=True, context=context, exclude={"extends"})
        return json.dumps({"spec": spec, "target": self.target.model_dump(mode="json")}, indent=1)

    def with_overrides(self, overrides: Iterable[str]) -> "Loaded":
        """The spec with further overrides applied; SpecError with all problems."""
        return _loaded(self.path, self.root, self.files, [], overrides)

    def check_source(self) -> None:
        """SpecError if the file of the model does not exist, or does not contain the attribute that the spec names."""
        problems = check_source(self.spec, self.root)
        if problems:
            raise SpecError(problems)

    def check_layers(self, names: Iterable[str]) -> None:
        """SpecError for every layer pattern of the spec that matches no layer of the model."""
        names = tuple(names)
        problems = []
        for index, step in enumerate(self.spec.passes):
            for inside, pattern in step.layer_patterns():
                location = ("passes", index, *inside)
                if not any(layer_matches(pattern, name) for name in names):
                    setting, place = format_path(location), key_place(self.root, location)
                    problems.append(unmatched_pattern(pattern, names, place, setting=setting))
        if problems:
            raise SpecError(problems)


def load_spec(path: str | Path, overrides: Iterable[str] = (), *, overrides_name: str = OVERRIDES) -> Loaded:
    """The spec of a file, with overrides such as `passes[1].samples=64` applied; SpecError with all problems.

    Files that the spec names need not exist; `check_spec` checks them. Messages show `overrides_name` for overrides.
    """
    expect(path, (str, Path), "load_spec(path)", "the path of a spec file")
    path = Path(path)
    root, files, problems = _read_chain(path)
    return _loaded(path, root, files, problems, overrides, overrides_name)


def _loaded(
    path: Path,
    root: Mapping,
    files: Iterable[Path],
    problems: list[Problem],
    overrides: Iterable[str],
    overrides_name: str = OVERRIDES,
) -> Loaded:
    """The spec of a tree, with overrides applied."""
    root, unusable = apply_overrides(root, overrides, name=overrides_name)
    unread = {problem.place for problem in (*problems, *unusable)}
    spec, invalid = _validated(root)
    target, target_files, no_target = _target_of(root, spec)
    problems += [*unusable, *(p for p in invalid if p.place not in unread), *check_order(root), *no_target]
    if spec and target and not problems:
        problems = check_fit(spec, target, root)
    if problems or spec is None or target is None:
        raise SpecError(problems)
    return Loaded(spec, target, path, tuple(dict.fromkeys((*files, *target_files))), root)


def parse_spec(text: str, path: str | Path, overrides: Iterable[str] = ()) -> Loaded:
    """The spec of a text, with the same result as `load_spec`; relative paths and messages use `path` as its file."""
    expect(text, str, "parse_spec(text, path)", "the text of a spec")
    expect(path, (str, Path), "parse_spec(text, path)", "the path of a spec file")
    path = Path(path)
    root, files, problems = _read_chain(path, text)
    return _loaded(path, root, files[1:], problems, overrides)


def check_spec(path: str | Path, overrides: Iterable[str] = (), *, overrides_name: str = OVERRIDES) -> Loaded:
    """The spec, loaded as by `load_spec`, after a check of the files that it names."""
    loaded = load_spec(path, overrides, overrides_name=overrides_name)
    problems = check_files(loaded.spec, loaded.root)
    if problems:
        raise SpecError(problems)
    return loaded


def load_target(name: str | Path, choice: TargetChoice | None = None) -> Target:
    """A target by name or by the path of its file, with the overrides of `choice`."""
    expect(name, (str, Path), "load_target(name)", "the name of a target or the path of its file")
    expect(choice, (TargetChoice, NoneType), "load_target(name, choice)", "a `TargetChoice`")
    target, _, problems = _read_target(str(name), None)
    if target is None:
        raise SpecError(problems)
    return choice.applied_to(target) if choice else target


def list_presets() -> tuple[str, ...]:
    """Names of the presets of fxpress, as written in `extends`."""
    return tuple(sorted(_PRESET_PREFIX + path.stem for path in PRESETS.glob("*.yaml")))


def _read_chain(path: Path, text: str | None = None) -> tuple[Mapping, list[Path], list[Problem]]:
    """Tree of a spec merged over its base specs, their files, and the problems that did not stop reading.

    `text`, if given, replaces the content of the file at `path`.
    """
    trees: list[Mapping] = []
    files: list[Path] = []
    problems: list[Problem] = []
    project = _project_folder(path)
    following: Path | None = path
    while following is not None:
        try:
            if text is not None and not trees:
                reading = read_text(text, name=path.name, folder=path.parent)
            else:
                reading = read_file(following, name=_shown(following, path))
            tree = _mapping(reading)
        except SpecError as err:
            raise SpecError([*problems, *err.problems]) from err
        trees.append(tree)
        files.append(following)
        problems += reading.problems
        try:
            following = _base_of(tree, files, project)
        except SpecError as err:
            problems += err.problems
            following = None
    return reduce(_merged, reversed(trees)), files, problems


def _merged(base: Mapping, top: Mapping) -> Mapping:
    merged = merge(base, top)
    assert isinstance(merged, Mapping)
    return merged


def _mapping(reading: Reading) -> Mapping:
    if isinstance(reading.root, Mapping):
        return reading.root
    problem = Problem("S113", reading.root.place, "does not hold a mapping", "write `key: value` lines")
    raise SpecError([*reading.problems, problem])


def _base_of(tree: Mapping, files: list[Path], project: Path) -> Path | None:
    """The file named by `extends`; None if the tree extends no file."""
    node = find(tree, ("extends",))
    if not isinstance(node, Scalar) or not isinstance(node.value, str) or "\0" in node.value:
        return None
    name = node.value.removeprefix(_PRESET_PREFIX)
    if name != node.value:
        if node.value not in list_presets():
            hint = near_miss(node.value, list_presets())
            raise SpecError([Problem("S122", node.place, f"extends: unknown preset {quoted(name)}", hint)])
        return PRESETS / f"{name}.yaml"
    base = resolve(node.value, folder_of=LocatedText.written_in(node.folder, node.value))
    real = Path(os.path.realpath(base))
    if not real.is_relative_to(project) and not real.is_relative_to(PRESETS):
        hint = f"the project is the folder {project}; move the file into it"
        raise SpecError(
            [Problem("S123", node.place, f"extends: {quoted(node.value)} is outside the project", hint)]
        )
    if real in [Path(os.path.realpath(file)) for file in files]:
        circle = " -> ".join(file.name for file in (*files, base))
        raise SpecError(
            [Problem("S121", node.place, f"extends: a cycle, {circle}", "remove one of the links")]
        )
    if not is_file(base):
        hint = f"known presets are {', '.join(list_presets())}"
        raise SpecError([Problem("S122", node.place, f"extends: file not found: {quoted(node.value)}", hint)])
    return base


def _project_folder(path: Path) -> Path:
    """The nearest folder above the spec that is marked as a project; the folder of the spec if there is none."""
    own = Path(os.path.realpath(path)).parent
    return next(
        (f for f in (own, *own.parents) if any(os.path.exists(f / mark) for mark in _PROJECT_MARKS)), own
    )


def _shown(path: Path, spec: Path) -> str:
    """Name of the file in messages: as the user wrote it, or the shortest path."""
    if path.parent == PRESETS:
        return _PRESET_PREFIX + path.stem
    if path == spec:
        return str(path)
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _validated(root: Mapping) -> tuple[Spec | None, list[Problem]]:
    try:
        return Spec.model_validate(plain(root)), []
    except ValidationError as err:
        return None, diagnose(err, root, Spec)


def _target_of(root: Mapping, spec: Spec | None) -> tuple[Target | None, list[Path], list[Problem]]:
    """The target of the tree, with overrides of the spec; the user's target file, if any."""
    node = find(root, ("target", "name"))
    name = node.value if isinstance(node, Scalar) and isinstance(node.value, str) else TargetChoice().name
    located = LocatedText.written_in(node.folder, name) if isinstance(node, Scalar) else name
    target, files, problems = _read_target(located, node.place if node else None)
    if target and spec:
        target = spec.target.applied_to(target)
    return target, files, problems


def _read_target(name: str, place: Place | None) -> tuple[Target | None, list[Path], list[Problem]]:
    """The target of a name or a user's file, merged over its core, and the user's files that were read."""
    root, files, problems = _target_tree(name, place, _TARGET)
    node = find(root, ("core",)) if root else None
    if root and isinstance(node, Scalar) and isinstance(node.value, str):
        located = LocatedText.written_in(node.folder, node.value)
        core, core_files, faults = _target_tree(located, node.place, _CORE)
        problems += faults
        files += core_files
        root = _merged(_without_install(core, root), root) if core else None
    if root is None:
        return None, files, problems
    try:
        return Target.model_validate(plain(root)), files, problems
    except ValidationError as err:
        return None, files, [*problems, *diagnose(err, root, Target)]


def _without_install(core: Mapping, root: Mapping) -> Mapping:
    """The core without its installation hint if the target file names another compiler."""
    toolchain = find(core, ("toolchain",))
    if find(root, ("toolchain", "commands")) is None or not isinstance(toolchain, Mapping):
        return core
    entry = replace(core.entries["toolchain"], node=toolchain.without("install"))
    return replace(core, entries=core.entries | {"toolchain": entry})


@dataclass(frozen=True)
class _Shelf:
    """Folder of built-in files of one kind: targets or cores."""

    folder: Path
    key: str
    noun: str


_TARGET, _CORE = _Shelf(TARGETS, "target.name", "target"), _Shelf(CORES, "core", "core")


def _target_tree(
    name: str, place: Place | None, shelf: _Shelf
) -> tuple[Mapping | None, list[Path], list[Problem]]:
    if shelf is _TARGET and name in TARGETS_OF_PACKAGES.names():
        try:
            name = str(TARGETS_OF_PACKAGES.load(name))
        except PluginError as err:
            return (
                None,
                [],
                [Problem("S210", place, f"{shelf.key}: {err.message}", "repair or remove the package")],
            )
    of_user, known = is_target_file(name), sorted(path.stem for path in shelf.folder.glob("*.yaml"))
    if not of_user and name not in known:
        known += TARGETS_OF_PACKAGES.names() if shelf is _TARGET else ()
        fact = f"{shelf.key}: unknown {shelf.noun} {quoted(name)}"
        return None, [], [Problem("S309", place, fact, near_miss(name, known))]
    path = resolve(name, folder_of=name) if of_user else shelf.folder / f"{name}.yaml"
    files = [path] if of_user else []
    if not is_file(path):
        message = f"{shelf.key}: file not found: {quoted(name)}"
        return None, files, [Problem("S311", place, message, f"known {shelf.noun}s are {', '.join(known)}")]
    try:
        reading = read_file(path, name=_shown(path, path) if of_user else f"{shelf.noun}/{name}")
        return _mapping(reading), files, list(reading.problems)
    except SpecError as err:
        return None, files, list(err.problems)


def _settings(
    value: Any, dumped: Any, location: Location, root: Node, description: str = ""
) -> Iterator[Setting]:
    """Settings below a section, a mapping or a list, each with its JSON form; any: values of all types."""
    children: list[tuple[str | int, Any, str]]  # any: as above
    if isinstance(value, Section):
        fields = type(value).model_fields.items()
        children = [(f.alias or name, getattr(value, name), f.description or "") for name, f in fields]
    elif isinstance(value, dict) and value:
        children = [(key, item, description) for key, item in value.items()]
    elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
        children = [(index, item, description) for index, item in enumerate(value)]
    else:
        node = find(root, location)
        origin = Origin(node.place if node else None)
        yield Setting(format_path(location), value, flow_text(dumped), origin, description)
        return
    for step, item, about in children:
        yield from _settings(item, dumped[step], (*location, step), root, about)
