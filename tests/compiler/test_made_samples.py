"""Samples that a user's function makes."""

from pathlib import Path

import pytest
import torch

from fxpress.compiler.data import Column, read_samples
from fxpress.compiler.errors import UserError
from fxpress.ir import DType, TensorType
from fxpress.specs import FileSource

COLUMN = Column("x", TensorType((1, 3), DType.F32))


def source(folder: Path, body: str) -> FileSource:
    path = folder / "samples.py"
    path.write_text(f"import numpy as np\n{body}\n")
    return FileSource(path, "make")


def test_arrays_of_a_function_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    body = "def make(): return {'x': np.arange(6).reshape(2, 3), 'y': np.array([1, 0])}"
    samples = read_samples(source(tmp_path, body), [COLUMN], labels="y", limit=None)
    assert torch.equal(samples.inputs[0], torch.arange(6.0).reshape(2, 3))
    assert samples.labels is not None and samples.labels.tolist() == [1, 0]


def test_a_mask_of_zero_and_minus_infinity_is_data(tmp_path: Path) -> None:
    body = "def make(): return {'x': np.array([[0, 0, -np.inf], [0, 0, 0]])}"
    samples = read_samples(source(tmp_path, body), [COLUMN], labels=None, limit=None)
    assert samples.inputs[0].isinf().tolist() == [[False, False, True], [False] * 3]


def test_a_limit_takes_the_first_samples(tmp_path: Path) -> None:
    body = "def make(): return {'x': np.zeros((5, 3))}"
    assert len(read_samples(source(tmp_path, body), [COLUMN], labels=None, limit=2)) == 2


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("def make(): return {'z': np.zeros((2, 3))}", "D102", "has no array 'x'"),
        ("def make(): return {'x': np.zeros((2, 4))}", "D103", r"\(4,\); the model takes \(3,\)"),
        ("def make(): return {'x': np.full((2, 3), np.nan)}", "D106", "NaN or infinity in sample 0, 1"),
        ("def make(): return {'x': np.array([[0, 0, -np.inf], [1, 0, 0]])}", "D106", "infinity in sample 0"),
        ("def make(): return np.zeros((2, 3))", "D101", "does not return numpy arrays by name"),
        ("make = 3", "D101", "make is a int"),
        ("def make(): return {'x': 1 / 0}", "M101", r"ZeroDivisionError: division by zero.*samples\.py:2"),
        ("def other(): pass", "M102", "no attribute 'make'"),
    ],
)
def test_a_function_that_gives_no_samples_is_a_clear_error(
    tmp_path: Path, body: str, code: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"(?s){message}") as caught:
        read_samples(source(tmp_path, body), [COLUMN], labels=None, limit=None)
    assert caught.value.problems[0].code == code
