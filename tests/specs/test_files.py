"""`check_spec`: the files of a spec exist and have the contents that it requires."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import SpecError, check_spec, render

Write = Callable[..., Path]


def _npz(*arrays: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in arrays:
            archive.writestr(f"{name}.npy", b"")
    return content.getvalue()


@pytest.fixture
def project(write: Write, sound: str) -> Path:
    """A spec with a network and data next to it."""
    write("import torch\n\nclass Net(torch.nn.Module):\n    pass\n", "net.py")
    write(_npz("x", "labels"), "train.npz")
    return write(sound.replace("train.npz}", "train.npz, labels: labels}"))


def test_a_project_with_all_its_files_is_sound(project: Path) -> None:
    assert check_spec(project).spec.model.inputs


@pytest.mark.parametrize(
    ("overrides", "code", "message", "hint"),
    [
        (["model.source=nett.py:Net"], "S311", "model.source: file not found:", 'did you mean "net.py"?'),
        (["model.source=net.py:Nett"], "S312", 'net.py does not define "Nett"', 'did you mean "Net"?'),
        (["model.source=net.py:Net.child"], "", "", ""),
        (
            ["model.weights=net.safetensors"],
            "S311",
            "model.weights: file not found:",
            "relative to the file",
        ),
        (
            ["data.calibration.file=tain.npz"],
            "S311",
            "data.calibration.file: file not found:",
            '"train.npz"?',
        ),
        (["data.calibration.file=net.py"], "S312", "is not an npz file", "numpy.savez"),
        (["data.calibration.inputs.x=X"], "S312", 'train.npz has no array "X"', 'did you mean "x"?'),
        (["data.calibration.labels=label"], "S312", 'has no array "label"', 'did you mean "labels"?'),
        (
            ["passes=[{pass: prune, plan: none.json}]"],
            "S311",
            "passes[0].plan: file not found:",
            "relative to the file",
        ),
        (["passes=[{pass: finetune, checkpoint: none.pt}]"], "", "", ""),
        (["data.calibration.file=."], "S311", "is a directory, not a file", "name a file in it"),
        (["data.evaluation.file=none.npz"], "S311", "data.evaluation.file: file not found:", ""),
    ],
)
def test_what_a_file_does_not_hold_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], code: str, message: str, hint: str
) -> None:
    monkeypatch.chdir(project.parent)
    if not code:
        assert check_spec(project, overrides).spec
        return
    with pytest.raises(SpecError) as caught:
        check_spec(project, overrides)
    (problem,) = caught.value.problems
    assert problem.code == code, render([problem])
    assert message in problem.message
    assert hint in problem.hint
    assert str(problem.place).startswith("overrides:1:")


def test_all_missing_files_are_told_at_once(write: Write, sound: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_spec(write(sound))
    assert [problem.code for problem in caught.value.problems] == ["S311", "S311"]


@pytest.mark.parametrize(
    "text",
    [
        "from nets import *\n",
        "from nets import Other as Net\n",
        "import Net\n",
        "Net = lambda: None\n",
        "if True:\n    def Net(): pass\n",
        "Net: object = None\n",
        "for name in ['Net']:\n    globals()[name] = 1\n",
        "def __getattr__(name): ...\n",
    ],
)
def test_a_name_that_a_file_may_define_is_not_refused(project: Path, text: str) -> None:
    (project.parent / "net.py").write_text(text)
    assert check_spec(project).spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"class Net(:\n", r"cannot be read as Python in line 1: invalid syntax"),
        (b"x = 1\0", r"cannot be read as Python"),
        (b"(" * 5000, r"cannot be read as Python in line 1: too many nested parentheses"),
        (b"", r'does not define "Net"'),
    ],
)
def test_a_file_that_is_not_python_is_told_and_never_run(project: Path, text: bytes, message: str) -> None:
    (project.parent / "net.py").write_bytes(text)
    with pytest.raises(SpecError, match=rf"net\.yaml:3:11: model\.source: .*{message}.* \[S312\]"):
        check_spec(project)


@pytest.mark.parametrize("name", ["x" * 5000, "loop", "folder", "a\nb"])
def test_a_name_that_no_file_can_have_is_told_as_missing(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (project.parent / "loop.npz").symlink_to("loop.npz")
    (project.parent / "folder.npz").mkdir()
    monkeypatch.chdir(project.parent)
    for key, suffix in (("data.calibration.file", "npz"), ("model.weights", "pt"), ("target.name", "yaml")):
        with pytest.raises(
            SpecError, match=r"file not found: \"[^\n]*\"|\"[^\n]*\" is a directory"
        ) as caught:
            check_spec(project, [f'{key}="{name}.{suffix}"'])
        assert [problem.code for problem in caught.value.problems] == ["S311"]
    project.write_text(f'{project.read_text()}extends: "{"x" * 5000}.yaml"\n')
    with pytest.raises(SpecError, match="S122"):
        check_spec(project)


def test_a_module_is_not_looked_for(project: Path) -> None:
    assert check_spec(project, ["model.source=no.such.module:Net"]).spec
