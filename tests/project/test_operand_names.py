"""Operands are read by names that an operator gives them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxpress.ir import OPERATORS

ROOT = Path(__file__).parents[2]
FOLDERS = ("ir", "passes", "backends", "compiler", "benchmarks", "examples")
READS = {"operand", "optional", "type", "has", "array", "quantization", "is_constant", "at_hand", "index"}
OWNERS = {
    "node",
    "call",
    "site",
    "cut",
    "op",
    "self",
    "n",
    "user",
    "layer",
    "first",
    "second",
    "norm",
    "maker",
}
NAMES = {name for op in OPERATORS.values() for name in op.operand_names}


def names_read(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each operand that is read by a name written in the source."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(ast.Attribute(owner, method), [*_, ast.Constant(str(name))]) if method in READS:
                if ast.unparse(owner).rpartition(".")[2] in OWNERS:
                    yield node.lineno, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_of_operands_are_those_of_an_operator(folder: str) -> None:
    unknown = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in names_read(path.read_text())
        if name not in NAMES
    ]
    assert not unknown


def test_a_misspelt_operand_is_found() -> None:
    source = 'weight = node.operand("wieght")\nbias = node.op.optional(operands, "bias")\n'
    assert list(names_read(source)) == [(1, "wieght"), (2, "bias")]
