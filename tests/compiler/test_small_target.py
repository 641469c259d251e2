"""Networks pruned until they fit a target: linked bytes and counts on the simulated core stay below its limits."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.compiler import Compiled, UserError, compile_model
from fxpress.compiler.data import run_samples
from fxpress.compiler.execution import Counts, execute
from fxpress.ir import run_integer

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
TARGET = "  - pass: prune\n    budget: target\n    multiple: 4\n"
NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(),
        )
        self.head = nn.Linear(64, 5)

    def forward(self, image):
        return self.head(self.body(image).mean((2, 3)))
"""
LIMITS = ("model.weights=null", "target.flash=24 KiB", "target.ram=2 KiB")

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
)
needs_shared = pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)


def counted(compiled: Compiled, folder: Path) -> Counts:
    """Counts of the simulated core for one sample."""
    compiled.write(folder)
    assert compiled.session.evaluation is not None
    counts = execute(folder, compiled.session.evaluation.first(1), on="cortex-m4").counts
    assert counts is not None
    return counts


def pruned_project(project: Path) -> Path:
    """The project with a network that is too large for its target."""
    (project / "net.py").write_text(NET)
    spec = project / "net.yaml"
    spec.write_text(spec.read_text().replace("  - pass: fuse\n", TARGET + "  - pass: fuse\n"))
    return spec


def test_a_network_is_pruned_until_it_fits(project: Path) -> None:
    compiled = compile_model(pruned_project(project), overrides=LIMITS)
    assert compiled.c is not None and compiled.c.plan.arena_bytes <= 2048
    counts = counted(compiled, project / "out")
    assert counts.footprint.flash <= 24 * 1024
    rows = compiled.stages[1].report.table("budget").rows
    spent = {str(name): (before, after, limit) for name, before, after, limit in rows}
    assert [limit for _, _, limit in spent.values()] == [24 * 1024, 2048]
    assert all(before > limit for before, _, limit in spent.values())
    assert max(after / limit for _, after, limit in spent.values()) > 0.85


@pytest.mark.slow
def test_with_bits_more_of_the_network_fits(project: Path) -> None:
    spec, limits = pruned_project(project), ("model.weights=null", "target.flash=14 KiB")
    few_bits = compile_model(spec, overrides=[*limits, "passes[1].bits=[2, 4, 8]", "passes[1].samples=8"])
    eight_bits = compile_model(spec, overrides=limits)
    assert few_bits.graph.macs > eight_bits.graph.macs
    weights = [v.type.quantization for v in few_bits.graph.constants if v.type.rank > 1]
    assert any(grid is not None and grid.bits < 8 for grid in weights)
    few_bits.write(project / "out")
    assert few_bits.session.evaluation is not None
    samples = few_bits.session.evaluation.first(4)
    execution = execute(project / "out", samples, on="cortex-m4")
    expected = run_samples(few_bits.graph, samples, interpreter=run_integer)
    assert all(torch.equal(y, z) for y, z in zip(execution.outputs, expected, strict=True))
    assert execution.counts is not None and execution.counts.footprint.flash <= 14 * 1024


def test_where_no_round_ends_within_the_memory_a_network_is_shrunk_until_it_is(project: Path) -> None:
    overrides = [*LIMITS, "passes[1].bits=[2, 4, 8]", "passes[1].samples=8"]
    compiled = compile_model(pruned_project(project), overrides=overrides)
    assert compiled.c is not None and compiled.c.plan.arena_bytes <= 2048


def test_without_pruning_it_does_not_fit(project: Path) -> None:
    pruned_project(project)
    with pytest.raises(UserError, match=r"the target has 1,024[\s\S]*the target has 24,576"):
        compile_model(
            project / "net.yaml",
            overrides=[*LIMITS, "target.ram=1 KiB", "passes=[{pass: clean}, {pass: fuse}, {pass: quantize}]"],
        )


def test_a_target_that_is_too_small_is_told_the_smallest_network(project: Path) -> None:
    overrides = ["model.weights=null", "target.flash=2 KiB"]
    with pytest.raises(UserError, match=r"flash: the smallest network takes [\d,]+, the budget is 2,048"):
        compile_model(pruned_project(project), overrides=overrides)


@pytest.mark.slow
@needs_shared
def test_resnet8_fits_32_kib_of_ram_and_48_kib_of_flash(tmp_path: Path) -> None:
    with np.load(SHARED / "data" / "ic01_eval_dev.npz") as arrays:
        few = {name: arrays[name][:4] for name in ("x", "y")}
    np.savez(tmp_path / "few.npz", **few)
    given = f"{{file: {tmp_path / 'few.npz'}, inputs: {{image: x}}, labels: y, metric: top1}}"
    passes = (
        "passes=[{pass: clean}, {pass: prune, budget: target, multiple: 4}, {pass: fuse}, "
        "{pass: quantize, samples: 16}, {pass: remove_dead_channels}]"
    )
    compiled = compile_model(
        ROOT / "examples" / "pruning" / "ic_small.yaml", overrides=[passes, f"data.evaluation={given}"]
    )
    assert compiled.c is not None and compiled.c.plan.arena_bytes <= 32 * 1024
    counts = counted(compiled, tmp_path / "out")
    assert 0.9 * 48 * 1024 < counts.footprint.flash <= 48 * 1024
    assert counts.instructions < 0.7 * 9_867_820  # of the whole network
