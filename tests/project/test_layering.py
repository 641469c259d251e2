"""Imports go one way: specs and ir know no other part, passes and backends know those two, the compiler knows all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "specs": {"specs"},
    "ir": {"ir"},
    "passes": {"passes", "ir", "specs"},
    "backends": {"backends", "ir", "specs"},
    "compiler": {"compiler", "specs", "ir", "passes", "backends"},
}
ROOT_ERROR = "fxpress.specs.root_error"
"""The base of all exceptions, which every part imports."""
LATE_IMPORTS = {"compiler/cli.py"}
"""The command line, where each command imports the modules that need torch."""


def modules() -> list[Path]:
    return [path for part in MAY_IMPORT for path in sorted((ROOT / part).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Each import statement, with the full name of the module that it imports from; relative names resolved."""
    package = ("fxpress", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            outer = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*outer, *(node.module.split(".") if node.module else ())))
            if name == "fxpress":
                for alias in node.names:
                    yield node, f"fxpress.{alias.name}"
            else:
                yield node, name


def violations(path: Path) -> list[str]:
    part = path.relative_to(ROOT).parts[0]
    found = []
    for node, name in imports(path):
        words = name.split(".")
        if (
            words[0] == "fxpress"
            and len(words) > 1
            and name != ROOT_ERROR
            and words[1] not in MAY_IMPORT[part]
        ):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {part} imports {name}")
        if part == "specs" and words[0] == "torch":
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}: specs imports torch")
    return found


def late_imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}: imports inside {function.name}"
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def test_no_part_imports_one_above_it() -> None:
    assert not [message for path in modules() for message in violations(path)]


def test_imports_stand_at_the_top_of_a_module() -> None:
    allowed = {ROOT / name for name in LATE_IMPORTS}
    assert not [message for path in modules() if path not in allowed for message in late_imports(path)]


def test_no_module_has_a_name_that_shadows_another() -> None:
    assert not [path for path in modules() if path.stem in {"types", "trace", "torch"}]


@pytest.mark.parametrize(
    ("part", "line", "message"),
    [
        ("ir", "from ..specs import Spec", "ir imports fxpress.specs"),
        ("passes", "from fxpress.backends.c import emit", "passes imports fxpress.backends.c"),
        ("passes", "from fxpress import compiler", "passes imports fxpress.compiler"),
        ("backends", "from ..passes.fuse import fuse", "backends imports fxpress.passes.fuse"),
        ("specs", "import torch.nn", "specs imports torch"),
    ],
)
def test_a_planted_violation_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, line: str, message: str
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / part / "planted.py"
    path.parent.mkdir()
    path.write_text(line)
    assert violations(path) == [f"{part}/planted.py:1: {message}"]


def test_a_planted_late_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "planted.py"
    path.write_text("def f():\n    import json\n    return json")
    assert late_imports(path) == ["planted.py:2: imports inside f"]
