"""The pages about the IR: generated ones are current, code on the others runs."""

import re
from pathlib import Path

from fxpress.ir import OPERATORS
from fxpress.ir.ops import base
from fxpress.ir.ops.document import operators_document
from fxpress.ir.testing import growth

DOCS = Path(__file__).parents[2] / "docs"


def test_operator_page_is_current() -> None:
    message = "run `python -m fxpress.ir.ops.document > docs/ops.md`"
    assert (DOCS / "ops.md").read_text() == operators_document(), message


def test_code_of_the_operator_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "ops.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    try:
        exec(compile(blocks[0], "ops.md", "exec"), {"__name__": "operator_page"})
        assert "scaled_relu" in OPERATORS
    finally:
        base._OPERATORS.pop("scaled_relu", None)


def test_operator_page_has_a_row_for_every_operator() -> None:
    page = (DOCS / "ops.md").read_text()
    assert [name for name in OPERATORS if f"| `{name}(" not in page] == []


def test_code_of_the_testing_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "testing.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    scope = {"__name__": "testing_page"}
    try:
        for block in blocks:
            exec(compile(block, "testing.md", "exec"), scope)
        assert "soft_threshold" in OPERATORS
    finally:
        base._OPERATORS.pop("soft_threshold", None)
        growth._GROWS.pop("soft_threshold", None)
