"""A spec that prunes: from the float module to C of the smaller network, and a plan replayed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxpress.compiler import UserError, compile_model

PRUNE = """  - pass: prune
    score: l2
    budget: {macs: 60 %}
    compensation: [least_squares, batchnorm]
"""


def write_spec(project: Path, prune: str) -> Path:
    spec = project / "net.yaml"
    spec.write_text(spec.read_text().replace("  - pass: fuse\n", prune + "  - pass: fuse\n"))
    return spec


def test_the_c_of_a_pruned_network_gives_the_bytes_of_its_integer_graph(
    project: Path, outputs_on: Callable[..., list[Tensor]]
) -> None:
    whole = compile_model(project / "net.yaml")
    pruned = compile_model(write_spec(project, PRUNE))
    assert pruned.graph.macs <= 0.6 * whole.graph.macs
    host, integer = outputs_on(pruned, "host", "integer")
    assert torch.equal(host, integer)


def test_a_replayed_plan_gives_the_same_c(project: Path) -> None:
    plain = (project / "net.yaml").read_text()
    first = compile_model(write_spec(project, "  - pass: prune\n    budget: {macs: 60 %}\n"))
    (project / "kept.json").write_bytes(first.files["passes/1.prune.plan.json"])
    (project / "net.yaml").write_text(plain)
    again = compile_model(write_spec(project, "  - pass: prune\n    plan: kept.json\n"))
    code = {name for name in first.files if name.startswith(("c/", "graph", "passes/"))}
    assert all(first.files[name] == again.files[name] for name in code)


def test_a_budget_that_cannot_be_met_is_the_users_to_mend(project: Path) -> None:
    spec = write_spec(project, "  - pass: prune\n    budget: {macs: 1 %}\n")
    with pytest.raises(UserError, match=r"passes\[1\] \(prune\).*the budget is 1\.0 %"):
        compile_model(spec)
