"""Every exception class of the tree derives from `FxpressError`."""

import ast
import builtins
import pickle
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import fxpress.compiler
from fxpress.backends.errors import BackendError
from fxpress.compiler import CaptureError, UserError
from fxpress.compiler.codes import ALL_CODES
from fxpress.ir import IRError, ParseError
from fxpress.passes import MissingNeedError, PassError
from fxpress.passes.errors import OrderError
from fxpress.specs import SpecError
from fxpress.specs.root_error import ArgumentError, FxpressError, expect, message_of

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


def subclasses(error: type[FxpressError]) -> Iterator[type[FxpressError]]:
    for derived in error.__subclasses__():
        yield derived
        yield from subclasses(derived)


WITHOUT_CODE = {"IRError", "InconsistencyError", "RefusedError", "UnsupportedWriteError"}
"""A base, a fault of fxpress itself, and errors that become others before a user sees them."""


def test_every_exception_has_a_registered_code_or_problems_that_have() -> None:
    ours = [e for e in subclasses(FxpressError) if e.__module__.startswith("fxpress.")]
    assert {IRError, PassError, BackendError} < set(ours)
    lacking = [
        e.__name__ for e in ours if e.code not in ALL_CODES and not issubclass(e, SpecError | UserError)
    ]
    assert set(lacking) <= WITHOUT_CODE, lacking


def test_the_text_ends_with_the_code_and_the_message_does_not() -> None:
    error = ParseError("1:1: expected 'graph'")
    assert str(error) == "1:1: expected 'graph' [G102]" and error.message == "1:1: expected 'graph'"
    assert message_of(error) == error.message and message_of(ValueError("plain")) == "plain"


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError("fuse(graph)", "expects a graph", "give one"),
        MissingNeedError('pass "quantize"', "calibration", "labels"),
        OrderError("S301", "fuse cannot run after quantize"),
    ],
)
def test_an_error_keeps_its_text_and_code_between_processes(error: FxpressError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.code) == (type(error), str(error), error.code)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (3, "3"),
        (FxpressError, "the class FxpressError"),
        ("net", "the text 'net'"),
        ("n" * 99, "a text of 99 characters"),
        (object(), "an object"),
        ([], "a list"),
    ],
)
def test_a_wrong_argument_is_shown_short(value: object, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        expect(value, bytes, "call(value)", "bytes", "encode it")
    assert str(caught.value) == f"call(value): expects bytes, got {text}; encode it [A101]"
