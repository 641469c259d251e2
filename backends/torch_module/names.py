"""Names in emitted code: the user's layer names, which may be arbitrary, as Python identifiers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection

from torch import nn

Path = tuple[str, ...]

MAX_LENGTH = 60
_MODULE_ATTRIBUTES = frozenset(dir(nn.Module()))
_DICT_ATTRIBUTES = frozenset(dir(nn.ModuleDict()))
_NUMBER = re.compile(r"[0-9]+")


def identifier(text: str, *, fallback: str = "x") -> str:
    """A Python identifier similar to `text`: at most 60 ASCII letters, digits and underscores."""
    cleaned = re.sub(r"[^A-Za-z0-9_]+", "_", text)[:MAX_LENGTH].strip("_") or fallback
    if cleaned[0].isdigit():
        cleaned = f"{fallback}_{cleaned}"
    return f"{cleaned}_" if keyword.iskeyword(cleaned) or keyword.issoftkeyword(cleaned) else cleaned


def unique(wish: str, taken: Collection[str]) -> str:
    """`wish`, or `wish_2`, `wish_3`, ... if it is taken."""
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}_{count}"
    return name


def split(dotted: str) -> Path:
    """The components of a dotted module path; the root is the empty path."""
    return tuple(dotted.split(".")) if dotted else ()


def is_number(component: str) -> bool:
    """True for the name of a child of `nn.Sequential` or `nn.ModuleList`."""
    return _NUMBER.fullmatch(component) is not None and len(component) <= MAX_LENGTH


def comment(text: str) -> str:
    """`text` as the rest of a comment line: printable ASCII, at most 100 characters."""
    printable = re.sub(r"[^ -~]+", " ", text)
    return printable if len(printable) <= 100 else f"{printable[:97]}..."


class ModuleNames:
    """Attribute names for the user's module paths, unique below each parent.

    A number stays a number: its parent is an `nn.ModuleDict` and is indexed by it.
    """

    def __init__(self, paths: Collection[Path]) -> None:
        self._indexed = {path[:i] for path in paths for i in range(len(path)) if is_number(path[i])}
        self._clean: dict[Path, Path] = {(): ()}
        self._taken: dict[Path, set[str]] = {}

    def is_indexed(self, path: Path) -> bool:
        """True if the module at `path` is an `nn.ModuleDict`."""
        return path in self._indexed

    def clean(self, path: Path) -> Path:
        """`path` with every component converted to an attribute name or a number, always the same one."""
        known = len(path)
        while path[:known] not in self._clean:
            known -= 1
        for end in range(known + 1, len(path) + 1):
            parent = path[: end - 1]
            taken = self._taken.setdefault(parent, set())
            name = self._attribute(path[end - 1], parent, taken)
            taken.add(name)
            self._clean[path[:end]] = (*self._clean[parent], name)
        return self._clean[path]

    def expression(self, path: Path) -> str:
        """Python that reads or assigns the module at `path`, or assigns a tensor: `self.features["0"].weight`."""
        return "self" + "".join(f'["{part}"]' if is_number(part) else f".{part}" for part in self.clean(path))

    def tensor(self, path: Path) -> str:
        """Python that reads the tensor at `path`."""
        if not is_number(path[-1]):
            return self.expression(path)
        return f'getattr({self.expression(path[:-1])}, "{path[-1]}")'

    def state_key(self, path: Path) -> str:
        """The `state_dict` key of the tensor at `path`."""
        return ".".join(self.clean(path))

    def _attribute(self, component: str, parent: Path, taken: set[str]) -> str:
        if is_number(component):
            return component
        reserved = _DICT_ATTRIBUTES if self.is_indexed(parent) else _MODULE_ATTRIBUTES
        name = identifier(component, fallback="layer")
        return unique(f"{name}_" if name in reserved else name, taken)
