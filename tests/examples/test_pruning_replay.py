"""The keyword network pruned by the plan of an earlier run: the same channels, graph, plan and C, byte for byte."""

import os
from pathlib import Path

import pytest

from fxpress.compiler import Compiled, compile_model

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
PLAN = Path("passes") / "1.prune.plan.json"
needs_shared = pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)


def compiled(prune: str) -> Compiled:
    passes = (
        f"passes=[{{pass: clean}}, {{pass: prune, {prune}, compensation: [least_squares, batchnorm]}}, "
        "{pass: fuse}, {pass: quantize}]"
    )
    spec = ROOT / "examples" / "pruning" / "kws.yaml"
    return compile_model(spec, overrides=[passes, "data.calibration.samples=32"])


def files(folder: Path) -> dict[Path, bytes]:
    """The plan, the graph and the C; not the report and the lock, which contain the options."""
    code = [path for path in (folder / "c").rglob("*") if path.is_file()]
    found = [folder / PLAN, folder / "graph.txt", folder / "graph.safetensors", *code]
    return {path.relative_to(folder): path.read_bytes() for path in found}


@needs_shared
@pytest.mark.parametrize("score", ["l2", pytest.param("taylor", marks=pytest.mark.slow)])
def test_the_plan_of_the_keyword_network_gives_the_same_bytes_again(score: str, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    decided = compiled(f"score: {score}, budget: {{macs: 50 %}}, multiple: 4")
    decided.write(first)
    replayed = compiled(f"plan: {first / PLAN}")
    replayed.write(again)
    assert replayed.graph == decided.graph
    assert decided.stages[1].graph.macs < 0.5 * decided.stages[0].graph.macs
    assert Path("c") / "kws.c" in files(first)
    assert files(again) == files(first)
