"""Public names: examples, benchmarks and pages import no others, and no submodule takes their place."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import fxpress
from fxpress import compiler
from fxpress.ir import OPERATORS, ops

ROOT = Path(__file__).parents[2]
PARTS = ("errors", "specs", "ir", "passes", "backends", "compiler")
SCRIPTS = sorted([*ROOT.glob("examples/**/*.py"), *ROOT.glob("benchmarks/*.py")])
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


def imported(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import from fxpress; the name is empty where a module is imported as a whole."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fxpress":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "fxpress")


def hidden(source: str) -> list[str]:
    """The imports of a source whose name is not in `__all__` of the package or module that it is taken from."""
    return [f"{module}: {name}" for module, name in imported(source) if not _is_public(module, name)]


def _is_public(module: str, name: str) -> bool:
    if module == "fxpress":
        return name in PARTS
    found = import_module(module)
    return not name or name in getattr(found, "__all__", ())


def snippets(page: str) -> Iterator[str]:
    """The Python on a page."""
    return (match[1] for match in re.finditer(r"```python\n(.*?)```", page, re.DOTALL))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_imports_exported_names_alone(path: Path) -> None:
    assert not hidden(path.read_text())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_imports_exported_names_alone(path: Path) -> None:
    assert not [found for text in snippets(path.read_text()) for found in hidden(text)]


@pytest.mark.parametrize(
    "line",
    [
        "from fxpress.compiler.data import Samples",
        "from fxpress.compiler import HOST",
        "from fxpress import nothing",
        "def f():\n    from fxpress.passes.base import register",
    ],
)
def test_a_planted_import_of_a_hidden_name_is_found(line: str) -> None:
    assert len(hidden(line)) == 1


def packages() -> Iterator[str]:
    found = pkgutil.walk_packages(fxpress.__path__, "fxpress.")
    return (module.name for module in found if module.ispkg and module.name.split(".")[1] in PARTS)


@pytest.mark.parametrize("name", sorted(packages()))
def test_every_exported_name_is_there(name: str) -> None:
    package = import_module(name)
    names = list(getattr(package, "__all__", ()))
    assert not [name for name in names if not hasattr(package, name)]
    assert len(names) == len(set(names))


def test_every_operator_is_exported_by_its_class() -> None:
    ours = [op for op in OPERATORS.values() if op.__module__.startswith("fxpress.ir.ops.")]
    assert not [op.__name__ for op in ours if op.__name__ not in ops.__all__]


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    for module in pkgutil.iter_modules(compiler.__path__):
        import_module(f"fxpress.compiler.{module.name}")
    assert not [name for name in compiler.__all__ if isinstance(getattr(compiler, name), ModuleType)]
