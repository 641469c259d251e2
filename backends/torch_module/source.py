"""The emitted file: one class with `__init__`, which builds submodules under the user's names, and `forward`."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from types import ModuleType

from torch import Tensor

from ...ir import Graph, Value
from ...ir.tensor_files import INDEX_FILE, WEIGHTS_FILE
from . import prelude_shards
from .forward import write_forward
from .functions import function_sources
from .layout import Layer, Layout
from .literal import literal
from .names import Path, identifier, is_number, unique
from .shapes import check_source
from .style import Style

_WORD = re.compile(r"\w+")
_FUNCTIONAL = re.compile(r"\bF\.")
_THIRD_PARTY = re.compile("torch|safetensors")
_HEADER = '''"""{name}, written by fxpress.

    {imports}

    model = {name}()
    {load}
    model.eval()
    with torch.no_grad():
        {results} = model({arguments})
{remark}"""
'''
_IN_PLACE = """
The call writes to {names}, whose memory the results of these names share.
"""


def write_source(
    graph: Graph,
    layout: Layout,
    style: Style,
    *,
    name: str,
    is_sharded: bool,
    updated: frozenset[str] = frozenset(),
) -> str:
    """Python source of the class `name`, with a function that loads its tensors if they are in several files.

    `updated` are values that take the memory of an argument.
    """
    preludes = (*style.preludes, prelude_shards) if is_sharded else style.preludes
    helpers = _definitions(preludes)
    arguments, statements = write_forward(graph, layout, style, reserved={name, *helpers}, updated=updated)
    base = "nn.ModuleDict" if layout.names.is_indexed(()) else "nn.Module"
    body = "\n".join(
        [
            f"class {name}({base}):",
            "    def __init__(self) -> None:",
            "        super().__init__()",
            *(f"        {line}" for line in _construction(graph, layout, style)),
            "",
            f"    def forward({', '.join(['self', *arguments])}):",
            *(f"        {line}" for line in statements),
        ]
    )
    results = ", ".join(_result_names(graph)) or "()"
    loader = prelude_shards.load_shards.__name__ if is_sharded else "safetensors.torch.load_model"
    header = _HEADER.format(
        name=name,
        imports="import torch" if is_sharded else "import safetensors.torch\n    import torch",
        load=f'{loader}(model, "{INDEX_FILE if is_sharded else WEIGHTS_FILE}")',
        results=results,
        arguments=", ".join(arguments),
        remark=_IN_PLACE.format(names=_written(graph, updated)) if updated else "",
    )
    parts = [
        "\n".join([header, *_imports(style, preludes, body)]),
        *_needed(helpers, f"{loader}\n{body}"),
        body,
    ]
    return "\n\n\n".join(part.strip() for part in parts) + "\n"


def _written(graph: Graph, updated: frozenset[str]) -> str:
    """The arguments that the module writes to."""
    written = [graph.producers[name].operand("x").name for name in sorted(updated)]
    return ", ".join(value.name for value in graph.inputs if value.name in written)


def _result_names(graph: Graph) -> list[str]:
    """The names of outputs as variables, in their order."""
    names: list[str] = []
    for name in graph.output_names:
        names.append(unique(identifier(name, fallback="output"), names))
    return names


def _definitions(preludes: Sequence[ModuleType]) -> dict[str, str]:
    """The source of operators' functions and of the preludes' definitions, by name; the last one of a name takes
    precedence.
    """
    sources = function_sources() | check_source()
    for prelude in preludes:
        own = {
            name: item
            for name, item in vars(prelude).items()
            if getattr(item, "__module__", "") == prelude.__name__
        }
        sources |= {name: inspect.getsource(item) for name, item in own.items()}
    return sources


def _imports(style: Style, preludes: Sequence[ModuleType], body: str) -> list[str]:
    lines = set() if style.preludes else {"import torch", "from torch import nn"}
    for prelude in preludes:
        for item in ast.parse(inspect.getsource(prelude)).body:
            is_own = isinstance(item, ast.ImportFrom) and item.level > 0
            if isinstance(item, ast.Import | ast.ImportFrom) and not is_own:
                lines.add(ast.unparse(item))
    if _FUNCTIONAL.search(body):
        lines.add("import torch.nn.functional as F")
    ours = sorted(
        (line for line in lines if _THIRD_PARTY.search(line)),
        key=lambda line: (line.startswith("from"), line),
    )
    standard = sorted(line for line in lines if not _THIRD_PARTY.search(line))
    return [*standard, *([""] if standard else []), *ours]


def _needed(definitions: Mapping[str, str], body: str) -> list[str]:
    """The definitions that `body` uses, and those that they use, in order."""
    needed: set[str] = set()
    reached = [body]
    while reached:
        words = set(_WORD.findall(reached.pop()))
        found = [name for name in definitions if name in words and name not in needed]
        needed.update(found)
        reached += [definitions[name] for name in found]
    return [text for name, text in definitions.items() if name in needed]


def _construction(graph: Graph, layout: Layout, style: Style) -> list[str]:
    """Statements of `__init__`: layers in the order of their use, free constants, then ties."""
    tree = _Tree(layout)
    tied: list[tuple[Layer, str, str]] = []
    is_parameter: dict[str, bool] = {}
    for path, layer in {layer.path: layer for layer in layout.layers.values()}.items():
        tree.assign(path, layer.kind.constructor)
        for attribute, constant in layer.constants:
            if layout.homes[constant].path == (*path, attribute):
                is_parameter[constant] = layer.kind.holds_parameter(attribute)
            else:
                tied.append((layer, attribute, constant))
    for value in graph.constants:
        if value.name not in is_parameter:
            is_parameter[value.name] = layout.homes[value.name].trainable
            tree.add_constant(value)
    for path, tensor in style.buffers.items():
        tree.add_buffer(path, tensor)
    for layer, attribute, constant in tied:
        tree.tie(layer, attribute, constant, is_parameter=is_parameter[constant])
    return tree.lines


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
        type = value.type if value.name in self._layout.integer_weights else value.type.real()
        zeros = f"torch.zeros({literal(type.shape)}, dtype={type.dtype.torch})"
        if not home.trainable:
            self._register("buffer", home.path, zeros)
        elif is_number(home.path[-1]):
            self._register("parameter", home.path, f"nn.Parameter({zeros})")
        else:
            self.assign(home.path, f"nn.Parameter({zeros})")

    def add_buffer(self, path: Path, tensor: Tensor) -> None:
        """A buffer shaped like `tensor`, to be loaded."""
        self._register("buffer", path, f"torch.zeros({literal(tuple(tensor.shape))}, dtype={tensor.dtype})")

    def tie(self, layer: Layer, attribute: str, constant: str, *, is_parameter: bool) -> None:
        """Ties the layer's tensor to the constant at another path; torch lets no buffer replace a parameter."""
        names = self._layout.names
        own, owner = (
            names.expression((*layer.path, attribute)),
            names.tensor(self._layout.homes[constant].path),
        )
        if is_parameter or not layer.kind.holds_parameter(attribute):
            self.lines.append(f"{own} = {owner}")
        else:
            register = f"{names.expression(layer.path)}.register_buffer({attribute!r}, {owner})"
            self.lines += [f"del {own}", register]

    def _register(self, what: str, path: Path, initial: str) -> None:
        self._build_parents(path)
        owner, key = self._layout.names.expression(path[:-1]), self._layout.names.clean(path)[-1]
        self.lines.append(f"{owner}.register_{what}({key!r}, {initial})")

    def _build_parents(self, path: Path) -> None:
        for end in range(1, len(path)):
            parent = path[:end]
            if parent not in self._built:
                self._built.add(parent)
                kind = "nn.ModuleDict" if self._layout.names.is_indexed(parent) else "nn.Module"
                self.lines.append(f"{self._layout.names.expression(parent)} = {kind}()")
