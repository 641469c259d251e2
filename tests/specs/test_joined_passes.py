"""A package of a user's own brings a pass: options through `fxpress.options`, rewrite through `fxpress.passes`."""

import os
import subprocess
import sys
from pathlib import Path

OPTIONS = '''
from typing import Literal
from pydantic import Field
from fxpress.specs.options.base import PassOptions


class SignOptions(PassOptions):
    """Replaces every ReLU by a hard sigmoid."""

    pass_: Literal["acme_gate"] = Field(default="acme_gate", alias="pass", description="The name of the pass.")
    times: int = Field(default=1, description="How often.")
'''
REWRITE = """
from acme_options import SignOptions
from fxpress.ir import rewrite
from fxpress.ir.ops.activation import Hardsigmoid, Relu
from fxpress.passes import PassReport, PassResult, register


@register(SignOptions)
def gate(graph, options, context):
    def visit(builder, node, operands):
        if isinstance(node.op, Relu):
            return builder.add(Hardsigmoid(), *operands, source=node.source)

    return PassResult(rewrite(graph, visit), PassReport("acme_gate"))
"""
SPEC = """
fxpress: 1
model: {source: torch.nn:ReLU, inputs: {input: {shape: [1, 4]}}}
target: {name: host}
passes: [{pass: acme_gate, times: 2}]
outputs: {c: {name: net}}
"""


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fxpress.compiler.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_pass_of_a_users_package_stands_in_a_spec_and_runs(tmp_path: Path) -> None:
    (tmp_path / "acme_options.py").write_text(OPTIONS)
    (tmp_path / "acme_rewrite.py").write_text(REWRITE)
    (tmp_path / "net.yaml").write_text(SPEC)
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    options, rewrite = "acme_gate = acme_options:SignOptions", "acme_gate = acme_rewrite:gate"
    groups = f"[fxpress.options]\n{options}\n[fxpress.passes]\n{rewrite}\n"
    (info / "entry_points.txt").write_text(groups)
    checked = _run(tmp_path, "check", "net.yaml", "--set", "passes[0].times=x")
    assert checked.returncode == 2 and "times" in checked.stderr
    compiled = _run(tmp_path, "compile", "net.yaml", "-o", "out")
    assert compiled.returncode == 0, compiled.stderr
    assert "hardsigmoid" in (tmp_path / "out" / "graph.txt").read_text()
    assert "acme_gate" in _run(tmp_path, "passes").stdout
