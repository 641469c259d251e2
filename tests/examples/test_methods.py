"""Catalogue of methods: each entry has a spec, whose baseline differs, and the lines that it shows."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fxpress.compiler.methods import load_methods, seeded
from fxpress.compiler.methods.document import methods_document
from fxpress.specs import load_spec

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "examples" / "methods"
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
SPECS = sorted(path.stem for path in METHODS.glob("*.yaml"))


def test_every_entry_has_a_spec_or_a_script() -> None:
    names = set(load_methods())
    assert set(SPECS) <= names
    scripts = names - set(SPECS)
    assert all("def measure(" in (METHODS / f"{name}.py").read_text() for name in scripts)


@pytest.mark.parametrize("name", SPECS)
def test_a_baseline_differs_from_its_method(name: str) -> None:
    method = load_methods()[name]
    spec = load_spec(METHODS / f"{name}.yaml")
    assert spec.spec != load_spec(METHODS / f"{name}.yaml", method.baseline).spec
    with_seed = [seeded(setting, 2, METHODS) for setting in method.seeds]
    assert spec.spec != load_spec(METHODS / f"{name}.yaml", with_seed).spec


@pytest.mark.parametrize("name", SPECS)
def test_an_entry_shows_lines_of_its_spec(name: str) -> None:
    shown = yaml.safe_load(load_methods()[name].applies)
    passes = yaml.safe_load((METHODS / f"{name}.yaml").read_text())["passes"]
    for step in shown if isinstance(shown, list) else []:
        assert any(_is_part(step, whole) for whole in passes), f"{step} is not in the spec"


def _is_part(shown: object, whole: object) -> bool:
    if isinstance(shown, dict) and isinstance(whole, dict):
        return all(key in whole and _is_part(value, whole[key]) for key, value in shown.items())
    return shown == whole


def test_the_networks_of_entries_are_trained() -> None:
    trained = {path.stem for path in (METHODS / "trained").glob("*.yaml")}
    assert {network for method in load_methods().values() for network in method.trained} <= trained


def test_the_page_is_up_to_date() -> None:
    results = (ROOT / "benchmarks" / "results" / "methods.json").read_text()
    command = "python -m fxpress.compiler.methods benchmarks/results/methods.json > docs/methods.md"
    assert (ROOT / "docs" / "methods.md").read_text() == methods_document(results), command


@pytest.mark.parametrize(
    "name, expected",
    [
        ("learned_thresholds", "Kusupati et al., ICML 2020"),
        ("surgery", "near: dynamic_network_surgery"),
        ("zzz", "`fxpress explain method` lists the names [R416]"),
        (None, "pruning: "),
    ],
)
def test_explain_method(name: str | None, expected: str) -> None:
    command = [
        sys.executable,
        "-m",
        "fxpress.compiler",
        "explain",
        "method",
        *([] if name is None else [name]),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert expected in ran.stdout + ran.stderr
    assert ran.returncode == (2 if "R416" in expected or "near" in expected else 0)


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "data" / "fashion_mnist.npz").is_file(), reason="fashion_mnist.npz is not in ../shared/data"
)
def test_a_row_is_compiled_with_its_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    row_of = runpy.run_path(str(ROOT / "benchmarks" / "methods.py"))["row_of"]
    row_of.__globals__["SEEDS"] = (0, 1)
    runpy.run_path(str(METHODS / "train.py"))["main"](["lenet300"])
    row = row_of("han_connections", load_methods()["han_connections"], "validation")
    assert row.reproduced and row.result > row.baseline + 5
