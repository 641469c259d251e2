"""Inputs are passed to the arguments of their names, in any order of the list; other names are refused."""

from pathlib import Path

import pytest
import torch

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.cli import main
from fxpress.ir import run

ROWS = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[30.0, 50.0]])}


def written(folder: Path, arguments: str, result: str, names: str) -> Path:
    """A spec for a network with this `forward`, and inputs of these names."""
    (folder / "net.py").write_text(
        f"from torch import nn\n\n\nclass Net(nn.Module):\n    def forward({arguments}):\n        return {result}\n"
    )
    inputs = ", ".join(f"{name}: {{shape: [1, 2]}}" for name in names.split())
    (folder / "net.yaml").write_text(
        f"fxpress: 1\nmodel: {{source: net.py:Net, inputs: {{{inputs}}}}}\noutputs: {{torch: {{}}}}\n"
    )
    return folder / "net.yaml"


@pytest.mark.parametrize(
    ("arguments", "result", "names"),
    [
        ("self, a, b", "a - 2 * b", "b a"),
        ("self, a, /, b", "a - 2 * b", "b a"),
        ("self, a, *, b", "a - 2 * b", "b a"),
        ("self, *, b, a", "a - 2 * b", "a b"),
        ("self, a, scale=None, b=None", "a - 2 * b", "b a"),
        ("self, scale=None, a=None, *, other=1, b=None", "a - 2 * b", "b a"),
        ("self, a, b, **others", "a - 2 * b", "b a"),
        ("self, a, *rest", "a - 2 * rest[0]", "b a"),
        ("self, *inputs", "inputs[0] - 2 * inputs[1]", "a b"),
        ("self, *inputs, **others", "inputs[0] - 2 * inputs[1]", "a b"),
    ],
)
def test_an_input_is_passed_to_the_argument_of_its_name(
    tmp_path: Path, arguments: str, result: str, names: str
) -> None:
    graph = compile_model(written(tmp_path, arguments, result, names)).graph
    (got,) = run(graph, [ROWS[value.name] for value in graph.inputs])
    assert torch.equal(got, ROWS["a"] - 2 * ROWS["b"])


@pytest.mark.parametrize("arguments", ["self, x", "self, *, x"])
def test_the_only_input_of_a_forward_with_one_argument_may_have_any_name(
    tmp_path: Path, arguments: str
) -> None:
    graph = compile_model(written(tmp_path, arguments, "x + 1", "image")).graph
    assert [value.name for value in graph.inputs] == ["image"]


@pytest.mark.parametrize(
    ("arguments", "names", "words"),
    [
        ("self, left, right", "left rigth", r"no argument 'rigth'; did you mean \"right\"\? \[M104\]"),
        ("self, left, right", "left", r"forward\(left, right\) needs right; the inputs are left \[M104\]"),
        ("self, left, right=None", "left foo", r"forward\(left, right=None\) has no argument 'foo' \[M104\]"),
        ("self, left, right=None", "foo", r"forward\(left, right=None\) has no argument 'foo' \[M104\]"),
        ("self, left", "left more", r"forward\(left\) has no argument 'more'"),
        ("self", "left", r"forward\(\) has no argument 'left'"),
        ("self, left, *, mask=None", "left maks", r"no argument 'maks'; did you mean \"mask\"\?"),
        (
            "self, **all",
            "left",
            r"forward\(\*\*all\) has no argument 'left'; \*\*all takes no inputs: wrap the model",
        ),
        ("self, left, scale=None, *rest", "left more", r"forward\(left, scale=None, \*rest\) needs scale"),
        ("self, left, *rest", "more", r"forward\(left, \*rest\) needs left"),
    ],
)
def test_a_name_that_is_no_argument_and_an_argument_without_input_are_refused(
    tmp_path: Path, arguments: str, names: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        compile_model(written(tmp_path, arguments, "left", names))


def test_init_refuses_an_input_that_is_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, "self, image, scale=1.0", "image * scale", "image")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "net.py:Net", "--input", "imago=1x3", "-o", "made.yaml"]) == 2
    said = capsys.readouterr().err
    assert "forward(image, scale=1.0) has no argument 'imago'; did you mean \"image\"?" in said
    assert "1 problem;" in said
    assert main(["init", "net.py:Net", "--input", "image=1x3", "-o", "made.yaml"]) == 0
