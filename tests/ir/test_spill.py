"""Tensors in temporary files: the same elements, and no file left when nothing reads them any more."""

import gc
import tempfile
from pathlib import Path

import pytest
import torch

from fxpress.ir import LazyTensor, Params
from fxpress.ir.spill import spill, spilled


def test_spilled_tensors_are_equal_and_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tensors = Params({"a": torch.arange(6).reshape(2, 3), "b": torch.randn(4).to(torch.bfloat16)})
    kept = spill(tensors)
    assert kept == tensors and all(isinstance(entry, LazyTensor) for entry in kept.entries.values())
    assert len(list(tmp_path.iterdir())) == 1


def test_the_file_goes_with_the_last_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = spill(Params({"a": torch.ones(2), "b": torch.zeros(2)}))
    entry = kept.entry("b")
    del kept
    gc.collect()
    assert isinstance(entry, LazyTensor) and torch.equal(entry.read(), torch.zeros(2))
    del entry
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_one_tensor_is_spilled_alone() -> None:
    tensor = torch.arange(5, dtype=torch.int8)
    assert torch.equal(spilled(tensor).read(), tensor)
