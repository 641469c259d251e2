"""A spec that trains on integers with a loss of the user's own: down to C, and refused where it is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.pipeline import calibration_batches, open_session, run_passes
from fxpress.ir import Graph
from fxpress.specs import SpecError, check_spec

LOSS = """
from torch.nn import functional

def smoothed(outputs, labels):
    return functional.cross_entropy(outputs.flatten(1), labels, label_smoothing=0.1)

def broken(outputs, labels):
    return outputs.no_such_thing
"""


def write_spec(project: Path, loss: str) -> Path:
    (project / "losses.py").write_text(LOSS)
    spec = project / "net.yaml"
    trained = f"  - pass: finetune\n    loss: {loss}\n    epochs: 1\n    batch: 8\n    checkpoint: build/training.pt\n"
    text = spec.read_text().replace("samples: 16", "labels: y")
    passes = text.index("passes:")
    outputs = text.index("outputs:", passes)
    spec.write_text(text[:outputs].rstrip() + "\n" + trained + "\n" + text[outputs:])
    return spec


def test_the_c_of_a_network_trained_on_integers_gives_the_bytes_of_its_graph(
    project: Path, outputs_on: Callable[..., list[Tensor]]
) -> None:
    compiled = compile_model(write_spec(project, "losses.py:smoothed"))
    before, after = compiled.stages[-2].graph, compiled.graph
    assert {n: v.bits for n, v in _grids(before).items()} == {n: v.bits for n, v in _grids(after).items()}
    assert (project / "build" / "training.pt").is_file()
    host, integer = outputs_on(compiled, "host", "integer")
    assert torch.equal(host, integer)


def _grids(graph: Graph) -> dict[str, object]:
    return {v.name: v.type.quantization for v in graph.constants if v.type.quantization is not None}


def test_a_loss_that_raises_is_told_with_the_users_line(project: Path) -> None:
    with pytest.raises(UserError, match=r"losses\.py:broken: calling it raises AttributeError.*losses\.py:8"):
        compile_model(write_spec(project, "losses.py:broken"))


def test_a_loss_that_is_not_there_is_found_before_anything_runs(project: Path) -> None:
    with pytest.raises(
        SpecError, match=r'loss: losses\.py does not define "smooth"; did you mean "smoothed"'
    ):
        check_spec(write_spec(project, "losses.py:smooth"))


def _samples(spec: Path, *overrides: str) -> tuple[int, int]:
    """Number of samples that the training of a spec reads, and number of passes that do not train."""
    session = open_session(spec, overrides=overrides)
    (table,) = [t for t in run_passes(session)[-1].report.tables if t.name == "samples"]
    return sum(table.rows[0]), len(calibration_batches(session, None)[0])


def test_training_takes_all_samples_unless_told_otherwise(project: Path) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(300, 3, 8, 8)).astype("f4"), generator.integers(0, 5, 300)
    np.savez(project / "data.npz", x=images, y=labels)
    spec = write_spec(project, "cross_entropy")
    quick = ("passes[3].epochs=0", "passes[3].checkpoint=null")
    assert _samples(spec, *quick) == (300, 256)
    assert _samples(spec, *quick, "passes[3].samples=40") == (40, 256)
    assert _samples(spec, *quick, "data.calibration.samples=50") == (50, 50)


def test_pruning_that_trains_takes_all_samples_and_says_how_many(project: Path) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(300, 3, 8, 8)).astype("f4"), generator.integers(0, 5, 300)
    np.savez(project / "data.npz", x=images, y=labels)
    step = "{pass: prune, budget: {macs: 60 %}, finetune: {pass: finetune, epochs: 0}}"
    passes = f"passes=[{{pass: clean}}, {step}, {{pass: fuse}}]"
    spec = project / "net.yaml"
    spec.write_text(spec.read_text().replace(", samples: 16", ""))
    session = open_session(spec, overrides=[passes])
    stages = run_passes(session)
    assert stages[1].report.warnings[-1] == "prune: trained on 270 samples, 30 held back"
