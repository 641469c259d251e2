"""The emitted file: one class with `__init__`, which builds submodules under the user's names, and `forward`."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir import Graph, Value
from .forward import Style, write_forward
from .layout import Layout
from .names import Path, is_number
from .record import literal

_HEADER = '''"""{name}, written by fxpress.

    model = {name}()
    safetensors.torch.load_model(model, "{weights}")
    model.eval()
"""

import torch
import torch.nn.functional as F
from torch import nn
'''


def write_source(
    graph: Graph,
    layout: Layout,
    style: Style,
    *,
    name: str,
    weights: str,
    prelude: Mapping[str, str] | None = None,
) -> str:
    """Python source of the class `name`.

    `prelude` holds the source of what it needs beside torch, by name; `weights` names the file of its tensors.
    """
    helpers = prelude or {}
    arguments, statements = write_forward(graph, layout, style, reserved={name, *helpers})
    base = "nn.ModuleDict" if layout.names.is_indexed(()) else "nn.Module"
    lines = [
        f"class {name}({base}):",
        "    def __init__(self) -> None:",
        "        super().__init__()",
        *(f"        {line}" for line in _construction(graph, layout)),
        "",
        f"    def forward({', '.join(['self', *arguments])}):",
        *(f"        {line}" for line in statements),
    ]
    parts = [_HEADER.format(name=name, weights=weights), *helpers.values(), "\n".join(lines)]
    return "\n\n\n".join(part.strip() for part in parts) + "\n"


def _construction(graph: Graph, layout: Layout) -> list[str]:
    """Statements of `__init__`: layers in the order of their use, free constants, then ties."""
    tree = _Tree(layout)
    ties: dict[str, str] = {}
    owned: set[str] = set()
    for path, layer in {layer.path: layer for layer in layout.layers.values()}.items():
        tree.assign(path, layer.kind.constructor)
        for attribute, constant in layer.constants:
            home = layout.homes[constant].path
            if home == (*path, attribute):
                owned.add(constant)
            else:
                ties[layout.names.expression((*path, attribute))] = layout.names.expression(home)
    for value in graph.constants:
        if value.name not in owned:
            tree.add_constant(value)
    return [*tree.lines, *(f"{tied} = {owner}" for tied, owner in ties.items())]


class _Tree:
    """Collects the statements that build the tree of modules, parents first."""

    def __init__(self, layout: Layout) -> None:
        self.lines: list[str] = []
        self._layout = layout
        self._built: set[Path] = {()}

    def assign(self, path: Path, constructor: str) -> None:
        """A submodule or parameter at `path`."""
        self._build_parents(path)
        self._built.add(path)
        self.lines.append(f"{self._layout.names.expression(path)} = {constructor}")

    def add_constant(self, value: Value) -> None:
        """A parameter or buffer of zeros, to be loaded."""
        home = self._layout.homes[value.name]
        dtype = value.type.dtype.torch
        zeros = f"torch.zeros({literal(value.type.shape)}, dtype={dtype})"
        if home.trainable and not is_number(home.path[-1]):
            self.assign(home.path, f"nn.Parameter({zeros})")
            return
        self._build_parents(home.path)
        owner, key = self._layout.names.expression(home.path[:-1]), self._layout.names.clean(home.path)[-1]
        register = (
            f"register_parameter({key!r}, nn.Parameter({zeros}))"
            if home.trainable
            else f"register_buffer({key!r}, {zeros})"
        )
        self.lines.append(f"{owner}.{register}")

    def _build_parents(self, path: Path) -> None:
        for end in range(1, len(path)):
            parent = path[:end]
            if parent not in self._built:
                self._built.add(parent)
                kind = "nn.ModuleDict" if self._layout.names.is_indexed(parent) else "nn.Module"
                self.lines.append(f"{self._layout.names.expression(parent)} = {kind}()")
