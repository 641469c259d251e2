"""A package of a user's own brings a pass: options through `fxpress.options`, rewrite through `fxpress.passes`."""

import os
import subprocess
from pathlib import Path

import pytest
from forked_python import run_python

from fxpress.specs import FuseOptions, SpecError

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
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return run_python("-m", "fxpress.compiler.cli", *words, folder=folder, environment=environment)


def _install(folder: Path, *, options: str = OPTIONS, rewrite: str = REWRITE) -> None:
    (folder / "acme_options.py").write_text(options)
    (folder / "acme_rewrite.py").write_text(rewrite)
    (folder / "net.yaml").write_text(SPEC)
    info = folder / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    names = "acme_gate = acme_options:SignOptions", "acme_gate = acme_rewrite:gate"
    groups = f"[fxpress.options]\n{names[0]}\n[fxpress.passes]\n{names[1]}\n"
    (info / "entry_points.txt").write_text(groups)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise SystemExit", "SystemExit"),
        ("def SignOptions(", "SyntaxError: "),
        ("SignOptions = dict", "AttributeError: "),
        (OPTIONS.replace('Literal["acme_gate"]', "str"), "PydanticUserError: "),
        (
            OPTIONS.replace('"acme_gate"', '"clean"'),
            "TypeError: acme_options:SignOptions is not a PassOptions with",
        ),
    ],
)
def test_a_package_that_fails_breaks_nothing_but_its_own_pass(
    tmp_path: Path, options: str, words: str
) -> None:
    _install(tmp_path, options=options)
    (tmp_path / "other.yaml").write_text(SPEC.replace("{pass: acme_gate, times: 2}", "{pass: clean}"))
    assert _run(tmp_path, "check", "other.yaml").returncode == 0
    needed = _run(tmp_path, "check", "net.yaml")
    assert needed.returncode == 2
    assert f"acme_options:SignOptions raises {words}" in needed.stderr
    assert "S210" in needed.stderr


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_rewrite_that_cannot_be_imported_or_run_is_named(tmp_path: Path, fault: str, words: str) -> None:
    _install(tmp_path, rewrite=fault)
    compiled = _run(tmp_path, "compile", "net.yaml", "-o", "out")
    assert compiled.returncode == 2
    assert f"acme_rewrite:gate raises {words}" in compiled.stderr and "P600" in compiled.stderr
    (tmp_path / "acme_rewrite.py").write_text(REWRITE.replace("    def visit", f"    {fault}\n    def visit"))
    compiled = _run(tmp_path, "compile", "net.yaml", "-o", "out")
    assert compiled.returncode == 2
    assert f"passes[0] (acme_gate): raises {words}; report it to the package" in compiled.stderr
    assert "P605" in compiled.stderr


def test_a_pass_of_a_users_package_stands_in_a_spec_and_runs(tmp_path: Path) -> None:
    _install(tmp_path)
    checked = _run(tmp_path, "check", "net.yaml", "--set", "passes[0].times=x")
    assert checked.returncode == 2 and "times" in checked.stderr
    compiled = _run(tmp_path, "compile", "net.yaml", "-o", "out")
    assert compiled.returncode == 0, compiled.stderr
    assert "hardsigmoid" in (tmp_path / "out" / "graph.txt").read_text()
    assert "acme_gate" in _run(tmp_path, "passes").stdout


def test_a_rule_that_no_package_brings_is_refused_in_a_whole_sentence() -> None:
    with pytest.raises(SpecError, match=r'"mine" names a fusion rule of a package, but no .* has one'):
        FuseOptions(add=["mine"])  # type: ignore[arg-type]
