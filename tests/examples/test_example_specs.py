"""Every spec of the examples is sound."""

import os
from pathlib import Path

import pytest

from fxpress.specs import load_spec

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
SPECS = sorted(
    path
    for path in (ROOT / "examples").rglob("*.yaml")
    if "fxpress: 1" in path.read_text()  # others describe targets
)


@pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)
@pytest.mark.parametrize("spec", SPECS, ids=[str(path.relative_to(ROOT / "examples")) for path in SPECS])
def test_a_spec_is_read_without_a_problem(spec: Path) -> None:
    loaded = load_spec(spec)
    assert loaded.spec.passes and any(loaded.spec.outputs.model_dump(exclude_none=True))
