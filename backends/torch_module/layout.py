"""Attribute paths of constants and submodules in the emitted module; `state_dict` has the user's keys.

The path of a constant is its own name, which capture takes from the user's `state_dict`. The path of a layer is that
of the user's module, or else that of its weight (`features.0.weight` -> `features.0`); a layer without a free path is
written as a torch expression over its constants.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from ...ir import Graph, Node, Value
from .layers import LayerKind
from .names import ModuleNames, Path, split
from .style import Style

_COUNTER = re.compile(r"_[0-9]+$")  # suffix that a pass appends to the name of a constant that it replaces


@dataclass(frozen=True)
class Home:
    """A constant's path in the emitted module, and whether it is trained."""

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
    """The tree of the emitted module: a path for each constant, and the submodule of each node that has one."""

    homes: dict[str, Home]
    layers: dict[int, Layer]  # by the node's index in the graph
    names: ModuleNames = field(compare=False)

    @property
    def keys(self) -> dict[str, str]:
        """The `state_dict` key of each constant, by the constant's name."""
        return {name: self.names.state_key(home.path) for name, home in self.homes.items()}

    @property
    def integer_weights(self) -> dict[str, tuple[Path, str]]:
        """The constants that layers store as integers, each with the path of such a layer and its attribute."""
        return {
            name: (layer.path, attribute)
            for layer in self.layers.values()
            for attribute, name in layer.constants
            if layer.kind.keeps_integers(attribute)
        }

    @property
    def packed_weights(self) -> frozenset[str]:
        """The constants that separate submodules store, below 8 bits several in a byte."""
        held = [layer for layer in self.layers.values() if layer.kind.is_held]
        return frozenset(name for layer in held for _, name in layer.constants)


def plan_layout(graph: Graph, style: Style, *, buffers: Collection[str] = ()) -> Layout:
    """Paths for all constants and layers of a form; constants named in `buffers` are not trained."""
    kinds = [style.kind(node) for node in graph.nodes]
    weighted = _weighted_nodes(graph, kinds)
    paths = _constant_paths(graph, weighted)
    layers = _weighted_layers(weighted, paths)
    occupied = [*paths.values(), *(layer.path for layer in layers.values())]
    layers |= _stateless_layers(graph, kinds, occupied)
    fixed = set(buffers) | {
        constants[attribute].name for _, kind, constants in weighted.values() for attribute in kind.statistics
    }
    trained = {v.name for v in graph.constants if v.type.dtype.is_floating} | _parameters(layers.values())
    homes = {v.name: Home(paths[v.name], v.name in trained - fixed) for v in graph.constants}
    names = ModuleNames([*paths.values(), *(layer.path for layer in layers.values()), *style.buffers])
    return Layout(homes, dict(sorted(layers.items())), names)


def _parameters(layers: Iterable[Layer]) -> set[str]:
    """The constants that submodules store as parameters, independent of the integers that they come from."""
    return {
        name
        for layer in layers
        for attribute, name in layer.constants
        if layer.kind.holds_parameter(attribute)
    }


_Weighted = dict[int, tuple[Node, LayerKind, dict[str, Value]]]


def _weighted_nodes(graph: Graph, kinds: list[LayerKind | None]) -> _Weighted:
    """The nodes that could be submodules with tensors, all of which are constants."""
    found: _Weighted = {}
    for index, (node, kind) in enumerate(zip(graph.nodes, kinds, strict=True)):
        if kind is None or not kind.tensors:
            continue
        values = {attribute: node.optional(operand) for attribute, operand in kind.tensors.items()}
        constants = {
            a: value for a, value in values.items() if value is not None and graph.is_constant(value)
        }
        if len(constants) == len(values):
            found[index] = (node, kind, constants)
    return found


