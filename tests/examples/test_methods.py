"""Specs of methods: each is a valid spec, and so is its baseline."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from fxpress.specs import load_spec

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "examples" / "methods"
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
OWN = {"lenet300.yaml"}  # networks that are trained first


@pytest.fixture(scope="module")
def benchmark() -> dict[str, object]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    return runpy.run_path(str(ROOT / "benchmarks" / "methods.py"))


def test_every_spec_is_a_row_whose_baseline_differs(benchmark: dict[str, object]) -> None:
    rows = benchmark["ALL"]
    assert isinstance(rows, tuple)
    assert {f"{row.name}.yaml" for row in rows} == {path.name for path in METHODS.glob("*.yaml")} - OWN
    for row in rows:
        spec = load_spec(METHODS / f"{row.name}.yaml")
        baseline = load_spec(METHODS / f"{row.name}.yaml", row.baseline)
        assert spec.spec.passes != baseline.spec.passes
        assert f"| `{row.name}.yaml` |" in (METHODS / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "data" / "fashion_mnist.npz").is_file(), reason="fashion_mnist.npz is not in ../shared/data"
)
def test_a_row_is_compiled_with_its_baseline(benchmark: dict[str, object]) -> None:
    train, accuracy = runpy.run_path(str(METHODS / "train.py"))["main"], benchmark["accuracy"]
    train([])
    method = benchmark["ALL"][0]  # type: ignore[index]
    result, baseline = (accuracy(method, changes, 0, "validation") for changes in ((), method.baseline))  # type: ignore[operator]
    assert result > baseline + 5
