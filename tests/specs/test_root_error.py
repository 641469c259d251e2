"""Every exception class of the tree derives from `FxpressError`."""

import ast
import builtins
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import fxpress.compiler
from fxpress.backends.errors import BackendError
from fxpress.compiler import CaptureError, UserError
from fxpress.ir import IRError
from fxpress.passes import PassError
from fxpress.specs import SpecError
from fxpress.specs.root_error import FxpressError

ROOT = Path(__file__).parents[2]
PARTS = ("specs", "ir", "passes", "backends", "compiler")
EXCEPTIONS = {
    name for name, found in vars(builtins).items() if isinstance(found, type) and issubclass(found, Exception)
} - {"AssertionError"}


def rootless(source: str) -> Iterator[str]:
    """Public classes that derive from an exception of Python alone; failed assertions of the testing kit may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if bases & EXCEPTIONS and bases <= EXCEPTIONS:
                yield node.name


@pytest.mark.parametrize("error", [SpecError, IRError, PassError, BackendError, UserError, CaptureError])
def test_the_errors_of_every_part_have_one_root(error: type[Exception]) -> None:
    assert issubclass(error, FxpressError)


def test_no_exception_of_the_tree_lacks_the_root() -> None:
    paths = [path for part in PARTS for path in (ROOT / part).rglob("*.py") if path.name != "root_error.py"]
    assert not [(path.name, name) for path in paths for name in rootless(path.read_text())]


def test_a_planted_exception_without_the_root_is_found() -> None:
    assert list(rootless("class OddError(ValueError): ...\nclass _Inner(Exception): ...")) == ["OddError"]


def test_the_root_and_the_version_are_names_of_the_compiler() -> None:
    assert fxpress.compiler.FxpressError is FxpressError
    assert fxpress.compiler.__version__ == version("fxpress")
