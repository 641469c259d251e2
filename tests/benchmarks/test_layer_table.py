"""A sample of `make layer-table`: whole compilations of single layers, and the contents of the table."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
SCRIPT = importlib.util.spec_from_file_location("layer_table", FOLDER / "layer_table.py")
assert SCRIPT is not None and SCRIPT.loader is not None
layer_table = importlib.util.module_from_spec(SCRIPT)
sys.modules["layer_table"] = layer_table  # dataclasses look their module up
SCRIPT.loader.exec_module(layer_table)
sys.path.remove(str(FOLDER))

ROWS = list(layer_table.rows())
needs_compilers = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("arm-none-eabi-gcc") is None,
    reason="a compiler is not installed",
)


@needs_compilers
@pytest.mark.parametrize("row", ROWS[11::173], ids=lambda row: f"{row.layer.name} {row.options}")
def test_a_layer_compiles_to_the_same_function_or_is_refused_by_name(row: object) -> None:
    verdict = layer_table.judge(row)
    assert not verdict.fails, verdict.fact


def test_the_table_has_every_option_for_every_convolution() -> None:
    names = {row.options for row in ROWS if row.layer.name == "conv_transpose2d groups=2 out=4 3, stride=2"}
    assert len(names) == 24
    assert {name.split()[0] for name in names} == {"int8", "int4", "int2", "float32"}
    assert any(name.endswith("nchw") for name in names) and any("False" in name for name in names)


def test_rows_are_unique() -> None:
    assert len({(row.layer.name, row.options) for row in ROWS}) == len(ROWS)
