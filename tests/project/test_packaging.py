"""The package contains all files of the tree that belong to it, and no others."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("specs", "ir", "passes", "backends", "compiler")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:  # Any: a TOML document
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_of_the_tree() -> set[str]:
    found = (path.parent for part in PARTS for path in (ROOT / part).rglob("__init__.py"))
    return {".".join(("fxpress", *path.relative_to(ROOT).parts)) for path in found}


def shipped_files() -> set[str]:
    """Files that a wheel must hold, by their path in it."""
    found = (path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file())
    return {f"fxpress/{path.relative_to(ROOT)}" for path in found if "__pycache__" not in path.parts}


def test_the_list_of_packages_is_that_of_the_tree(project: dict[str, Any]) -> None:
    assert set(project["tool"]["setuptools"]["packages"]) == packages_of_the_tree()


def test_every_part_says_that_it_is_typed() -> None:
    assert all((ROOT / part / "py.typed").is_file() for part in PARTS)


def test_no_python_file_stands_at_the_root() -> None:
    assert not list(ROOT.glob("*.py"))


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_test_modules_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_what_is_pinned_lies_within_the_declared_ranges(project: dict[str, Any]) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    declared = [*project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        declared += [line for line in extra if not line.startswith("fxpress")]
    for line in declared:
        requirement = requirements.Requirement(line)
        assert pinned[requirement.name.lower()] in requirement.specifier, line


def test_the_licence_is_apache_2(project: dict[str, Any]) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS" in text
    assert project["project"]["license"] == "Apache-2.0"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, built from a copy: setuptools leaves files in the tree."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "copy"
    copy.mkdir()
    names = [*PARTS, "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), str(copy)], check=True)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_every_file_of_every_part(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fxpress/")}
    assert names == shipped_files()


def test_the_wheel_carries_the_licence_and_the_command(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    about = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "fxpress = fxpress.compiler.cli:main" in archive.read(about).decode()
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_sdist_holds_what_the_wheel_is_built_from(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {name.removeprefix("fxpress/") for name in shipped_files()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.skipif("FXPRESS_INSTALLED" not in os.environ, reason="only where an installed wheel is tested")
@pytest.mark.parametrize("part", PARTS)
def test_the_installed_wheel_is_what_the_tests_import(part: str) -> None:
    folder = Path(os.environ["FXPRESS_INSTALLED"]).resolve()
    assert Path(str(import_module(f"fxpress.{part}").__file__)).is_relative_to(folder)
