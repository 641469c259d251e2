"""Where constants and submodules live in the emitted module, so that `state_dict` has the user's keys.

A constant lives under its own name, which capture takes from the user's `state_dict`. A layer lives where the
user's module was, or else where its weight is (`features.0.weight` -> `features.0`); one that fits nowhere is
written as a torch expression over its constants.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from ...ir import Graph, Node, Value
from .layers import LayerKind, layer_kind
from .names import ModuleNames, Path, split

_COUNTER = re.compile(r"_[0-9]+$")  # what a pass appends to the name of a constant that it replaces


@dataclass(frozen=True)
class Home:
    """A constant's place in the emitted module, and whether it is trained."""

    path: Path
    trainable: bool


@dataclass(frozen=True)
class Layer:
    """A submodule at `path`, with the constant of each of its tensors, by attribute."""

    path: Path
    kind: LayerKind
    constants: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Layout:
    """The emitted module's tree: a home for each constant, and the submodule of each node that has one."""

    homes: dict[str, Home]
    layers: dict[int, Layer]  # by the node's index in the graph
    names: ModuleNames = field(compare=False)

    @property
    def keys(self) -> dict[str, str]:
        """The `state_dict` key of each constant, by the constant's name."""
        return {name: self.names.state_key(home.path) for name, home in self.homes.items()}


def plan_layout(graph: Graph, *, buffers: Collection[str] = ()) -> Layout:
    """Places for all constants and layers; constants named in `buffers` are not trained."""
    kinds = [layer_kind(node) for node in graph.nodes]
    weighted = _weighted_nodes(graph, kinds)
    paths = _constant_paths(graph, weighted)
    layers = _weighted_layers(weighted, paths)
    occupied = [*paths.values(), *(layer.path for layer in layers.values())]
    layers |= _stateless_layers(graph, kinds, occupied)
    fixed = set(buffers) | {
        constants[attribute].name for _, kind, constants in weighted.values() for attribute in kind.statistics
    }
    homes = {
        value.name: Home(paths[value.name], value.type.dtype.is_floating and value.name not in fixed)
        for value in graph.constants
    }
    names = ModuleNames([*paths.values(), *(layer.path for layer in layers.values())])
    return Layout(homes, dict(sorted(layers.items())), names)


_Weighted = dict[int, tuple[Node, LayerKind, dict[str, Value]]]


def _weighted_nodes(graph: Graph, kinds: list[LayerKind | None]) -> _Weighted:
    """The nodes that could be submodules with tensors, all of which are constants."""
    found: _Weighted = {}
    for index, (node, kind) in enumerate(zip(graph.nodes, kinds, strict=True)):
        if kind is None or not kind.tensors:
            continue
        values = {attribute: node.operand(operand) for attribute, operand in kind.tensors.items()}
        constants = {
            a: value for a, value in values.items() if value is not None and graph.is_constant(value)
        }
        if len(constants) == len(values):
            found[index] = (node, kind, constants)
    return found


def _constant_paths(graph: Graph, weighted: _Weighted) -> dict[str, Path]:
    """A path for each constant: its name, without the counter of a replaced constant where the name is free."""
    paths = {value.name: split(value.name) or ("constant",) for value in graph.constants}
    claimed = {path: name for name, path in paths.items()}
    for node, _, constants in weighted.values():
        parent = split(node.source.module)
        own = {value.name for value in constants.values() if graph.use_count(value) == 1}
        counted = [
            attribute for attribute, value in constants.items() if paths[value.name] != (*parent, attribute)
        ]
        if not parent or not counted or any(value.name not in own for value in constants.values()):
            continue
        if any(_COUNTER.sub("", constants[a].name) != ".".join((*parent, a)) for a in counted):
            continue
        place = next(
            path
            for path in _variants(parent)
            if all(claimed.get((*path, a)) in (None, *own) for a in constants)
        )
        for attribute, value in constants.items():
            claimed.pop(paths[value.name], None)
            paths[value.name] = (*place, attribute)
            claimed[paths[value.name]] = value.name
    return paths


def _variants(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield (*path[:-1], f"{path[-1]}_{number}")


def _weighted_layers(weighted: _Weighted, paths: dict[str, Path]) -> dict[int, Layer]:
    """Submodules where the user's module was, or else where the weights lie, as long as nothing else lies there."""
    below = _below(paths.values())
    taken = set(paths.values())
    layers: dict[int, Layer] = {}
    placed: dict[Path, Layer] = {}
    outer: set[Path] = set()
    for index, (node, kind, constants) in weighted.items():
        names = tuple((attribute, value.name) for attribute, value in constants.items())
        homes = [paths[name][:-1] for attribute, name in names if paths[name][-1] == attribute]
        for path in (split(node.source.module), *homes):
            own = {(*path, attribute) for attribute in constants}
            free = path and path not in taken and path not in outer and below.get(path, set()) <= own
            if not free or any(prefix in placed for prefix in _prefixes(path)):
                continue
            layer = Layer(path, kind, names)
            if placed.setdefault(path, layer) == layer:
                layers[index] = layer
                outer.update(_prefixes(path))
                break
    return layers


def _stateless_layers(
    graph: Graph, kinds: list[LayerKind | None], occupied: Iterable[Path]
) -> dict[int, Layer]:
    """Activations and pools where the user had a module of that kind and nothing else."""
    constructors: dict[Path, set[str]] = {}
    for node, kind in zip(graph.nodes, kinds, strict=True):
        text = "" if kind is None or kind.tensors else kind.constructor
        constructors.setdefault(split(node.source.module), set()).add(text)
    outer = {prefix for path in (*constructors, *occupied) for prefix in _prefixes(path)}
    inside = set(occupied)
    layers: dict[int, Layer] = {}
    for index, (node, kind) in enumerate(zip(graph.nodes, kinds, strict=True)):
        path = split(node.source.module)
        if kind is None or kind.tensors or not path or len(constructors[path]) > 1:
            continue
        if path in outer or path in inside or any(prefix in inside for prefix in _prefixes(path)):
            continue
        if node.operands[0].type.real().dtype.is_floating:
            layers[index] = Layer(path, kind)
    return layers


def _below(paths: Iterable[Path]) -> dict[Path, set[Path]]:
    below: dict[Path, set[Path]] = {}
    for path in paths:
        for prefix in _prefixes(path):
            below.setdefault(prefix, set()).add(path)
    return below


def _prefixes(path: Path) -> Iterator[Path]:
    """The proper, non-empty prefixes."""
    return (path[:i] for i in range(1, len(path)))
