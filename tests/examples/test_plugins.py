"""Each package of examples/plugins is installed with pip into a separate folder, and works as its page states."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from forked_python import run_python

PACKAGES = Path(__file__).parents[2] / "examples" / "plugins"
SEAMS = sorted(path.name for path in PACKAGES.iterdir() if (path / "pyproject.toml").is_file())
MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, last="frac"):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.gate = nn.Sigmoid()
        self.head = nn.Linear(5, 3)
        self.last = last

    def forward(self, x):
        y = self.head(self.gate(self.body(x)).relu())
        if self.last == "frac":
            return torch.frac(y)
        return -(-y) if self.last == "negations" else y
"""
SPEC = """
fxpress: 1
model: {source: model.py:Net, args: {last: LAST}, inputs: {x: {shape: [1, 6]}}}
data: {calibration: {file: x.npz}}
target: {name: cortex-m4}
passes:
PASSES
outputs: {OUTPUTS}
"""
COMMANDS = """
import shlex
import sys

from fxpress.compiler.cli import main

*commands, last = map(shlex.split, sys.argv[1:])
for words in commands:
    if status := main(words):
        sys.exit(f"{words} ended with status {status}")
sys.exit(main(last))
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


def install(names: Sequence[str], folder: Path, target: Path) -> None:
    """Install copies of the packages, so that nothing is built in the tree; without a network."""
    copies = [Path(shutil.copytree(PACKAGES / name, folder / name)) for name in names]
    options = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, copies)], check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all packages are installed."""
    folder = tmp_path_factory.mktemp("plugins")
    install(SEAMS, folder, folder / "site")
    return folder / "site"


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Runs commands of fxpress in a process in a project, where the packages of a folder are installed.

    All commands but the last have to succeed; the last ends with `status`.
    """
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "commands.py").write_text(COMMANDS)
    samples = np.random.default_rng(0).normal(size=(16, 6)).astype("f4")
    np.savez(tmp_path / "x.npz", x=samples)

    def call(*commands: str, packages: Path = site, status: int = 0) -> subprocess.CompletedProcess[str]:
        paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = run_python("commands.py", *commands, folder=tmp_path, environment=environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return call


def write_spec(
    folder: Path, passes: str, *, last: str = "none", outputs: str = "torch: {}", name: str = "net"
) -> None:
    lines = "\n".join(f"  - {line}" for line in passes.splitlines())
    text = SPEC.replace("LAST", last).replace("PASSES", lines).replace("OUTPUTS", outputs)
    (folder / f"{name}.yaml").write_text(text)


def test_there_is_an_example_of_every_seam() -> None:
    assert {*SEAMS} == {
        "backend",
        "fusion_rule",
        "kernel",
        "observer",
        "operator",
        "pass",
        "sensitivity_method",
        "target",
    }
    assert all((PACKAGES / name / "README.md").is_file() for name in SEAMS)


def test_an_operator_and_its_kernel_reach_c(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, "{pass: fuse}\n{pass: quantize}", last="frac", outputs="c: {name: net}")
    write_spec(tmp_path, "{pass: fuse}", last="frac", outputs="c: {name: net}", name="float")
    places = ("host", "integer", "cortex-m4")
    runs = [f"run out --on {place} --data x.npz --save {place}.npz" for place in places]
    done = run("compile net.yaml -o out", "compile float.yaml -o float", *runs, "ops")
    assert "frac " in done.stdout
    graph = (tmp_path / "out" / "graph.txt").read_text()
    assert "= frac(" in graph and "torch_call" not in graph
    assert "Table of frac over 3 elements" in (tmp_path / "out" / "c" / "net.c").read_text()
    outputs = [np.load(tmp_path / f"{place}.npz")["output"] for place in places]
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
    assert "truncf(x[i])" in (tmp_path / "float" / "c" / "net.c").read_text()


def test_a_pass_stands_in_a_spec_beside_ours(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, "{pass: hard_gates}\n{pass: fuse}")
    write_spec(tmp_path, "{pass: hard_gates, kepe: [gate]}", name="wrong")
    plan = "plan net.yaml --set passes[0].keep=[gate] --why"
    done = run("compile net.yaml -o out", plan, "check wrong.yaml", status=2)
    assert "hardsigmoid" in (tmp_path / "out" / "graph.txt").read_text()
    assert "`keep` names it" in done.stdout
    assert 'wrong.yaml:7:24: passes[0]: unknown key "kepe"; did you mean "keep"?' in done.stderr


def test_a_fusion_rule_is_applied_where_a_spec_names_it(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, "{pass: fuse}", last="negations", name="without")
    write_spec(tmp_path, "{pass: fuse, add: [double_negation]}", last="negations")
    write_spec(tmp_path, "{pass: fuse, add: [double_negatoin]}", name="wrong")
    done = run("compile without.yaml -o without", "compile net.yaml -o out", "check wrong.yaml", status=2)
    counts = [(tmp_path / name / "graph.txt").read_text().count("= neg(") for name in ("without", "out")]
    assert counts == [2, 0]
    message = 'add[0]: "double_negatoin" is not one of double_negation; did you mean "double_negation"?'
    assert message in done.stderr


def test_an_observer_chooses_ranges(run: Run, tmp_path: Path) -> None:
    observers = {
        "narrow": "{kind: sigmas, width: 0.5}",
        "wide": "{kind: sigmas, width: 100}",
        "full": "minmax",
        "wrong": "{kind: sigmas, width: -1}",
    }
    for name, observer in observers.items():
        write_spec(tmp_path, f"{{pass: quantize, observer: {observer}}}", name=name)
    names = ("narrow", "wide", "full")
    done = run(*(f"compile {name}.yaml -o {name}" for name in names), "check wrong.yaml", status=2)
    narrow, wide, full = ((tmp_path / name / "graph.txt").read_text() for name in names)
    assert wide == full and narrow != full
    assert "observer.width: must be more than 0.0, got -1" in done.stderr


def test_a_sensitivity_method_measures_and_decides(run: Run, tmp_path: Path) -> None:
    budget = "{pass: assign_bits, budget: {weights: 75 %}, sensitivity: relative_error}\n{pass: quantize}"
    write_spec(tmp_path, budget, outputs="c: {}")
    write_spec(tmp_path, budget.replace("relative_error", "relativ_error"), name="wrong")
    measure = "sensitivity net.yaml --method relative_error"
    done = run(measure, "compile net.yaml -o out", "check wrong.yaml", status=2)
    assert "relative_error, 16 samples" in done.stdout
    assert 'did you mean "relative_error"?' in done.stderr


def test_a_target_is_listed_and_simulated(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, "{pass: fuse}\n{pass: quantize}", outputs="c: {}")
    compile_it = "compile net.yaml -o out --set target.name=sensor-board"
    done = run("targets", compile_it, "run out --on sensor-board --data x.npz")
    assert "A sensor with a Cortex-M4 at 48 MHz" in done.stdout
    assert "instructions" in done.stdout


def test_a_backend_checks_emits_and_runs(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, "{pass: fuse}", outputs="torch: {}, numpy: {function: classify}")
    write_spec(tmp_path, "{pass: fuse}", last="frac", outputs="numpy: {}", name="refused")
    write_spec(tmp_path, "{pass: fuse}", outputs="numpy: {functoin: f}", name="wrong")
    runs = [f"run out --on {place} --data x.npz --save {place}.npz" for place in ("numpy", "torch")]
    done = run("compile net.yaml -o out", *runs, "compile refused.yaml -o refused", status=2)
    assert "frac has no form in NumPy" in done.stderr
    assert "def classify(v0):" in (tmp_path / "out" / "numpy" / "network.py").read_text()
    found, expected = (np.load(tmp_path / f"{place}.npz")["output"] for place in ("numpy", "torch"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    message = run("check wrong.yaml", status=2).stderr
    assert 'outputs.numpy: unknown key "functoin"; did you mean "function"?' in message


def test_sections_of_packages_are_in_the_schema_and_start_without_torch(run: Run, site: Path) -> None:
    text, _, passes = run("schema", "passes").stdout.partition("\n}\n")
    schema = json.loads(text + "}")
    assert {"HardGatesOptions", "Sigmas", "NumpyOptions"} <= schema["$defs"].keys()
    for name in ("double_negation", "relative_error"):
        assert f'"{name}"' in text
    assert "hard_gates: Replaces sigmoids by hard sigmoids." in passes
    code = (
        "import sys; from fxpress.specs import json_schema; json_schema(); assert 'torch' not in sys.modules"
    )
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=True)


FAULTS = {  # by seam: the module that fails, the passes and what else needs it, the command, the code (a note: none)
    "operator": ("frac_operator", "{pass: fuse}", "last=frac", "plan", ""),
    "kernel": ("frac_kernel", "{pass: fuse}", "last=frac c", "compile", "C702"),
    "pass": ("hard_gates", "{pass: hard_gates}", "", "compile", "P600"),
    "fusion_rule": ("double_negation", "{pass: fuse, add: [double_negation]}", "", "compile", "P601"),
    "observer": ("sigmas", "{pass: quantize, observer: sigmas}", "", "compile", "P601"),
    "sensitivity_method": (
        "relative_error",
        "{pass: assign_bits, budget: {weights: 75 %}, sensitivity: relative_error}\n{pass: quantize}",
        "",
        "compile",
        "P601",
    ),
    "target": ("sensor_board/__init__", "{pass: fuse}", "target", "check", "S210"),
    "backend": ("numpy_backend", "{pass: fuse}", "numpy", "compile", "B600"),
}


@pytest.mark.parametrize(
    "seam",
    [
        pytest.param(seam, marks=[pytest.mark.slow] * (seam not in ("operator", "backend", "target")))
        for seam in SEAMS
    ],
)
def test_a_package_that_fails_is_named_where_it_is_needed_and_breaks_nothing_else(
    run: Run, site: Path, tmp_path: Path, seam: str
) -> None:
    broken = Path(shutil.copytree(site, tmp_path / "broken"))
    module, passes, needs, command, code = FAULTS[seam]
    (broken / f"{module}.py").write_text("raise RuntimeError('no licence')\n")
    write_spec(tmp_path, "{pass: fuse}\n{pass: quantize}", outputs="c: {}", name="other")
    outputs = "numpy: {}" if needs == "numpy" else "c: {}" if "c" in needs.split() else "torch: {}"
    write_spec(tmp_path, passes, last="frac" if "last=frac" in needs else "none", outputs=outputs)
    command += " net.yaml" + " -o out" * (command == "compile")
    command += " --set target.name=sensor-board" * (needs == "target")
    done = run("compile other.yaml -o other", command, packages=broken, status=2 if code else 0)
    said = done.stderr if code else done.stdout
    assert "is part of a package that cannot be used" in said and "RuntimeError: no licence" in said, said
    assert not code or f"[{code}]" in said