def _constant_paths(graph: Graph, weighted: _Weighted) -> dict[str, Path]:
    """A path for each constant: its name, without the counter of a replaced constant if that name is free."""
    held = {
        value.name: attribute
        for _, kind, constants in weighted.values()
        if kind.is_held
        for attribute, value in constants.items()
    }
    paths = _distinct_paths(
        {v.name: (*v.name.split("."), *held.get(v.name, "").split()) for v in graph.constants}
    )
    for node, kind, constants in weighted.values():
        parent = () if kind.is_held else split(node.source.module)
        counted = {
            value.name: attribute
            for attribute, value in constants.items()
            if graph.use_count(value) == 1 and paths[value.name] != (*parent, attribute)
        }
        if not parent or not counted:
            continue
        if any(_COUNTER.sub("", name) != ".".join((*parent, counted[name])) for name in counted):
            continue
        others = {path: name for name, path in paths.items() if name not in counted}
        wished = {value.name: attribute for attribute, value in constants.items()}
        place = next(place for place in _variants(parent) if _accepts(place, wished, others))
        paths |= {name: (*place, attribute) for name, attribute in counted.items()}
    return paths


def _accepts(place: Path, wished: Mapping[str, str], others: Mapping[Path, str]) -> bool:
    """True if constants can be at their requested attributes of `place`, in addition to `others`."""
    if any(prefix in others for prefix in (*_prefixes(place), place)):
        return False
    return all(others.get((*place, attribute)) in (None, name) for name, attribute in wished.items())


def _distinct_paths(wished: Mapping[str, Path]) -> dict[str, Path]:
    """The requested paths; a path that is a parent of another, or taken, is replaced by one next to it."""
    outer = {prefix for path in wished.values() for prefix in _prefixes(path)}
    taken = set(outer)
    distinct: dict[str, Path] = {}
    for name, path in sorted(wished.items(), key=lambda item: item[1] in outer):
        distinct[name] = next(variant for variant in _variants(path) if variant not in taken)
        taken.add(distinct[name])
    return distinct


def _variants(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield (*path[:-1], f"{path[-1]}_{number}")


class _Places:
    """Owners of attribute paths: constants and submodules."""

    def __init__(self, constants: Mapping[str, Path]) -> None:
        self._owners = {path: name for name, path in constants.items()}
        self._below = _below(self._owners)
        self._outer: set[Path] = set()
        self._placed: dict[Path, Layer] = {}

    def is_free(self, layer: Layer) -> bool:
        """True if the submodule can be at its path: only its own constants are there, each at its attribute."""
        path = layer.path
        own = {(*path, attribute): name for attribute, name in layer.constants}
        inside = any(prefix in self._placed for prefix in _prefixes(path))
        alone = path not in self._owners and path not in self._outer and not inside
        return bool(path) and alone and all(own.get(p) == self._owners[p] for p in self._below.get(path, ()))

    def place(self, layer: Layer) -> Layer:
        """The layer at its path, or next to it if a different layer is there (one that differs not only in its
        operand).
        """
        for path in _variants(layer.path):
            moved = replace(layer, path=path)
            if self.is_free(moved) and self._placed.setdefault(path, moved) == moved:
                self._outer.update(_prefixes(path))
                return moved
        raise AssertionError("an unused name always exists")


def _weighted_layers(weighted: _Weighted, paths: dict[str, Path]) -> dict[int, Layer]:
    """Submodules at the paths of the user's modules, or else of the weights, unless other constants are there.

    A layer that stores integers always has a path, if need be next to its weight; only such a layer is tied to
    integers.
    """
    places = _Places(paths)
    layers: dict[int, Layer] = {}
    integer: set[str] = set()
    for index, (node, kind, constants) in sorted(
        weighted.items(), key=lambda item: not item[1][1].has_integers
    ):
        names = tuple((attribute, value.name) for attribute, value in constants.items())
        if not kind.has_integers and integer.intersection(name for _, name in names):
            continue
        homes = [paths[name][:-1] for attribute, name in names if paths[name][-1] == attribute]
        wished = homes if kind.is_held else [split(node.source.module), *homes]
        candidates = [Layer(path, kind, names) for path in wished]
        free = [layer for layer in candidates if places.is_free(layer)]
        if kind.has_integers:
            integer.update(name for attribute, name in names if kind.keeps_integers(attribute))
            free.append(Layer(paths[names[0][1]], kind, names))
        if free:
            layers[index] = places.place(free[0])
    return layers


def _stateless_layers(
    graph: Graph, kinds: list[LayerKind | None], occupied: Iterable[Path]
) -> dict[int, Layer]:
    """Activations and pools at the paths of the user's modules of that kind, if nothing else is there."""
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
